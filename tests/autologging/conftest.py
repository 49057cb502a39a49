"""One MLflow store for all tests here, and `autolog` always switched off afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("mlflow")
    return f"sqlite:///{folder / 'mlflow.db'}"


@pytest.fixture(autouse=True)
def experiment(
    store: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """An experiment of its own for each test; its name."""
    from mlflow_dynamics import autolog

    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(store)
    name = request.node.name.replace("[", " ").replace("]", "")
    mlflow.create_experiment(name, artifact_location=(tmp_path / "artifacts").as_uri())
    mlflow.set_experiment(name)
    yield name
    autolog(disable=True)
    while mlflow.active_run() is not None:
        mlflow.end_run()
