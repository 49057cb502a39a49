"""Watching a run: live, asked to stop, and looked back at."""

from __future__ import annotations

import threading
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow.entities import Run
from torch import nn

import mlflow_dynamics
from mlflow_dynamics.config import MeasureConfig
from mlflow_dynamics.convergence import Schedule, WarningConfig
from mlflow_dynamics.errors import ConfigError, TrackingError
from mlflow_dynamics.tracking import names
from mlflow_dynamics.watching import WatchedEpoch, watch

EPOCHS = 60


def settling(model: nn.Linear, epoch: int, rng: np.random.Generator, *, steps: int = 64) -> None:
    """Steps whose inputs wander at first and are noise later, so that stability first varies and then does not."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    wander = rng.uniform(0, 1.0 if epoch < EPOCHS // 3 else 0.05)
    scale = np.abs(1 + 0.05 * (rng.normal(size=steps) + wander * rng.normal(size=steps).cumsum()))
    for s in scale:
        inputs = torch.from_numpy(s * np.ones((4, 3), np.float32)).float()
        optimizer.zero_grad()
        model(inputs).sum().backward()
        optimizer.step()


def train(*, epochs: int = EPOCHS, mode: str = "warn", on_epoch: object = None) -> int:
    """Train in the active run; the epochs that were trained."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with mlflow_dynamics.track(
        model,
        measures=MeasureConfig(window=64),
        warning=WarningConfig(mode=mode, schedule=Schedule(planned_epochs=epochs)),
    ) as tracker:
        for epoch in range(epochs):
            settling(model, epoch, rng)
            tracker.end_epoch(**{"train/loss": 1.0 / (epoch + 1)})
            tracker.wait(epoch)
            if callable(on_epoch):
                on_epoch(epoch)
            if tracker.should_stop():
                return epoch + 1
    return epochs


def finished(run: mlflow.ActiveRun) -> Run:
    return mlflow.get_run(run.info.run_id)


def signals(run_id: str) -> list[int]:
    frame = mlflow_dynamics.load_metrics([run_id])
    return frame[names.CONVERGENCE_SIGNAL].astype(int).to_list()


def test_looking_back_gives_the_verdicts_of_the_live_run(own_mlflow: Path) -> None:
    with mlflow.start_run() as run:
        train()
    watched = list(watch(run.info.run_id))
    assert [epoch.verdict.epoch for epoch in watched] == list(range(EPOCHS))
    assert [epoch.verdict.signal for epoch in watched] == signals(run.info.run_id)
    assert 1 in signals(run.info.run_id), "the series is made so that the warning fires"
    scores = mlflow_dynamics.load_metrics([run.info.run_id])[names.CONVERGENCE_SCORE]
    np.testing.assert_allclose([epoch.verdict.score for epoch in watched], scores)
    first = next(epoch.verdict.epoch for epoch in watched if epoch.verdict.signal)
    assert finished(run).data.tags[names.TAG_CONVERGED_EPOCH] == str(first)
    assert names.TAG_STOP_REQUESTED not in finished(run).data.tags


def test_stop_ends_the_training_at_the_signal(own_mlflow: Path) -> None:
    with mlflow.start_run() as run:
        trained = train(mode="stop")
    done = finished(run)
    assert trained < EPOCHS
    assert done.info.status == "FINISHED"
    assert done.data.tags[names.TAG_STOPPED_EARLY] == "true"
    assert trained == int(done.data.tags[names.TAG_CONVERGED_EPOCH]) + 1


def test_a_live_run_that_records_no_warning_is_watched_and_asked_to_stop(own_mlflow: Path) -> None:
    seen: list[WatchedEpoch] = []
    with mlflow.start_run() as run:
        uri = mlflow.get_tracking_uri()

        def follow() -> None:
            mlflow.set_tracking_uri(uri)
            seen.extend(watch(run.info.run_id, stop=True, poll_s=0.05))

        watcher = threading.Thread(target=follow)
        watcher.start()
        trained = train(epochs=1_000, mode="off")
    watcher.join(60)
    tags = finished(run).data.tags
    assert not watcher.is_alive()
    assert trained < 1_000
    assert tags[names.TAG_STOPPED_EARLY] == "true"
    converged = int(tags[names.TAG_CONVERGED_EPOCH])
    assert converged <= int(tags[names.TAG_STOP_REQUESTED]) < trained
    assert [epoch.verdict.epoch for epoch in seen] == list(range(trained))


def test_a_request_from_outside_is_obeyed_at_the_next_epoch(own_mlflow: Path) -> None:
    with mlflow.start_run() as run:

        def ask(epoch: int) -> None:
            if epoch == 3:
                mlflow.MlflowClient().set_tag(run.info.run_id, names.TAG_STOP_REQUESTED, "3")

        trained = train(on_epoch=ask)
    assert 4 <= trained <= 8
    assert finished(run).data.tags[names.TAG_STOPPED_EARLY] == "true"


def test_what_cannot_be_watched_is_said_in_one_sentence(own_mlflow: Path) -> None:
    with pytest.raises(TrackingError, match="There is no run 'deadbeef'"):
        list(watch("deadbeef"))
    with mlflow.start_run() as run:
        mlflow.log_metric("train/loss", 1.0, step=0)
    with pytest.raises(TrackingError, match="has ended and holds no dynamics/stability"):
        list(watch(run.info.run_id))
    with pytest.raises(ConfigError, match="poll=0 must be a number of seconds above 0"):
        list(watch(run.info.run_id, poll_s=0))
