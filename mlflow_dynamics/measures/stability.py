"""The combined stability index and its volatility over epochs."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from mlflow_dynamics.measures.signals import Array

BROWNIAN: Final = 1.5
"""The exponent of Brownian motion, at which integration counts as full."""


def stability_index(integration: ArrayLike, metastability: ArrayLike) -> Array:
    """The stability index S = clip(I / 1.5, 0, 1) (1 - 2 M), element by element.

    Returns:
        in [0, 1]; NaN where either is NaN.

    How to read it: high when the layers keep long memory and their synchrony fluctuates little. What it does not
    show: which of the two moved; look at them beside it.

    Raises:
        ValueError: the two cannot be broadcast to one shape.

    References:
        arXiv 2604.09716.

    Example:
        >>> round(float(stability_index(0.75, 0.25)), 6)
        0.25
    """
    scaled = np.clip(np.asarray(integration, dtype=np.float64) / BROWNIAN, 0.0, 1.0)
    index: Array = scaled * np.clip(1.0 - 2.0 * np.asarray(metastability, dtype=np.float64), 0.0, 1.0)
    return index[()]


def volatility(stability: ArrayLike, *, window: int = 5) -> float:
    """Standard deviation of the last `window` epochs' stability: (epochs,) -> at least 0.

    Epochs whose stability is NaN are left out.

    Returns:
        NaN where fewer than two of those epochs are defined.

    How to read it: it falls as the dynamics settle, and can rise again with the learning rate's last decay.

    Raises:
        ValueError: stability is not one series, or a window below 2.

    References:
        arXiv 2604.09716.

    Example:
        >>> volatility([0.9, 0.2, 0.4, 0.2, 0.4], window=4)
        0.1
    """
    series = np.asarray(stability, dtype=np.float64)
    if series.ndim != 1:
        raise ValueError(f"stability must have shape (epochs,), not {series.shape}.")
    if window < 2:
        raise ValueError(f"window={window!r} must be at least 2 epochs.")
    recent = series[-window:]
    recent = recent[np.isfinite(recent)]
    return float(recent.std()) if len(recent) >= 2 else float("nan")
