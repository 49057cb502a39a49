"""An experiment for each test, and `autolog` always switched off afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def experiment(own_mlflow: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """An experiment of its own for each test; its name."""
    from mlflow_dynamics import autolog

    name = request.node.name.replace("[", " ").replace("]", "")
    mlflow.set_experiment(name)
    yield name
    autolog(disable=True)


@pytest.fixture
def autologged(experiment: str) -> Iterator[None]:
    """`autolog` switched on from the start, and no run left active."""
    from mlflow_dynamics import autolog

    autolog()
    yield
    autolog(disable=True)
    while mlflow.active_run() is not None:
        mlflow.end_run()
