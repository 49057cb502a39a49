"""The estimators of the scaling exponent by name, the layers' mean exponent, and the exponent of the layers' mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from mlflow_dynamics.config import Estimator
from mlflow_dynamics.deprecation import renamed
from mlflow_dynamics.errors import unknown_choice
from mlflow_dynamics.measures.fractal import dfa, dfa_of_standardised
from mlflow_dynamics.measures.hurst_kolmogorov import hurst_kolmogorov
from mlflow_dynamics.measures.signals import ARITHMETIC, Array, Mask, as_signals, standardise


def _hk(signals: ArrayLike) -> Array:
    return hurst_kolmogorov(signals).exponent[()]


ESTIMATORS: Final[Mapping[str, Callable[[ArrayLike], Array]]] = MappingProxyType({"dfa": dfa, "hk": _hk})
"""name -> function from signals (..., steps) to exponents (...,), NaN where undefined."""


def exponents_of(standardised: Array, estimator: Estimator) -> Array:
    """(...,) exponents of signals (..., steps) that `standardise` has returned; NaN for a signal of zeros."""
    return dfa_of_standardised(standardised) if estimator == "dfa" else _hk(standardised)


@renamed(method="estimator")
def hurst(signals: ArrayLike, *, estimator: Estimator = "dfa") -> Array:
    """The scaling exponent of each signal, (..., steps) -> (...,), by the named estimator with its defaults.

    "dfa": the slope of log F(n) on log n (see `dfa`). "hk": the mean of H under its likelihood for fractional
    Gaussian noise, with a straight line integrated out (see `hurst_kolmogorov`, which also gives an interval and says
    when the estimate ran into an end of its range).

    Args:
        signals: (..., steps).
        estimator: "dfa" or "hk".

    Returns:
        (...,) about 0 to 2 ("dfa") or 0 to 1 ("hk"); NaN where a signal is constant, not finite or too short.

    How to read it: 0.5 is no memory, more is persistence. "dfa" sees beyond 1; "hk" errs least on short stationary
    signals and ends at 1. The signal is not stationary if the two are far apart. What it does not show: proof of
    long memory, by either estimator.

    Raises:
        ValueError: an unknown estimator; signals without a steps axis or not real.

    References:
        Peng et al. 1994, doi 10.1103/PhysRevE.49.1685; Tyralis and Koutsoyiannis 2011, doi
        10.1007/s00477-010-0408-x.

    Examples:
        >>> import numpy as np
        >>> noise = np.random.default_rng(0).normal(size=2000)
        >>> round(float(hurst(noise)), 1), round(float(hurst(noise, estimator="hk")), 1)
        (0.5, 0.5)
    """
    if estimator not in ESTIMATORS:
        raise unknown_choice("estimator", estimator, ESTIMATORS)
    return ESTIMATORS[estimator](signals)


def integration(signals: ArrayLike, *, estimator: Estimator = "dfa") -> Array:
    """Mean over the layers of their scaling exponents, linearly detrended: (..., layers, steps) -> (...,).

    I = (1/L) sum over l of alpha_l. Layers that are constant, not finite or too short for the estimator are left out.

    Returns:
        about 0 to 2 ("dfa") or 0 to 1 ("hk"); NaN where no layer is left.

    How to read it: layers without memory give 0.5, 1/f noise gives 1, Brownian wandering 1.5. What it does not show:
    long memory proper (see `dfa`), or that layers move together: it is an average of single layers.

    Raises:
        ValueError: fewer than two axes; values that are not real; an unknown estimator.

    References:
        Quang et al. 2026, doi 10.48550/arXiv.2604.09716; of the estimators see `dfa` and `hurst_kolmogorov`.

    Examples:
        >>> import numpy as np
        >>> round(float(integration(np.random.default_rng(0).normal(size=(20, 512)))), 1)
        0.5
    """
    if estimator not in ESTIMATORS:
        raise unknown_choice("estimator", estimator, ESTIMATORS)
    detrended, _ = standardise(as_signals(signals, layers=True), order=1)
    return mean_of_defined(exponents_of(detrended, estimator))


def global_integration(signals: ArrayLike, *, estimator: Estimator = "dfa") -> Array:
    """The scaling exponent of the mean of the layers' signals: (..., layers, steps) -> (...,).

    G = alpha of (1/L) sum over l of z_l(t), with z_l the linearly detrended signal of layer l in units of its standard
    deviation. Layers that are constant or not finite are left out.

    Returns:
        about 0 to 2 ("dfa") or 0 to 1 ("hk"); NaN with fewer than two usable layers, where the layers cancel each
        other, and where the estimator has too few steps.

    How to read it: as `integration`, but across layers. The part that layers share makes nearly all of the variance of
    their mean (1 against 1/L), so this is the exponent of the shared part. If it is above integration, the shared part
    has the longer memory; if below, the layers' own parts have. What it does not show: that anything is shared (layers
    that share nothing give an exponent between those of the layers; see `synchrony`), what layers share with opposite
    signs (it cancels in the mean), long memory proper (see `dfa`), or how hard a task is: it ordered the tasks in only
    one of two families of networks.

    Raises:
        ValueError: fewer than two axes; values that are not real; an unknown estimator.

    References:
        This project's reading of "long-range coordination across layers" in Quang et al. 2026, doi
        10.48550/arXiv.2604.09716; of the estimators see `dfa` and `hurst_kolmogorov`.

    Examples:
        >>> import numpy as np
        >>> noise = np.random.default_rng(0).normal(size=(20, 512))
        >>> shared = np.random.default_rng(1).normal(size=512)
        >>> layers = noise.cumsum(axis=1) / 20 + shared
        >>> bool(global_integration(layers) < integration(layers))
        True
    """
    if estimator not in ESTIMATORS:
        raise unknown_choice("estimator", estimator, ESTIMATORS)
    detrended, deviation = standardise(as_signals(signals, layers=True), order=1)
    return exponent_of_mean(detrended, np.isfinite(deviation), estimator)


def exponent_of_mean(detrended: Array, usable: Mask, estimator: Estimator) -> Array:
    """`global_integration` of standardised signals (..., layers, steps), which are zeros where not `usable`."""
    count = usable.sum(axis=-1)
    shared = detrended.sum(axis=-2) / np.maximum(count, 1)[..., None]
    # Layers that cancel each other leave only rounding, whose exponent means nothing.
    size = np.abs(shared).max(axis=-1, initial=0.0)
    return np.where((count > 1) & (size > ARITHMETIC), exponents_of(shared, estimator), np.nan)[()]


def mean_of_defined(exponents: Array) -> Array:
    """Mean of the finite exponents over the last axis, (..., layers) -> (...,); NaN where none is finite."""
    defined = np.isfinite(exponents)
    count = defined.sum(axis=-1)
    total = np.where(defined, exponents, 0.0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)[()]
