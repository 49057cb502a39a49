"""What importing the package promises: its names, and that nothing heavy comes with them."""

from __future__ import annotations

import subprocess

import pytest
from warm_python import COLD

import mlflow_dynamics

HEAVY = ("torch", "mlflow", "pandas", "pyarrow", "scipy", "numpy")


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(*sys.modules)"
    done = subprocess.run([COLD, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_public_names_are_pinned() -> None:
    assert mlflow_dynamics.__all__ == [
        "ConvergenceMonitor",
        "Event",
        "MeasureConfig",
        "RecordingConfig",
        "Schedule",
        "Tracker",
        "Verdict",
        "WarningConfig",
        "autolog",
        "errors",
        "load_activations",
        "load_metrics",
        "measures",
        "recompute",
        "search_runs",
        "sync",
        "track",
        "watch",
    ]


@pytest.mark.parametrize("name", mlflow_dynamics.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(mlflow_dynamics, name).__name__.rpartition(".")[2] == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'autologg'"):
        _ = mlflow_dynamics.autologg


@pytest.mark.parametrize("module", ["mlflow_dynamics", "mlflow_dynamics.cli"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    assert modules_after(f"import {module}").isdisjoint(HEAVY)


def test_recording_imports_nothing_of_the_extras_and_no_compiler() -> None:
    loaded = modules_after(
        "import torch, mlflow_dynamics\n"
        "mlflow_dynamics.autolog()\n"
        "mlflow_dynamics.track(torch.nn.Linear(2, 2)).close()\n"
        "mlflow_dynamics.autolog(disable=True)"
    )
    # Torch's own optimizers import dynamo too, and here is none.
    assert loaded.isdisjoint({"torchvision", "timm", "altair", "vl_convert", "torch._dynamo"})
    assert {"mlflow_dynamics.autologging", "mlflow_dynamics.recording.recorder"} <= loaded


def test_a_script_that_trains_nothing_waits_for_nothing_that_only_a_training_needs() -> None:
    loaded = modules_after("import mlflow_dynamics\nmlflow_dynamics.autolog()")
    assert "mlflow_dynamics.recording.recorder" in loaded
    assert loaded.isdisjoint(
        {"sympy", "sqlalchemy", "altair", "torch._dynamo", "mlflow.store.tracking.sqlalchemy_store"}
    )


def test_the_test_above_can_fail() -> None:
    assert not modules_after("import mlflow_dynamics; mlflow_dynamics.measures").isdisjoint(HEAVY)


def test_the_measures_need_neither_torch_nor_a_store() -> None:
    loaded = modules_after("import mlflow_dynamics.measures, mlflow_dynamics.convergence")
    assert loaded.isdisjoint({"torch", "mlflow", "pandas", "pyarrow"})
