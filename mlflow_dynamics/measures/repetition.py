"""Whether the layers do the same from epoch to epoch, step by step, as where data come in the same order each epoch."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from mlflow_dynamics.records import EpochActivations

LEAST_STEPS: Final = 10
"""Epochs with fewer recorded steps are not compared."""

LEFT_OUT: Final = 0.1
"""This part of an epoch's steps, its first ones, is left out: a learning rate that restarts with each epoch comes back
there whatever the order of the data."""

MOST_SIGNALS: Final = 128
"""Of more signals so many are looked at, evenly spaced: the work grows with their square."""

SURE: Final = 5.0
"""In deviations of what shuffled data give. The sum over epochs is a random walk: also over 1,000 epochs it hardly ever
reaches this."""

LEAST_AGREEMENT: Final = 0.1
"""In long trainings the least common drift would be sure; data in the same order agreed by 0.17 and more."""

APART: Final = 1.5
"""The agreement of equal steps is at least so many times that of steps any number apart. Where a rate is too high,
layers swing from step to step whatever the data are; they then agree as well two steps apart."""

Array = NDArray[np.float64]


class Repetition:
    """Compares each epoch with the one before it, and holds what that has come to since epochs have their length.

    The signals are root mean square and mean of each layer. Their changes from step to step are ranked within the
    epoch; neighbouring epochs agree by the rank correlation of their steps, the first with the first and so on,
    averaged over the signals. Shuffled data make any pairing of steps as likely, so the expected agreement is 0 and its
    variance is known: the sum of the products of the signals' correlations in the two epochs, over the number of
    signals squared and of steps less one (signals that move alike count as one). Ranks of changes are blind to levels,
    trends and single large steps.
    """

    def __init__(self) -> None:
        self._before: NDArray[np.float32] | None = None
        self._start: int | None = None
        self._pairs = 0
        self._sums: Array = np.zeros(1)
        self._variance = 0.0

    def append(self, activations: EpochActivations) -> None:
        """Take in an epoch. It is compared if it has as many steps as the one before it, which it goes on from."""
        step, start = activations.step, self._start
        now = None
        if len(step) >= LEAST_STEPS:
            mean = activations.mean.astype(np.float64)
            size = np.hypot(mean, activations.std)
            now = None if _is_broken(size) else _ranked_changes(np.concatenate([size, mean]))
        # If steps are left out in recording, the same steps of both epochs must be there.
        follows = len(step) > 1 and start is not None and step[0] - start == len(step) * (step[1] - step[0])
        self._start = int(step[0]) if len(step) else None
        before, self._before = self._before, now
        if not follows or now is None or before is None or before.shape != now.shape:
            return
        known = np.any(now != 0, axis=1) & np.any(before != 0, axis=1)
        if not known.any():
            return
        a, b = before[known].astype(np.float64), now[known].astype(np.float64)
        steps = a.shape[1]
        if len(self._sums) != steps:
            self._pairs, self._sums, self._variance = 0, np.zeros(steps), 0.0
        self._pairs += 1
        # The agreement of steps that lie 0, 1, 2, ... apart, with the end of an epoch joined to its beginning.
        spectrum = (np.fft.rfft(a).conj() * np.fft.rfft(b)).mean(axis=0)
        self._sums += np.fft.irfft(spectrum, steps) / steps
        # The trace of the product of the two correlation matrices.
        self._variance += float(((a @ a.T) * (b @ b.T)).sum()) / (steps * len(a)) ** 2 / (steps - 1)

    @property
    def agreement(self) -> float:
        """Mean agreement of neighbouring epochs, -1 to 1, about 0 for shuffled data; NaN before two were compared."""
        return float(self._sums[0]) / self._pairs if self._pairs else math.nan

    @property
    def score(self) -> float:
        """The agreement in deviations of what shuffled data give; NaN before two epochs were compared."""
        return float(self._sums[0]) / math.sqrt(self._variance) if self._pairs else math.nan

    @property
    def same_order(self) -> bool:
        """Whether the data surely come in the same order each epoch."""
        together, apart = float(self._sums[0]), float(self._sums[1:].max(initial=0.0))
        return self.score >= SURE and self.agreement >= LEAST_AGREEMENT and together >= APART * apart


def _is_broken(size: Array) -> bool:
    """Whether a layer overflows, or puts out as much at each step, by root mean squares (layers, steps).

    What the other layers do then follows the optimizer, which swings without regard to the data.
    """
    called = size[~np.isnan(size).any(axis=1)]
    return bool(np.isinf(size).any() or (np.ptp(called, axis=1) == 0).any())


def _ranked_changes(signals: Array) -> NDArray[np.float32]:
    """(signals, changes) ranks of each signal's changes, of mean 0 and deviation 1; 0 if constant or not finite.

    They are in single precision, because those of an epoch are kept until the next one.
    """
    chosen = np.unique(np.linspace(0, len(signals) - 1, min(len(signals), MOST_SIGNALS)).round().astype(int))
    first = math.ceil(LEFT_OUT * signals.shape[1])
    with np.errstate(invalid="ignore"):
        changes = np.diff(signals[chosen, first:], axis=1)
    finite = np.isfinite(changes).all(axis=1, keepdims=True)
    ranks = rankdata(np.where(finite, changes, 0.0), axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    deviation = ranks.std(axis=1, keepdims=True)
    ranks /= np.where(deviation > 0, deviation, 1)
    return ranks.astype(np.float32)
