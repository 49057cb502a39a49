"""The detector `volatility`: is the stability index changing less and less from epoch to epoch?"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlflow_dynamics.convergence.detector import Reading

MIN_MOVES: Final = 15
"""The detector says nothing before it has read so many epochs whose two predecessors it knows: a trend of fewer is
noise."""

SOFTENING: Final = 1.0
"""Bounds the pull of tiny moves: the score of a move d is log(d^2/s^2 + SOFTENING), with s the median size of moves."""

LONG_MOVE_WEIGHT: Final = 0.5
"""The weight of the move over two epochs beside that over one: both together tell the size of noise more surely."""

BOUNDARY_EXPONENT: Final = 0.8
"""The threshold falls with time as n^-0.8, so that the permitted false alarms are not all spent at the start."""

TABLE: Final = "thresholds.json"


def trend_statistic(short: ArrayLike, long: ArrayLike) -> NDArray[np.float64]:
    """How surely the size of the moves of S falls with time: (draws, n), (draws, n) -> (draws,), in deviations.

    Positive when it falls, negative when it rises. With a_i the move of S over the last epoch, b_i that over the last
    two, s_a = median |a| and s_b = median |b|, the score of an epoch is
    g_i = log(a_i^2/s_a^2 + 1) + 1/2 log(b_i^2/s_b^2 + 1). The statistic is minus the least-squares covariance of g
    with time, over its standard deviation under no trend, sqrt(sum (t - mean t)^2 * var(g) * (1 + 2 r)), where r is
    the lag-1 correlation of g clipped to [0, 0.5] (moves of white noise are correlated, those of a random walk less;
    without r each kind would need its own threshold). The statistic does not change if S is shifted, scaled or turned
    upside down. A series without any change has no trend: 0.

    This is Engle's ARCH idea of testing squared innovations (doi 10.2307/1912773) with a score bounded from
    below and logarithmic above, so that neither tiny moves nor heavy tails decide.

    Args:
        short: (draws, n) finite moves of S from the epoch before, in order, n >= 2.
        long: (draws, n) finite moves of S from the epoch before that to the same epoch.
    """
    score = _size_score(short) + LONG_MOVE_WEIGHT * _size_score(long)
    n = score.shape[1]
    score -= score.mean(axis=1, keepdims=True)
    energy = np.einsum("ij,ij->i", score, score)
    neighbours = np.einsum("ij,ij->i", score[:, 1:], score[:, :-1])
    time = np.arange(n) - (n - 1) / 2
    varies = energy > np.finfo(np.float64).eps * n
    energy = np.where(varies, energy, 1.0)
    inflation = 1.0 + 2.0 * np.clip(neighbours / energy, 0.0, 0.5)
    return np.where(varies, -(score @ time) / np.sqrt(time @ time * energy / n * inflation), 0.0)


def _size_score(moves: ArrayLike) -> NDArray[np.float64]:
    size = np.abs(np.asarray(moves, dtype=np.float64))
    scaled: NDArray[np.float64] = np.log((size / _typical(size)) ** 2 + SOFTENING)
    return scaled


def _typical(size: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median size of each row's moves; if most of a row's moves are exactly 0, the median of the others."""
    typical = np.median(size, axis=1, keepdims=True)
    for row in np.flatnonzero(typical == 0.0):
        moving = size[row][size[row] > 0.0]
        typical[row] = np.median(moving) if len(moving) else 1.0
    return typical


def trend_series(stability: ArrayLike) -> NDArray[np.float64]:
    """`trend_statistic` after each epoch of gapless series: (draws, epochs) -> (draws, epochs), NaN at first."""
    series = np.asarray(stability, dtype=np.float64)
    short = np.diff(series, axis=1)[:, 1:]
    long = series[:, 2:] - series[:, :-2]
    statistic = np.full(series.shape, np.nan)
    for n in range(MIN_MOVES, short.shape[1] + 1):
        statistic[:, n + 1] = trend_statistic(short[:, :n], long[:, :n])
    return statistic


def score_series(
    stability: ArrayLike, planned_epochs: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The detector's readings after each epoch of gapless series: (draws, epochs) -> score and rising, likewise.

    1 or more fires; NaN in the first MIN_MOVES + 1 epochs. `VolatilityDetector` gives the same, epoch by epoch.
    """
    statistic = trend_series(stability)
    epochs = np.arange(1, statistic.shape[1] + 1)
    return statistic / boundary(epochs, planned_epochs), -statistic / boundary(
        epochs, planned_epochs, rising=True
    )


def boundary(epochs: ArrayLike, planned_epochs: int | None, *, rising: bool = False) -> NDArray[np.float64]:
    """The threshold of the statistic after n epochs of a training of `planned_epochs`.

    h(N) (N/n)^0.8 with h calibrated per planned length N (benchmarks/calibrate_detector.py), interpolated
    linearly in log N between the lengths of the table and constant beyond the table's ends. If the length is not known,
    and past the planned end, the boundary rises slowly with n, which holds false alarms down up to the table's longest
    length (500 epochs).

    Args:
        epochs: n, any shape.
        planned_epochs: the length N of the training; None if it is not known.
        rising: take the threshold of rising volatility, which is a test of its own.
    """
    table = thresholds()
    side = "rising" if rising else "falling"
    n = np.asarray(epochs, dtype=np.float64)
    open_ended = np.interp(np.log(n), np.log(table["lengths"]), table[f"{side}_open"])
    if planned_epochs is None:
        return open_ended
    height = np.interp(np.log(planned_epochs), np.log(table["lengths"]), table[side])
    return np.where(n <= planned_epochs, height * (planned_epochs / n) ** BOUNDARY_EXPONENT, open_ended)


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
        planned_epochs: the length of the training; None if it is not known (the threshold is then higher at the end).
    """

    def __init__(self, *, planned_epochs: int | None = None) -> None:
        self._planned_epochs = planned_epochs
        self._short: list[float] = []
        self._long: list[float] = []
        self._adjacent: list[float] = []
        self._last_epoch: int | None = None

    @property
    def parameters(self) -> Mapping[str, float | int | str]:
        """What the verdict depends on."""
        return {"min_moves": MIN_MOVES}

    def update(self, epoch: int, stability: float) -> Reading:
        """Read the next epoch's stability (finite). A move across missing epochs is not used."""
        if self._last_epoch is not None and epoch != self._last_epoch + 1:
            self._adjacent = []
        self._last_epoch = epoch
        if len(self._adjacent) == 2:
            before, previous = self._adjacent
            self._short.append(stability - previous)
            self._long.append(stability - before)
        self._adjacent = [*self._adjacent[-1:], stability]
        n = len(self._short)
        if n < MIN_MOVES:
            return Reading(score=float("nan"), rising=float("nan"))
        statistic = float(trend_statistic([self._short], [self._long])[0])
        epochs = n + 2  # the epochs of a series without gaps that has so many moves
        return Reading(
            score=statistic / float(boundary(epochs, self._planned_epochs)),
            rising=-statistic / float(boundary(epochs, self._planned_epochs, rising=True)),
        )
