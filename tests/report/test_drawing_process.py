"""A run's report is drawn by another process, and is the same; what becomes of that process harms no training."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_page import history
from torch import nn
from warm_python import COLD

import mlflow_dynamics
from mlflow_dynamics.errors import DrawingError
from mlflow_dynamics.report import drawing_process, live
from mlflow_dynamics.report.artifacts import render
from mlflow_dynamics.report.drawing_process import MAX_FILE_BYTES, pictures_apart, render_apart
from mlflow_dynamics.tracking import names

pytestmark = pytest.mark.drawn

HERE = Path(__file__).parent

# What the other process is told: -c COMMAND TASK FOLDER NICE SECONDS.
ABORTS = "import os; os.abort()"
HANGS = "import time; time.sleep(600)"
PRINTS_GARBAGE = "import sys; sys.stdout.write('\\0garbage' * 10_000_000); sys.exit(3)"
WRITES_NOTHING = "pass"
WRITES_TOO_MUCH = f"""
import os, pathlib, sys
report = pathlib.Path(sys.argv[4], {names.REPORT!r})
report.parent.mkdir()
report.touch()
os.truncate(report, {MAX_FILE_BYTES + 1})
"""
LINKS = f"""
import pathlib, sys
report = pathlib.Path(sys.argv[4], {names.REPORT!r})
report.parent.mkdir()
report.symlink_to("/etc/hostname")
"""

SAID = {
    ABORTS: "ended with SIGABRT",
    HANGS: "took longer than 2 s",
    PRINTS_GARBAGE: "ended with status 3",
    WRITES_NOTHING: "wrote no page",
    WRITES_TOO_MUCH: "wrote no page",
    LINKS: "wrote no page",
}


def drawing_with(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the other process run `program`."""
    (tmp_path / "program.py").write_text(program)
    interpreter = tmp_path / "interpreter"
    interpreter.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/program.py" "$@"\n')
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))


def train(model: nn.Module, epochs: int = 1) -> str:
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with mlflow_dynamics.track(model) as tracker:
        for _ in range(epochs):
            for _ in range(70):
                optimizer.zero_grad()
                model(torch.randn(8, 4)).square().mean().backward()
                optimizer.step()
            tracker.end_epoch()
    assert tracker.run_id is not None
    return tracker.run_id


def files(run_id: str) -> set[str]:
    client = mlflow.MlflowClient()
    return {
        file.path
        for folder in (names.ARTIFACT_ROOT, names.FIGURES)
        for file in client.list_artifacts(run_id, folder)
    }


def test_the_report_is_the_one_that_this_process_would_draw() -> None:
    drawn = render_apart(history(5).packed())
    assert drawn == render(history(5), pictures=True)


def test_what_cannot_be_drawn_is_said() -> None:
    with pytest.raises(DrawingError, match="ended with status 1"):
        render_apart(b"no history")


def test_a_specification_that_ends_the_renderer_ends_not_this_process() -> None:
    chart = '{"data": {"values": [{"a": "%s"}]}, "mark": "point", "encoding": {"y": {"field": "a"}}}'
    assert pictures_apart({"fine": chart % "a"})["fine"].startswith(b"\x89PNG")
    with pytest.raises(DrawingError, match="ended with SIGABRT"):
        pictures_apart({"bad": chart % r"\u001b"})


def test_it_can_be_drawn_where_the_project_is_found_by_the_scripts_own_path(tmp_path: Path) -> None:
    (tmp_path / "altair.py").write_text("raise SystemExit('a file of the folder that the process stands in')")
    script = (
        f"import sys; sys.path.insert(0, {str(HERE.parents[1])!r}); sys.path.insert(1, {str(HERE)!r})\n"
        "from test_page import history\n"
        "from mlflow_dynamics.report.drawing_process import render_apart\n"
        "assert len(render_apart(history(5).packed())) > 1\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    safe = [COLD, "-P", "-c", script]
    subprocess.run(safe, cwd=tmp_path, env=environment, timeout=300, check=True)


def test_no_interpreter_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", None)
    with pytest.raises(DrawingError, match="no Python interpreter"):
        render_apart(b"")
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(DrawingError, match="no process could be started"):
        render_apart(b"")


@pytest.mark.parametrize("program", SAID, ids=["aborts", "hangs", "garbage", "nothing", "too much", "a link"])
def test_whatever_becomes_of_it_the_run_ends_within_the_bound_and_says_so_once(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    drawing_with(program, tmp_path, monkeypatch)
    monkeypatch.setattr(live, "END_DRAWING_S", 2.0)
    run_id = train(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    assert mlflow.get_run(run_id).info.status == "FINISHED"
    assert mlflow.get_run(run_id).data.tags[names.TAG_DESCRIPTION].startswith(names.DESCRIPTION)
    assert {names.LAYERS, names.ACTIVATIONS} < files(run_id)
    assert names.REPORT not in files(run_id)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert SAID[program] in warning
    assert warning.endswith(f"Draw it with: mlflow-dynamics report {run_id}")


def test_a_process_whose_starter_is_gone_ends_by_itself(tmp_path: Path) -> None:
    # It is stopped in its input, as it would be in a renderer that hangs.
    command = "import sys; from mlflow_dynamics.report.drawing_process import main; main()"
    arguments = [sys.executable, "-c", command, "report", str(tmp_path), "0", "2"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE) as orphan:
        assert orphan.wait(60) == -signal.SIGALRM


SHOWN = st.characters(codec=None, exclude_characters=".")


@settings(
    max_examples=4, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.text(SHOWN, min_size=1, max_size=20), min_size=2, max_size=30, unique=True))
def test_layers_of_any_name_have_a_page_and_pictures(
    caplog: pytest.LogCaptureFixture, layer_names: list[str]
) -> None:
    # One of each Unicode category that has ended the renderer, or turns text around, beside what is drawn.
    model = nn.Sequential()
    for name in ["a\x1b", "b\ufffe", "c\u202e", "d\0", "e\udcff", *(f"_{name}" for name in layer_names)]:
        model.add_module(name, nn.Linear(4, 4))
    caplog.clear()
    run_id = train(model)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert {names.REPORT, *map(names.figure_path, ("overview", "exponents"))} <= files(run_id)


def test_a_training_has_its_page_before_its_end_and_loads_no_drawing_library(own_mlflow: Path) -> None:
    script = subprocess.run(
        [COLD, str(HERE / "drawn_training.py")],
        env=os.environ | {"PYTHONPATH": str(HERE.parents[1])},
        cwd=own_mlflow,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert script.returncode == 0, script.stderr
    assert script.stdout.splitlines()[-1] == "drawn without altair"


def test_drawing_loads_neither_torch_nor_mlflow() -> None:
    script = (
        "import sys; import mlflow_dynamics.report.artifacts; "
        "sys.exit(', '.join({'torch', 'mlflow', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([COLD, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
    assert (
        tuple(
            path.removeprefix(f"{names.FIGURES}/").removesuffix(".png")
            for path in render(history(12), pictures=True)
            if path != names.REPORT
        )
        == drawing_process.FIGURES
    )
