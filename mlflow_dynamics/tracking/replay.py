"""A recorded run read back epoch by epoch, for a training that carries it on and for measuring it anew."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_dynamics.errors import TrackingError
from mlflow_dynamics.records import EpochActivations
from mlflow_dynamics.tracking import names
from mlflow_dynamics.tracking.parquet import read_activations, read_layers
from mlflow_dynamics.tracking.store import download, list_folder, reason_of

_OWN = (f"{names.ARTIFACT_ROOT}/", "system/")


@dataclass(frozen=True, kw_only=True)
class RecordedEpoch:
    """One epoch of an earlier run.

    Attributes:
        activations: what was recorded.
        metrics: what the user logged in it, without measures (they follow from the activations).
        timestamp_ms: when it ended.
    """

    activations: EpochActivations
    metrics: dict[str, float]
    timestamp_ms: int


def recorded_epochs(run_id: str) -> Iterator[RecordedEpoch]:
    """The epochs of a run in order, one in memory at a time.

    Raises:
        TrackingError: the run does not exist, holds no activations or cannot be read.
        DataError: a file is damaged or not ours.
    """
    client = MlflowClient()
    metrics: dict[int, dict[str, float]] = {}
    timestamps: dict[int, int] = {}
    try:
        run = client.get_run(run_id)
        for key in run.data.metrics:
            if not key.startswith(_OWN):
                for point in client.get_metric_history(run_id, key):
                    metrics.setdefault(point.step, {})[key] = point.value
                    timestamps[point.step] = point.timestamp
    except MlflowException as error:
        raise TrackingError(f"Run {run_id!r} cannot be read: {reason_of(error)}") from error
    files = sorted(
        file.path
        for partition in list_folder(run, names.ACTIVATIONS)
        for file in list_folder(run, partition.path)
    )
    if not files:
        raise TrackingError(f"Run {run_id!r} holds no activations under {names.ACTIVATIONS}.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.parquet"
        path.write_bytes(download(run, names.LAYERS))
        layers = read_layers(path)
        for file in files:
            path.write_bytes(download(run, file))
            epoch = names.epoch_of(file)
            yield RecordedEpoch(
                activations=read_activations(path, layers),
                metrics=metrics.get(epoch, {}),
                timestamp_ms=timestamps.get(epoch, run.info.start_time),
            )
