"""The combined stability index and its volatility over epochs."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from mlflow_dynamics.measures.signals import Array, as_reals

BROWNIAN: Final = 1.5
"""The exponent of Brownian motion, at which integration counts as full."""


def stability_index(integration: ArrayLike, metastability: ArrayLike) -> Array:
    """The stability index S = clip(I / 1.5, 0, 1) (1 - 2 M), element by element.

    Returns:
        the index in [0, 1]; NaN where either argument is NaN or infinite.

    How to read it: high when the layers keep long memory and their synchrony fluctuates little. What it does not
    show: which of the two arguments moved; look at both of them beside it.

    Raises:
        ValueError: the two cannot be broadcast to one shape, or are not real.

    References:
        Quang et al. 2026, doi 10.48550/arXiv.2604.09716.

    Examples:
        >>> round(float(stability_index(0.75, 0.25)), 6)
        0.25
    """
    exponent, fluctuation = as_reals(integration, "integration"), as_reals(metastability, "metastability")
    index = np.clip(exponent / BROWNIAN, 0.0, 1.0) * np.clip(1.0 - 2.0 * fluctuation, 0.0, 1.0)
    # Infinity is a failure, which clipping would turn into a number.
    return np.where(np.isfinite(exponent) & np.isfinite(fluctuation), index, np.nan)[()]


def volatility(stability: ArrayLike, *, window: int = 5) -> float:
    """Standard deviation of the last `window` epochs' stability: (epochs,) -> at least 0.

    V(e) = sqrt(mean of (S - mean S)^2 over the last `window` epochs). Epochs whose S is not finite are left out.

    Returns:
        between 0 and 0.5; NaN if S is finite in fewer than two of those epochs.

    How to read it: it falls as the dynamics settle, and can rise again with the learning rate's last decay.

    What it does not show: at which level the dynamics settle, or that accuracy is flat: a training that has not
    begun to learn is quiet too.

    Raises:
        ValueError: stability is not one series of real numbers, or a window below 2.

    References:
        Quang et al. 2026, doi 10.48550/arXiv.2604.09716.

    Examples:
        >>> volatility([0.9, 0.2, 0.4, 0.2, 0.4], window=4)
        0.1
    """
    series = as_reals(stability, "stability")
    if series.ndim != 1:
        raise ValueError(f"stability must have shape (epochs,), not {series.shape}.")
    if window < 2:
        raise ValueError(f"window={window!r} must be at least 2 epochs.")
    recent = series[-window:]
    recent = recent[np.isfinite(recent)]
    return float(recent.std()) if len(recent) >= 2 else float("nan")
