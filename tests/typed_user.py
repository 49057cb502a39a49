"""A small script of a user's, with everything that README shows, to be checked by `tests/test_users_code.py`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import mlflow_dynamics
from mlflow_dynamics import (
    ConvergenceMonitor,
    MeasureConfig,
    RecordingConfig,
    Schedule,
    Tracker,
    Verdict,
    WarningConfig,
    errors,
    measures,
)


def settings(epochs: int) -> WarningConfig:
    schedule = Schedule(name="cosine", planned_epochs=epochs, drop_epochs=(3,))
    return WarningConfig(mode="stop", detector="volatility", schedule=schedule, stop_before_last_phase=True)


def train(model: nn.Module, epochs: int) -> str | None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with mlflow_dynamics.track(
        model,
        optimizer=optimizer,
        recording=RecordingConfig(record_every=2, include=("Linear",)),
        measures=MeasureConfig(signal="rms", protocol="steps", estimator="dfa"),
        warning=settings(epochs),
        tracking_uri="sqlite:///mlflow.db",
        on_sigterm="end",
    ) as tracker:
        return run(model, tracker, epochs)


def run(model: nn.Module, tracker: Tracker, epochs: int) -> str | None:
    for _ in range(epochs):
        loss = model(torch.ones(1, 3)).sum()
        tracker.end_epoch({"train/loss": loss}, accuracy=0.5)
        if tracker.should_stop():
            break
    return tracker.run_id


def automatically() -> None:
    mlflow_dynamics.autolog(silent=True, exclusive=False, extra_tags={"team": "vision"}, warning=settings(3))
    mlflow_dynamics.autolog(disable=True)


def look(run_id: str) -> float:
    try:
        runs = mlflow_dynamics.search_runs(
            experiment_names=["Default"], filter_string="", order_by=["metrics.loss"], max_results=3
        )
        frame = mlflow_dynamics.load_metrics([run_id], params=["lr"])
        # pyarrow has no types of its own.
        table = mlflow_dynamics.load_activations(run_id, epochs=range(5))  # pyright: ignore
    except errors.TrackingError as error:
        print(error)
        return 0.0
    print(len(runs), len(frame), table.num_rows)  # pyright: ignore
    verdicts: list[Verdict] = [one.verdict for one in mlflow_dynamics.watch(run_id, stop=True, poll_s=1.0)]
    sent: list[int] = [one.sent for one in mlflow_dynamics.sync(Path("spool"))]
    again = [epoch.measures.integration for epoch in mlflow_dynamics.recompute(run_id, MeasureConfig())]
    monitor = ConvergenceMonitor(settings(3))
    verdict = monitor.update(0, 0.5)
    noise = [[0.0, 1.0, 0.5], [1.0, 0.0, 0.5]]
    print(verdicts, sent, verdict.message, measures.hurst(noise, estimator="hk"))
    return sum(again) + float(measures.integration(noise, estimator="dfa"))
