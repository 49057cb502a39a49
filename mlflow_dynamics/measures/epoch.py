"""All measures of one window of signals at once: what is logged for an epoch."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from mlflow_dynamics.config import MIN_STEPS, Estimator
from mlflow_dynamics.errors import unknown_choice
from mlflow_dynamics.measures.estimators import ESTIMATORS, mean_of_defined
from mlflow_dynamics.measures.signals import as_signals, standardise
from mlflow_dynamics.measures.stability import stability_index
from mlflow_dynamics.measures.synchrony import incoherent_metastability, phasors
from mlflow_dynamics.records import Measures


def measure(signals: ArrayLike, *, estimator: Estimator = "dfa", min_steps: int = MIN_STEPS) -> Measures:
    """All measures of one window.

    Each layer is linearly detrended over the window; layers that are constant or not finite are left out and
    counted. What cannot be computed is NaN, and `reason` says why.

    Args:
        signals: (layers, steps).
        estimator: of the exponents, "dfa" or "hk".
        min_steps: shorter windows are undefined.

    Raises:
        ValueError: another number of axes, or values that are not real; the message names the shape.

    Example:
        >>> import numpy as np
        >>> found = measure(np.random.default_rng(0).normal(size=(20, 512)))
        >>> round(found.integration, 1), round(found.metastability_ratio), found.reason
        (0.5, 1, None)
    """
    if estimator not in ESTIMATORS:
        raise unknown_choice("estimator", estimator, ESTIMATORS)
    values = as_signals(signals, layers=True)
    if values.ndim != 2:
        raise ValueError(f"signals must have shape (layers, steps), not {values.shape}.")
    layers, steps = values.shape
    if layers == 0:
        return undefined(0, "no layers are recorded.")
    if steps < min_steps:
        return undefined(layers, f"{steps} steps are recorded; the measures need at least {min_steps}.")
    detrended, deviation = standardise(values, order=1)
    usable = np.isfinite(deviation)
    count = int(usable.sum())
    if count == 0:
        return undefined(
            layers, f"all {layers} layers are constant or not finite in the window.", dropped=layers
        )
    exponents = ESTIMATORS[estimator](detrended)
    phases = phasors(detrended, usable)
    order = phases.order()
    integration = float(mean_of_defined(exponents))
    metastability = float(order.std())
    reason = None
    if count < 2:
        reason = "only one layer varies in the window; synchrony and what follows from it need at least two."
    elif not np.isfinite(integration):
        reason = f"no exponent could be estimated by {estimator!r} from {steps} steps."
    return Measures(
        integration=integration,
        synchrony=float(order.mean()),
        metastability=metastability,
        metastability_ratio=metastability / float(incoherent_metastability(count)),
        stability=float(stability_index(integration, metastability)),
        layers_dropped=layers - count,
        exponents=exponents,
        phase_coherence=phases.coherence(),
        reason=reason,
    )


def undefined(layers: int, reason: str, *, dropped: int = 0) -> Measures:
    """Measures that are all NaN, with the reason."""
    nothing = np.full(layers, np.nan)
    return Measures(
        integration=np.nan,
        synchrony=np.nan,
        metastability=np.nan,
        metastability_ratio=np.nan,
        stability=np.nan,
        layers_dropped=dropped,
        exponents=nothing,
        phase_coherence=nothing.copy(),
        reason=reason,
    )
