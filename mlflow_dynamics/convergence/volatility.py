"""The detector `volatility`: is the stability index changing less and less from epoch to epoch?"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlflow_dynamics.convergence.detectors import Reading

MIN_DIFFERENCES: Final = 16
"""Below so many differences between adjacent epochs nothing is said: a trend of fewer is noise."""

SOFTENING: Final = 1.0
"""Bounds the pull of tiny differences: the score of a difference d of median size s is log(d^2/s^2 + SOFTENING)."""

BOUNDARY_EXPONENT: Final = 0.4
"""The threshold falls with time as n^-0.4, so that the permitted false alarms are not all spent at the start."""

TABLE: Final = "thresholds.json"


def trend_statistic(differences: ArrayLike) -> NDArray[np.float64]:
    """How surely the size of the differences falls with time: (draws, n) -> (draws,), in standard deviations.

    Positive when it falls, negative when it rises. With s = median |d| and g_i = log(d_i^2/s^2 + 1):
    minus the least-squares covariance of g with time, over its standard deviation under no trend,
    sqrt(sum (t - mean t)^2 * var(g) * (1 + 2 r)), where r is the lag-1 correlation of g clipped to [0, 0.5]
    (differences of white noise are correlated, those of a random walk are not; without r each kind would need
    its own threshold). It does not change when S is shifted, scaled, or the series is turned over.
    A series without any change has no trend: 0.

    This is Engle's ARCH idea of testing squared innovations (doi 10.2307/1912773) with a score bounded from
    below and logarithmic above, so that neither tiny differences nor heavy tails decide.

    Args:
        differences: (draws, n) finite differences of S between adjacent epochs, in order, n >= 2.
    """
    size = np.abs(np.asarray(differences, dtype=np.float64))
    n = size.shape[1]
    score = np.log((size / _typical(size)) ** 2 + SOFTENING)
    score -= score.mean(axis=1, keepdims=True)
    energy = np.einsum("ij,ij->i", score, score)
    neighbours = np.einsum("ij,ij->i", score[:, 1:], score[:, :-1])
    time = np.arange(n) - (n - 1) / 2
    varies = energy > np.finfo(np.float64).eps * n
    energy = np.where(varies, energy, 1.0)
    inflation = 1.0 + 2.0 * np.clip(neighbours / energy, 0.0, 0.5)
    return np.where(varies, -(score @ time) / np.sqrt(time @ time * energy / n * inflation), 0.0)


def _typical(size: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median size of each row's differences; where most are exactly 0, the median of the others."""
    typical = np.median(size, axis=1, keepdims=True)
    for row in np.flatnonzero(typical == 0.0):
        moving = size[row][size[row] > 0.0]
        typical[row] = np.median(moving) if len(moving) else 1.0
    return typical


def trend_series(stability: ArrayLike) -> NDArray[np.float64]:
    """`trend_statistic` after each epoch of gapless series: (draws, epochs) -> (draws, epochs), NaN too early."""
    differences = np.diff(np.asarray(stability, dtype=np.float64), axis=1)
    statistic = np.full((differences.shape[0], differences.shape[1] + 1), np.nan)
    for n in range(MIN_DIFFERENCES, differences.shape[1] + 1):
        statistic[:, n] = trend_statistic(differences[:, :n])
    return statistic


def score_series(
    stability: ArrayLike, planned_epochs: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The detector's readings after each epoch of gapless series: (draws, epochs) -> score and rising, likewise.

    1 or more fires; NaN in the first MIN_DIFFERENCES epochs. Fed epoch by epoch, `VolatilityDetector` says the same.
    """
    statistic = trend_series(stability)
    n = np.arange(statistic.shape[1])
    return statistic / boundary(n, planned_epochs), -statistic / boundary(n, planned_epochs, rising=True)


def boundary(
    differences: ArrayLike, planned_epochs: int | None, *, rising: bool = False
) -> NDArray[np.float64]:
    """The threshold of the statistic after n differences, for a training of `planned_epochs`.

    h(N) (N/(n+1))^0.4 with h calibrated per planned length N (benchmarks/calibrate_detector.py), interpolated
    linearly in log N between the lengths of the table and kept at its ends' beyond them. Where the length is not
    known, and past the planned end, a boundary that rises slowly with n holds false alarms down up to the table's
    longest length (500 epochs).

    Args:
        differences: n, any shape.
        planned_epochs: the length of the training, None if not known.
        rising: the threshold of rising volatility, a test of its own.
    """
    table = thresholds()
    side = "rising" if rising else "falling"
    n = np.asarray(differences, dtype=np.float64)
    open_ended = np.interp(np.log(n + 1), np.log(table["lengths"]), table[f"{side}_open"])
    if planned_epochs is None:
        return open_ended
    height = np.interp(np.log(planned_epochs), np.log(table["lengths"]), table[side])
    planned = height * (planned_epochs / (n + 1)) ** BOUNDARY_EXPONENT
    return np.where(n < planned_epochs, planned, open_ended)


@cache
def thresholds() -> Mapping[str, NDArray[np.float64]]:
    """The calibration table: for each length of `lengths` the thresholds of each side and kind of boundary."""
    text = (
        importlib.resources.files("mlflow_dynamics.convergence").joinpath(TABLE).read_text(encoding="utf-8")
    )
    return {name: np.asarray(values) for name, values in json.loads(text)["table"].items()}


class VolatilityDetector:
    """Says that convergence is near when the volatility of the stability index has fallen for sure.

    Args:
        planned_epochs: the length of the training, None if not known (the threshold is then higher at the end).
    """

    def __init__(self, *, planned_epochs: int | None = None) -> None:
        self._planned_epochs = planned_epochs
        self._differences: list[float] = []
        self._last: tuple[int, float] | None = None

    @property
    def parameters(self) -> Mapping[str, float | int | str]:
        """What the verdict depends on."""
        return {"min_differences": MIN_DIFFERENCES}

    def update(self, epoch: int, stability: float) -> Reading:
        """Read the next epoch's stability (finite). A difference across missing epochs is not used."""
        if self._last is not None and epoch == self._last[0] + 1:
            self._differences.append(stability - self._last[1])
        self._last = (epoch, stability)
        n = len(self._differences)
        if n < MIN_DIFFERENCES:
            return Reading(score=float("nan"), rising=float("nan"))
        statistic = float(trend_statistic(np.array(self._differences)[None, :])[0])
        return Reading(
            score=statistic / float(boundary(n, self._planned_epochs)),
            rising=-statistic / float(boundary(n, self._planned_epochs, rising=True)),
        )
