"""The detector `volatility`: a CUSUM on how much the stability index moves from one epoch to the next."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlflow_dynamics.convergence.detectors import Scores

Array = NDArray[np.float64]

REFERENCE: Final = 10
"""The first moves are the reference; later the first half of all, which makes the reference ever surer."""

ALLOWANCE: Final = 0.5
"""A fall of the typical move by less than a factor exp(0.5) = 1.6 never adds up to a signal."""

BOUND: Final = 2.0
"""Of one epoch's evidence. It makes the detector insensitive to heavy tails: one quiet epoch proves little."""

SMALLEST_MOVE: Final = 1e-9
"""Moves below it count alike; the logarithm of an exact 0 would be minus infinity."""

UNKNOWN_LENGTH: Final = 200
"""A training whose length is not known is judged by the threshold of one this long."""

THRESHOLDS_FILE: Final = Path(__file__).with_name("thresholds.json")


@cache
def _thresholds() -> tuple[Array, Array]:
    table = json.loads(THRESHOLDS_FILE.read_text())["threshold"]
    lengths = sorted(int(length) for length in table)
    return np.array(lengths, float), np.array([table[str(length)] for length in lengths], float)


def threshold(planned_epochs: int | None) -> float:
    """The statistic that at most 5 % of series without any change reach within so many epochs.

    Interpolated in the calibration table (`benchmarks/calibrate_detector.py`); constant beyond its ends.
    """
    lengths, values = _thresholds()
    return float(np.interp(UNKNOWN_LENGTH if planned_epochs is None else planned_epochs, lengths, values))


def statistics(stability: ArrayLike) -> tuple[Array, Array]:
    """The one-sided CUSUMs of falling and of rising moves, after each epoch.

    With y(t) = log |S(t) - S(t-1)| and b(t) the median of the first half of y up to t (at least the first 10),

        falling(t) = max(0, falling(t-1) + clip(b(t) - y(t), -2, 2) - 0.5)

    and rising(t) likewise with the sign turned (Page 1954, doi 10.1093/biomet/41.1-2.100). Differences remove
    drift and random walks; the logarithm makes it independent of scale; the bound tames heavy tails.

    Args:
        stability: (..., epochs), finite.

    Returns:
        falling and rising, each (..., epochs), NaN in the first 11 epochs.
    """
    values = np.asarray(stability, dtype=np.float64)
    moves = np.log(np.maximum(np.abs(np.diff(values, axis=-1)), SMALLEST_MOVE))
    falling = np.full(values.shape, np.nan)
    rising = np.full(values.shape, np.nan)
    down = np.zeros(values.shape[:-1])
    up = np.zeros(values.shape[:-1])
    for t in range(REFERENCE, moves.shape[-1]):
        reference = np.median(moves[..., : max(REFERENCE, t // 2)], axis=-1)
        evidence = np.clip(reference - moves[..., t], -BOUND, BOUND)
        down = np.maximum(0.0, down + evidence - ALLOWANCE)
        up = np.maximum(0.0, up - evidence - ALLOWANCE)
        falling[..., t + 1] = down
        rising[..., t + 1] = up
    return falling, rising


class VolatilityDetector:
    """Signals when the stability index has become lastingly quieter than in the first half of the training."""

    def __init__(self, planned_epochs: int | None = None) -> None:
        self.threshold = threshold(planned_epochs)
        self._stability: list[float] = []

    def update(self, stability: float) -> Scores:
        """Take the next epoch's stability; both scores are statistic over threshold."""
        self._stability.append(stability)
        falling, rising = statistics(self._stability)
        return Scores(
            falling=float(falling[-1]) / self.threshold, rising=float(rising[-1]) / self.threshold
        )

    def reset(self) -> None:
        """Forget the series."""
        self._stability.clear()
