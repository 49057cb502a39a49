"""The pipeline, which computes an epoch's measures, volatility and verdict from its record, live and in retrospect."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlflow_dynamics.config import MeasureConfig
from mlflow_dynamics.convergence import ConvergenceMonitor, Verdict
from mlflow_dynamics.measures import SignalWindow, order_parameter
from mlflow_dynamics.measures.repetition import Repetition
from mlflow_dynamics.measures.windows import volatility_of
from mlflow_dynamics.records import EpochRecord, Measures
from mlflow_dynamics.tracking import names


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """The results of one epoch.

    Attributes:
        epoch: the epoch's number, from 0.
        measures: the measures of the window that ends with the epoch.
        volatility: the volatility of stability up to the epoch; NaN if it is not defined.
        verdict: the verdict of the early warning; None if the warning is off.
        timestamp_ms: when the epoch ended, in milliseconds since 1970.
    """

    epoch: int
    measures: Measures
    volatility: float
    verdict: Verdict | None
    timestamp_ms: int

    def as_metrics(self) -> dict[str, float]:
        """Return the results that are defined, by metric key."""
        metrics = names.measure_metrics(self.measures)
        if math.isfinite(self.volatility):
            metrics[names.VOLATILITY] = self.volatility
        if self.verdict is not None:
            metrics[names.CONVERGENCE_SIGNAL] = float(self.verdict.signal)
            if math.isfinite(self.verdict.score):
                metrics[names.CONVERGENCE_SCORE] = self.verdict.score
        return metrics


class Pipeline:
    """Takes a training's epochs in order, and holds one window of them, at least one epoch, in memory.

    Args:
        measures: how the epochs are measured.
        monitor: judges the epochs; None if they are not judged.
    """

    def __init__(self, measures: MeasureConfig, monitor: ConvergenceMonitor | None = None) -> None:
        self._monitor = monitor
        self._config = measures
        self._window = SignalWindow(measures)
        self._recent: deque[Measures] = deque(maxlen=measures.volatility_window)
        self._repetition = Repetition()

    def update(self, record: EpochRecord) -> EpochResult:
        """Take in the next epoch and return its results."""
        monitor = self._monitor
        self._window.append(record.activations)
        self._repetition.append(record.activations)
        measures = self._window.measure()
        self._recent.append(measures)
        found = {names.STABILITY: measures.stability, names.START_UP: float(measures.start_up)}
        return EpochResult(
            epoch=record.epoch,
            measures=measures,
            volatility=volatility_of(list(self._recent), window=self._config.volatility_window),
            verdict=None if monitor is None else judge(monitor, record.epoch, {**record.metrics, **found}),
            timestamp_ms=record.timestamp_ms,
        )

    @property
    def same_order(self) -> bool:
        """Whether the layers repeat themselves so that the data surely come in the same order each epoch."""
        return self._repetition.same_order

    def order(self) -> NDArray[np.float64]:
        """Return the order parameter (steps,) over the last epoch's window; empty if it is not defined."""
        signals = self._window.signals()
        if 0 in signals.shape:
            return np.empty(0)
        order = order_parameter(signals)
        return order[np.isfinite(order)]


def judge(monitor: ConvergenceMonitor, epoch: int, metrics: Mapping[str, float]) -> Verdict:
    """Return the verdict after an epoch, from the epoch's metrics by key.

    A loss of NaN means divergence. A missing loss has no effect.
    """
    return monitor.update(
        epoch,
        metrics.get(names.STABILITY, math.nan),
        loss=metrics.get(names.TRAIN_LOSS),
        learning_rate=metrics.get(names.LEARNING_RATE),
        start_up=metrics.get(names.START_UP) == 1.0,
    )
