"""Phases of layers: how much they move together, and how much that varies."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.signal import hilbert

Array = NDArray[np.float64]

EDGE_STEPS: Final = 10
"""Left out at each end: the Hilbert transform's phase there depends on samples from the edge, not on T."""


def phasors(signals: ArrayLike) -> NDArray[np.complex128]:
    """(layers, steps) exp(i theta) of the analytic signal of each signal; scale does not matter."""
    values = np.asarray(signals, dtype=np.float64)
    analytic = hilbert(values - values.mean(axis=-1, keepdims=True), axis=-1)
    unit: NDArray[np.complex128] = analytic / np.maximum(np.abs(analytic), np.finfo(float).tiny)
    return unit


def order_parameter(signals: ArrayLike) -> Array:
    """R(t) = |mean over layers of exp(i theta_l(t))|, (steps,), 0 to 1, for signals (layers, steps)."""
    return np.abs(phasors(signals).mean(axis=-2))


def incoherent_floor(layers: int) -> float:
    """The standard deviation of R of that many incoherent layers: sqrt((1 - pi/4) / L)."""
    return float(np.sqrt((1 - np.pi / 4) / layers))


def phase_coherence(phases: NDArray[np.complex128]) -> Array:
    """(layers,) mean cosine between each layer's phase and the mean phase of the others; -1 to 1."""
    others = phases.sum(axis=-2, keepdims=True) - phases
    direction = others / np.maximum(np.abs(others), np.finfo(float).tiny)
    coherence: Array = (phases * direction.conj()).real.mean(axis=-1)
    return coherence
