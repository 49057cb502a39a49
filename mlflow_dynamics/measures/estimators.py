"""The exponent's estimators under their names, and integration: what they give on average over the layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from mlflow_dynamics.config import Estimator
from mlflow_dynamics.errors import unknown_choice
from mlflow_dynamics.measures.fractal import dfa
from mlflow_dynamics.measures.hurst_kolmogorov import hurst_kolmogorov
from mlflow_dynamics.measures.signals import Array, as_signals, standardise


def _hk(signals: ArrayLike) -> Array:
    return hurst_kolmogorov(signals).exponent[()]


ESTIMATORS: Final[Mapping[str, Callable[[ArrayLike], Array]]] = MappingProxyType({"dfa": dfa, "hk": _hk})
"""name -> function from signals (..., steps) to exponents (...,), NaN where undefined."""


def hurst(signals: ArrayLike, *, method: Estimator = "dfa") -> Array:
    """The scaling exponent of each signal, (..., steps) -> (...,), by the named estimator with its defaults.

    "dfa": the slope of log F(n) on log n (see `dfa`). "hk": the mean of H under its likelihood for fractional
    Gaussian noise, a straight line integrated out (see `hurst_kolmogorov`, which also gives an interval and says
    when it ran into the end of its range).

    Args:
        signals: (..., steps).
        method: "dfa" or "hk".

    Returns:
        (...,) about 0 to 2 ("dfa") or 0 to 1 ("hk"); NaN where a signal is constant, not finite or too short.

    How to read it: 0.5 no memory, above it persistence. "dfa" sees beyond 1, "hk" errs least on short stationary
    signals and ends at 1. Where both are far apart the signal is not stationary. What it does not show: proof of
    long memory, by either method.

    Raises:
        ValueError: an unknown method; signals without a steps axis or not real.

    References:
        Peng et al. 1994, doi 10.1103/PhysRevE.49.1685; Tyralis and Koutsoyiannis 2011, doi
        10.1007/s00477-010-0408-x.

    Example:
        >>> import numpy as np
        >>> noise = np.random.default_rng(0).normal(size=2000)
        >>> round(float(hurst(noise)), 1), round(float(hurst(noise, method="hk")), 1)
        (0.5, 0.5)
    """
    if method not in ESTIMATORS:
        raise unknown_choice("method", method, ESTIMATORS)
    return ESTIMATORS[method](signals)


def integration(signals: ArrayLike, *, estimator: Estimator = "dfa") -> Array:
    """Mean over the layers of their scaling exponents, linearly detrended: (..., layers, steps) -> (...,).

    I = (1/L) sum over l of alpha_l. Layers that are constant, not finite or too short for the estimator are left out.

    Returns:
        about 0 to 2 ("dfa") or 0 to 1 ("hk"); NaN where no layer is left.

    How to read it: 0.5 layers without memory, 1 for 1/f, 1.5 Brownian wandering. What it does not show: long memory
    proper (see `dfa`), or that layers move together: it is an average of single layers.

    Raises:
        ValueError: fewer than two axes; values that are not real; an unknown estimator.

    References:
        Quang et al. 2026, doi 10.48550/arXiv.2604.09716; of the estimators see `dfa` and `hurst_kolmogorov`.

    Example:
        >>> import numpy as np
        >>> round(float(integration(np.random.default_rng(0).normal(size=(20, 512)))), 1)
        0.5
    """
    if estimator not in ESTIMATORS:
        raise unknown_choice("estimator", estimator, ESTIMATORS)
    exponents = ESTIMATORS[estimator](standardise(as_signals(signals, layers=True), order=1)[0])
    return mean_of_defined(exponents)


def mean_of_defined(exponents: Array) -> Array:
    """Mean over the last axis of what is not NaN, (..., layers) -> (...,); NaN where nothing is."""
    defined = np.isfinite(exponents)
    count = defined.sum(axis=-1)
    total = np.where(defined, exponents, 0.0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)[()]
