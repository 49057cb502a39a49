"""Measures a recorded run anew. Another protocol, window, signal or estimator needs no new training."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

import mlflow
from mlflow.entities import Metric, Run
from mlflow.utils.validation import MAX_METRICS_PER_BATCH

from mlflow_dynamics.checks import check_instance
from mlflow_dynamics.config import MeasureConfig
from mlflow_dynamics.errors import ConfigError, TrackingError
from mlflow_dynamics.pipeline import EpochResult, Pipeline
from mlflow_dynamics.tracking.recorded_epochs import recorded_epochs
from mlflow_dynamics.tracking.settings import measures_in
from mlflow_dynamics.tracking.store import connect_to_read, connect_to_read_runs, reading, reason_of, run_of
from mlflow_dynamics.tracking.sync import STORE_ERRORS

_NAME: Final = re.compile(r"^[A-Za-z0-9_-]{1,50}$")


def settings_of(run_id: str) -> MeasureConfig:
    """Return the settings with which the run was measured. A setting that the run does not name has its default.

    Raises:
        TrackingError: the run cannot be read, or its parameters were not written by mlflow_dynamics.
    """
    return measures_in(run_id, _run(run_id).data.params)


def recompute(run_id: str, config: MeasureConfig) -> Iterator[EpochResult]:
    """Measure every recorded epoch of a run with the settings in `config`, with one window in memory at a time.

    The settings of the run itself (`settings_of`) give the run's own numbers.

    Raises:
        TrackingError: the run does not exist, holds no activations or cannot be read.
        DataError: a file of the run is damaged.
        ConfigError: `config` is not a MeasureConfig.
    """
    check_instance("config", config, MeasureConfig, "a mlflow_dynamics.MeasureConfig")
    return map(Pipeline(config).update, recorded_epochs(run_id))


def log_recomputed(run_id: str, epochs: Iterable[EpochResult], *, name: str) -> None:
    """Log recomputed measures beside the originals, as `dynamics.NAME/integration` and so on.

    Raises:
        ConfigError: `name` cannot be part of a metric key, or the run has metrics of this name already.
        TrackingError: the run cannot be read or written.
    """
    if not _NAME.match(name):
        raise ConfigError(f"name={name!r} must be 1 to 50 letters, digits, '_' or '-'.")
    prefix = f"dynamics.{name}/"
    if any(key.startswith(prefix) for key in _run(run_id).data.metrics):
        raise ConfigError(f"name={name!r} is taken: run {run_id!r} has metrics under {prefix}; give another.")
    points = [
        Metric(f"{prefix}{key.removeprefix('dynamics/')}", value, epoch.timestamp_ms, epoch.epoch)
        for epoch in epochs
        for key, value in epoch.as_metrics().items()
    ]
    try:
        store = connect_to_read(mlflow.get_tracking_uri())
        for start in range(0, len(points), MAX_METRICS_PER_BATCH):
            store.log_batch(run_id, points[start : start + MAX_METRICS_PER_BATCH], [], [])
    except STORE_ERRORS as error:
        raise TrackingError(f"Run {run_id!r} cannot be written: {reason_of(error)}") from error


def _run(run_id: str) -> Run:
    with reading(f"Run {run_id!r:.100}"):
        return run_of(connect_to_read_runs(run_id, mlflow.get_tracking_uri()), run_id)
