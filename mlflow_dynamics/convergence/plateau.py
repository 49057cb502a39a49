"""The epoch at which validation accuracy becomes flat, before which a convergence warning is to come."""

from __future__ import annotations

from statistics import median
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

PLATEAU_WINDOW: Final = 5
PLATEAU_TOLERANCE: Final = 0.005
"""0.5 points of an accuracy in [0, 1]; the evaluation takes 0.01 for 100 classes."""


PERCENT: Final = 1.5
"""An accuracy above this is in percent. Rounding may lift one in [0, 1] a little above 1."""


def fraction_of(accuracy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return accuracies in [0, 1]. If the largest one is above `PERCENT`, all of them are in percent."""
    return accuracy / 100 if accuracy.max(initial=0.0) > PERCENT else accuracy


def plateau_epoch(
    validation_accuracy: ArrayLike, *, tolerance: float = PLATEAU_TOLERANCE, window: int = PLATEAU_WINDOW
) -> int | None:
    """The first epoch whose centred median of validation accuracy is within `tolerance` of the run's best epoch.

    At both ends the window is cut to the epochs there are; epochs without a value (NaN) are left out. Returns None if
    no epoch has a value, if the best epoch stands out so far that the median never comes near it, or if the median
    comes near only in the last epoch, which does not tell a flat curve from a rising one.

    Args:
        validation_accuracy: (epochs,), in [0, 1] or in percent.
        tolerance: a difference of accuracies in [0, 1]: 0.005 is half a point.
        window: the number of epochs in the median, odd.

    Examples:
        >>> plateau_epoch([0.1, 0.5, 0.6, 0.7, 0.7, 0.7, 0.7])
        3
    """
    values = np.asarray(validation_accuracy, dtype=np.float64)
    defined = np.flatnonzero(np.isfinite(values))
    accuracy = fraction_of(values[defined])
    half = window // 2
    told = accuracy.tolist()  # of so few numbers Python's median is told in a fortieth of the time of NumPy's
    centred = np.array([median(told[max(0, e - half) : e + half + 1]) for e in range(len(told))])
    # Half a point is not a binary fraction: 0.8 is to count as within 0.005 of 0.805.
    flat = defined[centred >= accuracy.max(initial=0.0) - tolerance - 1e-12]
    return int(flat[0]) if len(flat) and flat[0] < defined[-1] else None
