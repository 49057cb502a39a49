"""The examples run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from mlflow_dynamics.cli import main

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_a_finished_run_is_read_otherwise_and_again_as_it_was(tmp_path: Path) -> None:
    main(["train", "--epochs", "4", "--limit-train", "640", "--image-size", "8"])
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    run_id = run.info.run_id
    done = subprocess.run(
        [sys.executable, EXAMPLES / "compare_signals.py", run_id], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = {line[:35].strip(): line[35:].split() for line in done.stdout.splitlines()[1:]}
    assert len(rows) == 5
    over_steps = [float(value) for name, values in rows.items() if "steps" in name for value in values]
    assert all(0 < value < 2 for value in over_steps)

    done = subprocess.run(
        [sys.executable, "-m", "mlflow_dynamics.cli", "recompute", run_id, "--log", "again"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    metrics = mlflow.get_run(run_id).data.metrics
    own = {k.removeprefix("dynamics/"): v for k, v in metrics.items() if k.startswith("dynamics/")}
    again = {
        k.removeprefix("dynamics.again/"): v for k, v in metrics.items() if k.startswith("dynamics.again/")
    }
    assert again.keys() == own.keys() - {"details/convergence_signal", "details/convergence_score"}
    assert again == pytest.approx({key: own[key] for key in again}, abs=1e-9)


@pytest.mark.parametrize(
    ("example", "arguments"),
    [
        ("plain_loop.py", []),
        ("early_stopping.py", ["--epochs", "6"]),
        ("lightning_module.py", []),
        ("hugging_face_trainer.py", []),
    ],
)
def test_an_example_records_its_dynamics(example: str, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / example, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.status == "FINISHED"
    assert {"dynamics/integration", "dynamics/stability"} <= run.data.metrics.keys()


@pytest.mark.drawn
def test_two_optimizers_are_compared(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "compare_optimizers.py"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {
        line.split()[0]: [float(value) for value in line.split()[1:]]
        for line in done.stdout.splitlines()[2:4]
    }
    assert rows.keys() == {"adamw", "sgd"}
    assert all(value > 0 for values in rows.values() for value in values)
    page = (tmp_path / "optimizers.html").read_text()
    assert "4 runs." in page
    assert "trained once" not in page


@pytest.mark.drawn
def test_the_plain_loop_is_recorded_without_its_line(tmp_path: Path) -> None:
    script = (EXAMPLES / "plain_loop.py").read_text()
    bare = script.replace("import mlflow_dynamics\n", "").replace("mlflow_dynamics.autolog()\n", "")
    assert "mlflow_dynamics" not in bare.partition('"""')[2].partition('"""')[2]
    untouched = "import logging\nassert not logging.getLogger().handlers\n"
    (tmp_path / "train.py").write_text(bare + untouched)
    command = [sys.executable, "-m", "mlflow_dynamics.cli", "run", str(tmp_path / "train.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert {"train/loss", "validation/accuracy", "dynamics/stability"} <= run.data.metrics.keys()


def test_the_query_examples_make_their_own_runs_and_then_use_them(tmp_path: Path) -> None:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    for example, expected in (("query_runs.py", "adamw"), ("activations_sql.py", "Polars: the same")):
        command = [sys.executable, EXAMPLES / example]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        assert expected in done.stdout
    assert (tmp_path / "dynamics.png").read_bytes().startswith(b"\x89PNG")
    assert len(mlflow.search_runs(search_all_experiments=True, output_format="list")) == 2
