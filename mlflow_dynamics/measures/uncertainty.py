"""How sure the measures are: an interval for integration, surrogate tests for coupling and metastability."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import scipy.fft
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from mlflow_dynamics.config import Estimator
from mlflow_dynamics.errors import unknown_choice
from mlflow_dynamics.measures.estimators import ESTIMATORS, exponents_of
from mlflow_dynamics.measures.signals import Array, Real, as_signals, standardise
from mlflow_dynamics.measures.synchrony import MIN_STEPS, edge, phasors

MIN_LAYERS: Final = 4
"""Fewer exponents leave no spread to resample."""

PHASES: Final = 1 << 12
"""The number of different random phases: looking them up is three times as fast as computing sines and cosines."""

CHUNK_SAMPLES: Final = 1 << 17
"""The number of surrogate samples held at a time, which fit a processor's cache."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A confidence interval; both bounds are NaN if it is undefined."""

    low: float
    high: float


def integration_interval(
    signals: ArrayLike,
    *,
    estimator: Estimator = "dfa",
    level: float = 0.95,
    resamples: int = 999,
    seed: int = 0,
) -> Interval:
    """A confidence interval for integration by block bootstrap over the layers.

    Blocks of L^(1/3) neighbouring layers (circular) are drawn with replacement, because neighbours are alike. The
    spread of the resampled mean, widened for the number of blocks, is multiplied by Student's quantile. The bootstrap
    draws layers and not pieces of the window, because the largest box holds a quarter of the window: a piece does not
    contain the scales that the exponent is read from.

    I +- t s sqrt(b / (b - 1)), with b = L^(2/3) blocks, s the standard deviation of resampled means and t Student's
    quantile at 1.5 (b - 1) degrees of freedom.

    Args:
        signals: (layers, steps).
        estimator: the estimator of the exponents.
        level: probability with which intervals cover the expected integration.
        resamples: the number of bootstrap draws.
        seed: the seed of the draws.

    Returns:
        bounds in the unit of the exponent; NaN with fewer than 4 usable layers.

    How to read it: two networks whose intervals are far apart differ by more than their layers do among themselves.

    What it does not show: the estimator's bias, which is the same in every layer (see the table in the
    documentation), nor what a factor common to all layers does to all exponents at once.

    Raises:
        ValueError: not (layers, steps) or not real; a level outside (0, 1); an unknown estimator.

    References:
        Kuensch 1989, doi 10.1214/aos/1176347265.

    Examples:
        >>> import numpy as np
        >>> found = integration_interval(np.random.default_rng(0).normal(size=(40, 512)))
        >>> found.low < 0.5 < found.high, round(found.high - found.low, 1)
        (True, 0.0)
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level!r} must lie between 0 and 1.")
    if estimator not in ESTIMATORS:
        raise unknown_choice("estimator", estimator, ESTIMATORS)
    exponents = exponents_of(standardise(_window(signals), order=1)[0], estimator)
    exponents = exponents[np.isfinite(exponents)]
    layers = len(exponents)
    if layers < MIN_LAYERS:
        return Interval(low=np.nan, high=np.nan)
    length = round(layers ** (1 / 3))
    blocks = layers / length
    sums = np.concatenate([exponents, exponents[: length - 1]])
    means = np.lib.stride_tricks.sliding_window_view(sums, length).mean(axis=1)
    drawn = np.random.default_rng(seed).integers(layers, size=(resamples, round(blocks)))
    error = means[drawn].mean(axis=1).std() * np.sqrt(blocks / (blocks - 1))
    # Overlapping blocks know 1.5 times as much of the spread as adjacent ones (Kuensch 1989).
    reach = error * stdtrit(1.5 * (blocks - 1), (1 + level) / 2)
    centre = exponents.mean()
    return Interval(low=float(centre - reach), high=float(centre + reach))


@dataclass(frozen=True, kw_only=True)
class SurrogateTests:
    """How often chance alone gives as much: p-values in (0, 1], NaN where undefined.

    Attributes:
        coupling_p: p-value of the synchrony, among layers whose phases are randomised independently. If it is small,
            the layers are coupled.
        metastability_p: p-value of the metastability, among layers whose phases are all randomised alike, which keeps
            every linear relation. If it is small, coherence comes and goes more than linear coupling explains.
    """

    coupling_p: float
    metastability_p: float


def surrogate_tests(signals: ArrayLike, *, surrogates: int = 99, seed: int = 0) -> SurrogateTests:
    """Are the layers coupled at all, and is their metastability more than linear coupling gives?

    Each layer's Fourier amplitudes are kept, and random angles are added to its phases. The angles are drawn for each
    layer alone (no coupling is left) or once for all layers (auto- and cross-spectra stay as they are). p = (1 +
    surrogates at least as extreme) / (1 + surrogates).

    Args:
        signals: (layers, steps).
        surrogates: the number of surrogates of each kind; 99 give p-values down to 0.01.
        seed: the seed of the random phases.

    How to read it: a small p-value speaks against chance alone; a large one is no proof that there is nothing.

    What it does not show: whether the window is stationary. A window that is not, such as a transient that all layers
    share, also gives small p-values in either test, because surrogates are stationary.

    Returns:
        both p-values; NaN with fewer than two usable layers or fewer than 8 steps.

    Raises:
        ValueError: not (layers, steps) or not real; fewer than 1 surrogate.

    References:
        Theiler et al. 1992, doi 10.1016/0167-2789(92)90102-S; Prichard and Theiler 1994, doi
        10.1103/PhysRevLett.73.951.

    Examples:
        >>> import numpy as np
        >>> layers = np.random.default_rng(0).normal(size=(10, 256))
        >>> surrogate_tests(layers + 2 * layers[0]).coupling_p
        0.01
    """
    if surrogates < 1:
        raise ValueError(f"surrogates={surrogates!r} must be at least 1.")
    detrended, deviation = standardise(_window(signals), order=1)
    usable = np.isfinite(deviation)
    layers, steps = int(usable.sum()), detrended.shape[-1]
    if layers < 2 or steps < MIN_STEPS:
        return SurrogateTests(coupling_p=np.nan, metastability_p=np.nan)
    detrended = detrended[usable]
    observed = phasors(detrended, np.ones(layers, dtype=bool)).order()
    spectrum = scipy.fft.rfft(detrended.astype(np.float32))
    rng = np.random.default_rng(seed)
    independent = _surrogate_orders(rng, spectrum, steps, surrogates, common=False)
    common = _surrogate_orders(rng, spectrum, steps, surrogates, common=True)
    return SurrogateTests(
        coupling_p=_p_value(independent.mean(axis=1), observed.mean()),
        metastability_p=_p_value(common.std(axis=1), observed.std()),
    )


def _window(signals: ArrayLike) -> Real:
    values = as_signals(signals, layers=True)
    if values.ndim != 2:
        raise ValueError(f"signals must have shape (layers, steps), not {values.shape}.")
    return values


def _p_value(chance: Array, observed: float) -> float:
    return float((1 + (chance >= observed).sum()) / (1 + len(chance)))


@lru_cache(maxsize=1)
def _unit_circle() -> NDArray[np.complex64]:
    return np.exp(2j * np.pi * np.arange(PHASES) / PHASES).astype(np.complex64)


def _surrogate_orders(
    rng: np.random.Generator, spectrum: NDArray[np.complex64], steps: int, surrogates: int, *, common: bool
) -> Array:
    """(surrogates, steps less edges) order parameters of phase-randomised layers, in single precision."""
    layers, frequencies = spectrum.shape
    keep = slice(edge(steps), steps - edge(steps))
    orders = np.empty((surrogates, keep.stop - keep.start))
    chunk = max(1, CHUNK_SAMPLES // (layers * steps))
    for start in range(0, surrogates, chunk):
        count = min(chunk, surrogates - start)
        drawn = rng.integers(PHASES, size=(count, 1 if common else layers, frequencies), dtype=np.uint16)
        turn = _unit_circle()[drawn]
        # An analytic signal has positive frequencies only: one inverse transform gives signal and Hilbert part.
        one_sided = np.zeros((count, layers, steps), dtype=np.complex64)
        np.multiply(spectrum, turn, out=one_sided[..., :frequencies])
        one_sided[..., 0] = 0
        if steps % 2 == 0:
            one_sided[..., frequencies - 1] /= 2
        analytic = scipy.fft.ifft(one_sided, overwrite_x=True)[..., keep]
        length = analytic.real**2  # np.abs guards against overflow and takes three times as long
        length += analytic.imag**2
        np.maximum(length, np.finfo(np.float32).tiny, out=length)
        analytic *= 1 / np.sqrt(length)
        orders[start : start + count] = np.abs(analytic.mean(axis=1))
    return orders
