"""What users' scripts and editors hold on to: complete types, MLflow's own names for what MLflow has, old names."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import mlflow
import numpy as np
import pytest
from torch import nn

import mlflow_dynamics
from mlflow_dynamics.errors import ConfigError
from mlflow_dynamics.measures import hurst

ROOT = Path(__file__).parents[1]
SCRIPT = Path(__file__).parent / "typed_user.py"

WRONG = """
import mlflow_dynamics

mlflow_dynamics.autolog(silent="yes")
stopped: str = mlflow_dynamics.track(model=None).should_stop()
mlflow_dynamics.search_runs(experiment="Default")
"""
"""Three errors, which a checker that sees no types would not find."""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with a script that is right and one that is wrong."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "right.py").write_text(SCRIPT.read_text())
    (folder / "wrong.py").write_text(WRONG)
    return folder


def errors_by_script(folder: Path, command: list[str], line: str) -> dict[str, set[int]]:
    """Script -> the lines in which a type checker finds errors, which it tells as the pattern `line`."""
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *command, "right.py", "wrong.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    found: dict[str, set[int]] = {"right.py": set(), "wrong.py": set()}
    for script, number in re.findall(line, done.stdout):
        found[script].add(int(number))
    return found


EXPECTED = {"right.py": set(), "wrong.py": {4, 5, 6}}


@pytest.mark.slow  # without mypy's cache, which a fresh clone lacks, it takes minutes
def test_a_users_script_is_complete_under_mypy_strict(scripts: Path) -> None:
    command = ["mypy", "--strict", "--follow-imports=silent", "--config-file=", "--cache-dir"]
    cache = str(ROOT / ".mypy_cache" / "users")
    assert errors_by_script(scripts, [*command, cache], r"(\w+\.py):(\d+): error:") == EXPECTED


def test_a_users_script_is_complete_under_pyright_strict(scripts: Path) -> None:
    strict = {"typeCheckingMode": "strict", "extraPaths": [str(ROOT)]}
    (scripts / "pyrightconfig.json").write_text(json.dumps(strict))
    command = ["basedpyright", "--pythonpath", sys.executable]
    assert errors_by_script(scripts, command, r"(\w+\.py):(\d+):\d+ - error:") == EXPECTED


def test_the_package_says_that_it_has_types() -> None:
    assert (Path(mlflow_dynamics.__file__).parent / "py.typed").read_bytes() == b""


def parameters(function: object) -> dict[str, object]:
    return {name: one.default for name, one in inspect.signature(function).parameters.items()}  # type: ignore[arg-type]


def test_autolog_has_the_arguments_of_mlflows_autolog_that_it_honours() -> None:
    ours, theirs = parameters(mlflow_dynamics.autolog), parameters(mlflow.pytorch.autolog)
    shared = ["log_every_n_epoch", "disable", "exclusive", "silent", "extra_tags"]
    assert [name for name in ours if name in theirs] == shared
    assert [name for name in theirs if name in ours] == shared
    assert all(ours[name] == theirs[name] for name in shared)


def test_search_runs_has_the_arguments_of_mlflows() -> None:
    assert set(parameters(mlflow_dynamics.search_runs)) <= set(parameters(mlflow.search_runs))


def test_what_track_is_told_of_the_warning_autolog_is_told_too() -> None:
    ours, theirs = parameters(mlflow_dynamics.autolog), parameters(mlflow_dynamics.track)
    assert {"recording", "measures", "warning", "log_every_n_epoch", "on_sigterm"} <= set(ours) & set(theirs)


def test_names_that_changed_are_taken_and_the_new_one_is_said() -> None:
    noise = np.random.default_rng(0).normal(size=512)
    said = r"^hurst\(method=\.\.\.\) is deprecated and goes with mlflow_dynamics 0\.3\.0; write estimator=\.$"
    with pytest.warns(FutureWarning, match=said) as shown:
        assert hurst(noise, method="hk") == hurst(noise, estimator="hk")  # type: ignore[call-arg]
    assert shown[0].filename == __file__
    with pytest.raises(ConfigError, match="give estimator= alone"):
        hurst(noise, method="hk", estimator="hk")  # type: ignore[call-arg]
    for ask in (mlflow_dynamics.search_runs, mlflow_dynamics.load_metrics):
        with pytest.warns(FutureWarning, match="write experiment_names="):
            assert ask(experiment="Default").empty  # type: ignore[call-arg]


def test_the_old_module_of_recompute_is_importable_and_does_not_hide_the_function() -> None:
    code = (
        "import mlflow_dynamics\n"
        "from mlflow_dynamics.recompute import recompute, settings_of\n"
        "try:\n    mlflow_dynamics.recompute('no such run', None)\n"
        "except mlflow_dynamics.errors.ConfigError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("config=None must be a mlflow_dynamics.MeasureConfig.")
    assert "<string>:2: FutureWarning: The module mlflow_dynamics.recompute is deprecated" in done.stderr


def test_should_stop_without_parentheses_asks_and_warns() -> None:
    with mlflow_dynamics.track(nn.Sequential(nn.Linear(3, 3))) as tracker:
        tracker.end_epoch()
        with pytest.warns(FutureWarning, match=r"write tracker\.should_stop\(\)\.$") as shown:
            assert not tracker.should_stop
        assert shown[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert tracker.should_stop() is False
