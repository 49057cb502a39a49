"""Reads a recorded run epoch by epoch, for a training that carries the run on and for measuring the run anew."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pyarrow as pa
from mlflow.entities import Run

from mlflow_dynamics.errors import TrackingError
from mlflow_dynamics.records import EpochRecord, Layer
from mlflow_dynamics.tracking import names
from mlflow_dynamics.tracking.artifacts import download, list_folder
from mlflow_dynamics.tracking.parquet import read_activations, read_layers
from mlflow_dynamics.tracking.store import connect_to_read_runs, reading, run_of

_OWN = (f"{names.ARTIFACT_ROOT}/", names.MACHINE_LOAD)


def recorded_layers(run: Run, *, tracking_uri: str | None = None) -> tuple[Layer, ...]:
    """Read the layers of a run; raises as `recorded_epochs` does."""
    return read_layers(pa.BufferReader(download(run, names.LAYERS, tracking_uri=tracking_uri)))


def recorded_epochs(run_id: str, *, tracking_uri: str | None = None) -> Iterator[EpochRecord]:
    """Yield the epochs of a run in order, one in memory at a time.

    Args:
        run_id: the run's id.
        tracking_uri: the store that holds the run; None is MLflow's own.

    Raises:
        TrackingError: the run does not exist, holds no activations or cannot be read.
        DataError: a file is damaged or not ours.
    """
    metrics: dict[int, dict[str, float]] = {}
    timestamps: dict[int, int] = {}
    with reading(f"Run {run_id!r}"):
        store = connect_to_read_runs(run_id, tracking_uri or mlflow.get_tracking_uri())
        run = run_of(store, run_id)
        for key in run.data.metrics:
            if not key.startswith(_OWN):
                for point in store.get_metric_history(run_id, key):
                    metrics.setdefault(point.step, {})[key] = point.value
                    timestamps[point.step] = point.timestamp
    files = {
        names.epoch_of(file.path): file.path
        for partition in list_folder(run, names.ACTIVATIONS, tracking_uri=tracking_uri)
        if partition.is_dir
        for file in list_folder(run, partition.path, tracking_uri=tracking_uri)
    }
    if not files:
        raise TrackingError(f"Run {run_id!r} holds no activations under {names.ACTIVATIONS}.")
    layers = recorded_layers(run, tracking_uri=tracking_uri)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.parquet"
        for epoch in sorted(files):
            path.write_bytes(download(run, files[epoch], tracking_uri=tracking_uri))
            yield EpochRecord(
                activations=read_activations(path, layers),
                metrics=metrics.get(epoch, {}),
                timestamp_ms=timestamps.get(epoch, run.info.start_time),
            )
