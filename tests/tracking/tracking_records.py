"""Records for the tracking tests, such as a session writes, and functions that read what MLflow has of them."""

from __future__ import annotations

import time

import mlflow
import numpy as np
from mlflow import MlflowClient

from mlflow_dynamics.records import EpochActivations, Layer, Measures
from mlflow_dynamics.tracking import RunWriter, names

STEPS = 20


def layers(count: int = 5) -> tuple[Layer, ...]:
    return tuple(
        Layer(
            index=i, name=f"block{i}.conv", type="Conv2d", output_shape=(16, 8, 8), parameters=144 * (i + 1)
        )
        for i in range(count)
    )


def activations(epoch: int, *, steps: int = STEPS, count: int = 5) -> EpochActivations:
    random = np.random.default_rng(epoch)
    return EpochActivations(
        epoch=epoch,
        step=np.arange(epoch * steps, (epoch + 1) * steps, dtype=np.int32),
        mean=random.normal(size=(count, steps)).astype(np.float32),
        std=random.random((count, steps)).astype(np.float32),
        layers=layers(count),
    )


def measures(epoch: int, count: int = 5) -> Measures:
    return Measures(
        integration=1.0 + epoch / 1000,
        synchrony=0.5,
        metastability=0.1,
        metastability_ratio=1.1,
        stability=float("nan"),
        layers_dropped=0,
        exponents=np.linspace(0.5, 1.5, count),
        phase_coherence=np.linspace(-1, 1, count),
    )


def write_epoch(writer: RunWriter, epoch: int) -> None:
    """An epoch whose train/loss is 1 / (epoch + 1)."""
    metrics = {names.TRAIN_LOSS: 1 / (epoch + 1), **names.measure_metrics(measures(epoch))}
    writer.write_epoch(epoch, activations(epoch), metrics, measures(epoch), int(time.time() * 1000))


def client_at(uri: str) -> MlflowClient:
    """A client that reads artifacts too: before MLflow 3 it looks for them at the script's own tracking URI alone."""
    mlflow.set_tracking_uri(uri)
    return MlflowClient(uri)


def assert_complete(uri: str, run_id: str, epochs: int) -> None:
    """Every epoch is in MLflow once, with each metric and both of its files."""
    client = client_at(uri)
    for key, value in (
        (names.TRAIN_LOSS, lambda e: 1 / (e + 1)),
        (names.INTEGRATION, lambda e: 1 + e / 1000),
    ):
        history = client.get_metric_history(run_id, key)
        assert [metric.step for metric in sorted(history, key=lambda m: m.step)] == list(range(epochs))
        assert all(metric.value == value(metric.step) for metric in history)
    for root in (names.ACTIVATIONS, names.LAYER_MEASURES):
        found = sorted(file.path for file in client.list_artifacts(run_id, root))
        assert found == sorted(f"{root}/epoch={epoch}" for epoch in range(epochs))
