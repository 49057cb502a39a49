"""Fixtures of the tracking tests: a working folder and an active run for each test, and the losses of its training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from faulty_training import EPOCHS, loader, network, train
from lies import LOGIN
from tracking_server import Asked, FaultyProxy, Lie


@pytest.fixture(scope="session")
def untracked() -> list[float]:
    """The losses of `faulty_training` without this project."""
    return train(network(), loader(), epochs=EPOCHS)


@pytest.fixture(autouse=True)
def own_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Each test has its own working folder, tracking URI and active run."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_DYNAMICS_SPOOL", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    before = mlflow.get_tracking_uri()
    yield tmp_path
    mlflow.set_tracking_uri(before)


@pytest.fixture
def elsewhere() -> Iterator[tuple[FaultyProxy, list[Asked]]]:
    """Another server, which takes everything with a page, and what it was asked."""
    seen: list[Asked] = []
    running = FaultyProxy(1)

    def answer(asked: Asked) -> Lie:
        seen.append(asked)
        return LOGIN

    running.lies = answer
    yield running, seen
    running.close()
