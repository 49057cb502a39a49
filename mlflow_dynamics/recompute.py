"""A recorded run measured anew: another protocol, window, signal or estimator needs no new training."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Final

import mlflow
import numpy as np
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import MAX_METRICS_PER_BATCH

from mlflow_dynamics.config import MeasureConfig
from mlflow_dynamics.errors import ConfigError, TrackingError
from mlflow_dynamics.measures import SignalWindow, volatility
from mlflow_dynamics.records import Measures
from mlflow_dynamics.tracking import names
from mlflow_dynamics.tracking.replay import recorded_epochs
from mlflow_dynamics.tracking.store import reason_of

_READ: Final[dict[str, Callable[[str], Any]]] = {
    "window": int,
    "volatility_window": int,
    "uncertainty": lambda text: text == "True",
}
_NAME: Final = re.compile(r"^[A-Za-z0-9_-]{1,50}$")


@dataclass(frozen=True, kw_only=True)
class RecomputedEpoch:
    """One epoch's measures under another reading; volatility is that of stability up to this epoch."""

    epoch: int
    measures: Measures
    volatility: float
    timestamp_ms: int

    def as_metrics(self) -> dict[str, float]:
        """The defined ones under their metric keys."""
        metrics = names.measure_metrics(self.measures)
        if not np.isnan(self.volatility):
            metrics[names.VOLATILITY] = self.volatility
        return metrics


def settings_of(run_id: str) -> MeasureConfig:
    """How the run itself was measured, from its parameters; the defaults where it does not say.

    Raises:
        TrackingError: the run does not exist, or its parameters are not ours.
    """
    try:
        parameters = mlflow.MlflowClient().get_run(run_id).data.params
    except MlflowException as error:
        raise TrackingError(f"Run {run_id!r} cannot be read: {reason_of(error)}") from error
    values: dict[str, Any] = {}
    for field in fields(MeasureConfig):
        text = parameters.get(f"dynamics/{field.name}")
        if text is not None:
            try:
                values[field.name] = _READ.get(field.name, str)(text)
            except ValueError as error:
                raise TrackingError(
                    f"Run {run_id!r} says dynamics/{field.name}={text!r}, which mlflow_dynamics does not write."
                ) from error
    return MeasureConfig(**values)


def recompute(run_id: str, config: MeasureConfig) -> Iterator[RecomputedEpoch]:
    """The measures of every recorded epoch of a run as `config` reads it, one window in memory at a time.

    With the settings the run was recorded with these are the run's own numbers.

    Raises:
        TrackingError: the run does not exist or holds no activations.
        DataError: a file of it is damaged.
    """
    window = SignalWindow(config)
    stability: list[float] = []
    for recorded in recorded_epochs(run_id):
        window.append(recorded.activations)
        measures = window.measure()
        stability.append(measures.stability)
        yield RecomputedEpoch(
            epoch=recorded.activations.epoch,
            measures=measures,
            volatility=volatility(np.array(stability), window=config.volatility_window),
            timestamp_ms=recorded.timestamp_ms,
        )


def log_recomputed(run_id: str, epochs: Iterable[RecomputedEpoch], *, name: str) -> None:
    """Log recomputed measures beside the originals, as `dynamics.NAME/integration` and so on.

    Raises:
        ConfigError: `name` is not one that can be part of a metric key.
    """
    if not _NAME.match(name):
        raise ConfigError(f"name={name!r} must be 1 to 50 letters, digits, '_' or '-'.")
    prefix = f"dynamics.{name}/"
    if any(key.startswith(prefix) for key in mlflow.MlflowClient().get_run(run_id).data.metrics):
        raise ConfigError(f"name={name!r} is taken: run {run_id!r} has metrics under {prefix}; give another.")
    points = [
        Metric(f"{prefix}{key.removeprefix('dynamics/')}", value, epoch.timestamp_ms, epoch.epoch)
        for epoch in epochs
        for key, value in epoch.as_metrics().items()
    ]
    for start in range(0, len(points), MAX_METRICS_PER_BATCH):
        mlflow.MlflowClient().log_batch(run_id, metrics=points[start : start + MAX_METRICS_PER_BATCH])
