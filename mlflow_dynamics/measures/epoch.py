"""All measures of one window of signals at once, or of a batch of windows: what is logged for an epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlflow_dynamics.config import MIN_STEPS, Estimator
from mlflow_dynamics.errors import unknown_choice
from mlflow_dynamics.measures.estimators import ESTIMATORS, mean_of_defined
from mlflow_dynamics.measures.signals import as_signals, standardise
from mlflow_dynamics.measures.stability import stability_index
from mlflow_dynamics.measures.synchrony import MIN_STEPS as LEAST_STEPS
from mlflow_dynamics.measures.synchrony import incoherent_metastability, phasors
from mlflow_dynamics.records import Measures


def measure(signals: ArrayLike, *, estimator: Estimator = "dfa", min_steps: int = MIN_STEPS) -> Measures:
    """All measures of a window, or of each of many.

    Of linearly detrended layers: I = mean exponent; synchrony and M = mean and standard deviation of R(t); ratio =
    M / sqrt((1 - pi/4) / L); S = clip(I / 1.5, 0, 1) (1 - 2 M); and per layer its exponent and the mean cosine
    between its phase and that of the others. Layers that are constant or not finite are left out and counted. What
    cannot be computed is NaN, and `reason` says why.

    Args:
        signals: (..., layers, steps).
        estimator: of the exponents, "dfa" or "hk".
        min_steps: shorter windows are undefined, as are those of fewer than 8 steps.

    Returns:
        numbers for one window (layers, steps); arrays (...,) and (..., layers) in their place for a batch, and one
        reason for what is NaN in any of them.

    How to read it, and what it does not show: see `integration`, `synchrony`, `metastability`,
    `metastability_ratio` and `stability_index`, which give the same numbers one by one.

    Raises:
        ValueError: fewer than two axes, or values that are not real; the message names the shape.

    References:
        Quang et al. 2026, doi 10.48550/arXiv.2604.09716.

    Example:
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
    exponents = ESTIMATORS[estimator](detrended)
    phases = phasors(detrended, usable)
    order = phases.order()
    integration = mean_of_defined(exponents)
    metastability = order.std(axis=-1)
    reason = None
    if (count == 0).any():
        reason = f"all {layers} layers are constant or not finite in the window."
    elif (count < 2).any():
        reason = "only one layer varies in the window; synchrony and what follows from it need at least two."
    elif np.isnan(integration).any():
        reason = f"no exponent could be estimated by {estimator!r} from {steps} steps."
    return Measures(
        integration=_number(integration),
        synchrony=_number(order.mean(axis=-1)),
        metastability=_number(metastability),
        metastability_ratio=_number(metastability / incoherent_metastability(np.maximum(count, 1))),
        stability=_number(stability_index(integration, metastability)),
        layers_dropped=_number(layers - count),
        exponents=exponents,
        phase_coherence=phases.coherence(),
        reason=reason,
    )


def undefined(shape: tuple[int, ...], reason: str, *, dropped: int = 0) -> Measures:
    """Measures of windows and layers of shape (..., layers) that are all NaN, with the reason."""
    number = _number(np.full(shape[:-1], np.nan))
    return Measures(
        integration=number,
        synchrony=number,
        metastability=number,
        metastability_ratio=number,
        stability=number,
        layers_dropped=_number(np.full(shape[:-1], dropped)),
        exponents=np.full(shape, np.nan),
        phase_coherence=np.full(shape, np.nan),
        reason=reason,
    )


def _number(values: NDArray[Any]) -> Any:
    """Python's own number for one window, the array as it is for a batch."""
    return values.item() if values.ndim == 0 else values
