"""All measures of one window of signals at once, or of a batch of windows: what is logged for an epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlflow_dynamics.config import MIN_STEPS, Estimator
from mlflow_dynamics.errors import unknown_choice
from mlflow_dynamics.measures.estimators import ESTIMATORS, exponent_of_mean, exponents_of, mean_of_defined
from mlflow_dynamics.measures.signals import LOST, Real, as_signals, standardise
from mlflow_dynamics.measures.stability import stability_index
from mlflow_dynamics.measures.synchrony import MIN_STEPS as LEAST_STEPS
from mlflow_dynamics.measures.synchrony import incoherent_metastability, phasors
from mlflow_dynamics.records import Measures


def measure(signals: ArrayLike, *, estimator: Estimator = "dfa", min_steps: int = MIN_STEPS) -> Measures:
    """All measures of one window, or of each window of a batch.

    The layers are linearly detrended. I = mean exponent; G = exponent of the mean z-scored signal; synchrony and M =
    mean and standard deviation of R(t); ratio = M / sqrt((1 - pi/4) / L); the standard deviation of R(t)^2 that many
    such layers would have; S = clip(I / 1.5, 0, 1) (1 - 2 M); and for each layer its exponent, and the mean cosine
    between its phase and that of the others. Layers that are constant or not finite are left out and counted. Steps at
    which no layer is finite are bridged, up to 5 % of them. A measure that cannot be computed is NaN, and `reason` says
    why.

    Args:
        signals: (..., layers, steps).
        estimator: the estimator of the exponents, "dfa" or "hk".
        min_steps: all measures of a window with fewer steps are NaN; so are those of one with fewer than 8 steps.

    Returns:
        numbers for one window (layers, steps). For a batch, arrays (...,) and (..., layers) in their place, and one
        reason for what is NaN in any window.

    How to read it, and what it does not show: see `integration`, `global_integration`, `synchrony`, `metastability`,
    `metastability_ratio`, `metastability_unbiased` and `stability_index`, which give the same numbers one by one.

    Raises:
        ValueError: fewer than two axes, or values that are not real; the message names the shape.

    References:
        Quang et al. 2026, doi 10.48550/arXiv.2604.09716.

    Examples:
        >>> import numpy as np
        >>> found = measure(np.random.default_rng(0).normal(size=(20, 512)))
        >>> round(found.integration, 1), round(found.metastability_ratio), found.reason
        (0.5, 1, None)
        >>> measure(np.random.default_rng(0).normal(size=(3, 20, 512))).synchrony.shape
        (3,)
    """
    if estimator not in ESTIMATORS:
        raise unknown_choice("estimator", estimator, ESTIMATORS)
    values = as_signals(signals, layers=True)
    layers, steps = values.shape[-2:]
    if layers == 0:
        return undefined(values.shape[:-1], "no layers are recorded.")
    least = max(min_steps, LEAST_STEPS)
    if steps < least:
        return undefined(
            values.shape[:-1], f"{steps} steps are recorded; the measures need at least {least}."
        )
    detrended, deviation = standardise(values, order=1)
    usable = np.isfinite(deviation)
    count = usable.sum(axis=-1)
    exponents = exponents_of(detrended, estimator)
    shared = exponent_of_mean(detrended, usable, estimator)
    phases = phasors(detrended, usable)
    order = phases.order()
    integration = mean_of_defined(exponents)
    metastability = order.std(axis=-1)
    reason = None
    if (count == 0).any():
        reason = _why_none(values)
    elif (count < 2).any():
        reason = "only one layer varies in the window; synchrony and what follows from it need at least two."
    elif np.isnan(integration).any():
        reason = f"no exponent could be estimated by {estimator!r} from {steps} steps."
    elif np.isnan(shared).any():
        reason = "the layers' mean is constant in the window: they cancel each other."
    return Measures(
        integration=_number(integration),
        global_integration=_number(shared),
        synchrony=_number(order.mean(axis=-1)),
        metastability=_number(metastability),
        metastability_ratio=_number(metastability / incoherent_metastability(np.maximum(count, 1))),
        metastability_unbiased=_number(phases.unbiased_variation()),
        stability=_number(stability_index(integration, metastability)),
        layers_dropped=_number(layers - count),
        exponents=exponents,
        phase_coherence=phases.coherence(),
        reason=reason,
    )


def _why_none(values: Real) -> str:
    """Why no layer of some window (..., layers, steps) is usable."""
    lost = int((~np.isfinite(values)).all(axis=-2).sum(axis=-1).max())
    layers, steps = values.shape[-2:]
    if LOST * steps < lost < steps:
        return f"no layer is finite at {lost} of {steps} steps; at most {LOST:.0%} of a window are bridged."
    return f"all {layers} layers are constant or not finite in the window."


def undefined(shape: tuple[int, ...], reason: str, *, dropped: int = 0) -> Measures:
    """Measures of windows and layers of shape (..., layers) that are all NaN, with the reason."""
    number = _number(np.full(shape[:-1], np.nan))
    return Measures(
        integration=number,
        global_integration=number,
        synchrony=number,
        metastability=number,
        metastability_ratio=number,
        metastability_unbiased=number,
        stability=number,
        layers_dropped=_number(np.full(shape[:-1], dropped)),
        exponents=np.full(shape, np.nan),
        phase_coherence=np.full(shape, np.nan),
        reason=reason,
    )


def _number(values: NDArray[Any]) -> Any:
    """Python's own number for one window, the array as it is for a batch."""
    return values.item() if values.ndim == 0 else values
