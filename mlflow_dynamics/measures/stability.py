"""The combined stability index, its volatility over epochs, and all measures of one window at once."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.signal import detrend

from mlflow_dynamics.config import MIN_STEPS, Estimator
from mlflow_dynamics.measures.fractal import dfa
from mlflow_dynamics.measures.synchrony import EDGE_STEPS, incoherent_floor, phase_coherence, phasors
from mlflow_dynamics.records import Measures

BROWNIAN: Final = 1.5
"""The exponent of Brownian motion, at which integration counts as full."""


def stability_index(integration: float, metastability: float) -> float:
    """S = clip(I / 1.5, 0, 1) (1 - 2 M), in [0, 1]; NaN where either is NaN."""
    return float(np.clip(integration / BROWNIAN, 0.0, 1.0) * (1.0 - 2.0 * metastability))


def volatility(stability: ArrayLike, *, window: int = 5) -> float:
    """Standard deviation of the last `window` epochs' stability: (epochs,) -> float.

    Epochs whose stability is NaN are left out; NaN where fewer than two are left.
    """
    recent = np.asarray(stability, dtype=np.float64)[-window:]
    recent = recent[np.isfinite(recent)]
    return float(recent.std()) if len(recent) >= 2 else float("nan")


def measure(signals: ArrayLike, *, estimator: Estimator = "dfa", min_steps: int = MIN_STEPS) -> Measures:
    """All measures of one window of signals (layers, steps)."""
    values = np.asarray(signals, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"signals must have shape (layers, steps), not {values.shape}.")
    layers, steps = values.shape
    if steps < min_steps:
        return _undefined(layers, f"{steps} steps are recorded; the measures need at least {min_steps}.")
    finite = np.isfinite(values).all(axis=1)
    spread = np.ptp(np.where(finite[:, None], values, 0.0), axis=1)
    scale = np.abs(np.where(finite[:, None], values, 0.0)).max(axis=1)
    kept = finite & (spread > 1e-12 * scale)
    if not kept.any():
        return _undefined(layers, f"all {layers} layers are constant or not finite in the window.", dropped=layers)
    used = detrend(values[kept], axis=1)
    used /= used.std(axis=1, keepdims=True)
    exponents = np.full(layers, np.nan)
    exponents[kept] = dfa(used)
    phases = phasors(used)[:, EDGE_STEPS:-EDGE_STEPS]
    coherence = np.full(layers, np.nan)
    order = np.abs(phases.mean(axis=0))
    integration = float(np.nanmean(exponents))
    metastability = float(order.std())
    count = int(kept.sum())
    if count > 1:
        coherence[kept] = phase_coherence(phases)
    return Measures(
        integration=integration,
        synchrony=float(order.mean()),
        metastability=metastability,
        metastability_ratio=metastability / incoherent_floor(count),
        stability=stability_index(integration, metastability),
        layers_dropped=layers - count,
        exponents=exponents,
        phase_coherence=coherence,
    )


def _undefined(layers: int, reason: str, *, dropped: int = 0) -> Measures:
    nothing: NDArray[np.float64] = np.full(layers, np.nan)
    return Measures(
        integration=np.nan,
        synchrony=np.nan,
        metastability=np.nan,
        metastability_ratio=np.nan,
        stability=np.nan,
        layers_dropped=dropped,
        exponents=nothing,
        phase_coherence=nothing,
        reason=reason,
    )
