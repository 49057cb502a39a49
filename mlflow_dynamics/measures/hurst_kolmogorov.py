"""The Hurst-Kolmogorov estimate: the posterior of H under fractional Gaussian noise, for short signals."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import numpy as np
import scipy.fft
from numpy.typing import ArrayLike, NDArray

from mlflow_dynamics.measures.signals import Array, Mask, as_signals, standardise, trend_basis

LOWEST: Final = 0.005
HIGHEST: Final = 0.995
"""The range of H searched. The model ends at 0 and 1; the two bounds keep its covariance well conditioned."""

NODES: Final = 40
"""Chebyshev nodes in H at which the likelihood is computed; between them it is a polynomial (see the tests)."""

GRID: Final = np.linspace(LOWEST, HIGHEST, 991)

EXACT_STEPS: Final = 1024
"""Longer signals take the Whittle likelihood: the exact one costs steps^2 to prepare and 80 FFTs for each signal."""

MIN_STEPS: Final = 8
"""Below this many steps the posterior is the prior in all but name."""

Likelihood = Literal["auto", "exact", "whittle"]


@dataclass(frozen=True, kw_only=True)
class HurstKolmogorov:
    """The posterior of each signal's Hurst exponent H, as arrays (...,) over the signals; NaN where undefined.

    Attributes:
        exponent: posterior mean of H, between 0 and 1.
        low: lower bound of the central credible interval.
        high: upper bound of that interval.
        at_edge: the likelihood is highest at an end of the range: fractional Gaussian noise is then most likely
            the wrong model (at 1: the signal wanders, as random walks do; see `dfa`, which sees beyond 1).
    """

    exponent: Array
    low: Array
    high: Array
    at_edge: Mask


def hurst_kolmogorov(
    signals: ArrayLike, *, detrend: bool = True, level: float = 0.95, likelihood: Likelihood = "auto"
) -> HurstKolmogorov:
    """The Hurst exponent of each signal as its posterior under fractional Gaussian noise.

    x = a + b t + s e, where e has the covariance of fractional Gaussian noise,
    g(k) = (|k+1|^2H - 2|k|^2H + |k-1|^2H) / 2. The mean a, the slope b (flat priors) and the scale s (prior 1/s)
    are integrated out exactly, which leaves, with H flat between 0 and 1,

        log p(H | x) = -(log|R| + log|X' R^-1 X| + (T - p) log S(H)) / 2,   S = the generalised residual square.

    The estimate is the mean of that posterior; at 32 points its error is smaller than the mode's.

    Args:
        signals: (..., steps).
        detrend: integrate out a straight line; False integrates out the mean alone.
        level: the probability that H lies in the interval.
        likelihood: "exact", "whittle" (frequency domain, for long signals), or "auto": exact to 1,024 steps.

    Returns:
        exponent, low, high (...,) in (0, 1), and at_edge. The numbers are NaN (and at_edge is False) where the signal
        is constant, not finite or shorter than 8 steps.

    How to read it: 0.5 is no memory, more is persistence, less is alternation. What it does not show: anything
    that is not fractional Gaussian noise. A random walk, 1/f noise or AR(1) with a large coefficient all end at
    the upper edge; a large gap between this and `dfa` is a sign of non-stationarity.

    Raises:
        ValueError: signals without a steps axis or not real; `level` outside (0, 1); an unknown likelihood.

    References:
        Tyralis and Koutsoyiannis 2011, doi 10.1007/s00477-010-0408-x; Likens et al. 2023, doi
        10.48550/arXiv.2301.11262.

    Examples:
        >>> import numpy as np
        >>> noise = np.random.default_rng(1).normal(size=64)
        >>> found = hurst_kolmogorov(noise)
        >>> bool(found.low < 0.5 < found.high), bool(found.at_edge)
        (True, False)
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level!r} must lie between 0 and 1.")
    if likelihood not in ("auto", "exact", "whittle"):
        raise ValueError(f"likelihood={likelihood!r} is not known; accepted: auto, exact, whittle.")
    values = as_signals(signals, layers=False)
    shape, steps = values.shape[:-1], values.shape[-1]
    order = 1 if detrend else 0
    detrended, deviation = standardise(values, order=order)
    usable = np.isfinite(deviation) & (steps >= MIN_STEPS)
    exponent, low, high = (np.full(shape, np.nan) for _ in range(3))
    at_edge = np.zeros(shape, dtype=bool)
    if usable.any():
        exact = likelihood == "exact" or (likelihood == "auto" and steps <= EXACT_STEPS)
        posterior = (_exact if exact else _whittle)(detrended[usable], order)
        exponent[usable], low[usable], high[usable], at_edge[usable] = _summary(posterior, level)
    return HurstKolmogorov(exponent=exponent, low=low, high=high, at_edge=at_edge)


def _summary(at_nodes: Array, level: float) -> tuple[Array, Array, Array, Mask]:
    """Posterior mean, interval and edge flag from log posteriors (signals, nodes)."""
    posterior = at_nodes @ _interpolation()
    mode = posterior.argmax(axis=-1)
    density = np.exp(posterior - posterior.max(axis=-1, keepdims=True))
    density[:, [0, -1]] /= 2  # trapezoid rule
    cumulative = np.cumsum(density, axis=-1)
    total = cumulative[:, -1:]
    tail = (1 - level) / 2
    bounds = [np.minimum((cumulative < q * total).sum(axis=-1), len(GRID) - 1) for q in (tail, 1 - tail)]
    mean = density @ GRID / total[:, 0]
    return mean, GRID[bounds[0]], GRID[bounds[1]], (mode == 0) | (mode == len(GRID) - 1)


@lru_cache(maxsize=1)
def _nodes() -> Array:
    """(NODES,) Chebyshev points of the first kind over the range of H."""
    angles = (np.arange(NODES) + 0.5) * np.pi / NODES
    return (LOWEST + HIGHEST) / 2 - (HIGHEST - LOWEST) / 2 * np.cos(angles)


@lru_cache(maxsize=1)
def _interpolation() -> Array:
    """(NODES, GRID) polynomial interpolation from the nodes to the grid, in barycentric form."""
    weights = (-1.0) ** np.arange(NODES) * np.sin((np.arange(NODES) + 0.5) * np.pi / NODES)
    apart = GRID[None, :] - _nodes()[:, None]
    hit = np.abs(apart) < 1e-14
    terms = weights[:, None] / np.where(hit, 1.0, apart)
    matrix = np.where(hit.any(axis=0), hit, terms / terms.sum(axis=0))
    return np.asarray(matrix, dtype=np.float64)


@dataclass(frozen=True)
class _ExactPlan:
    """R(H)^-1 of every node in Gohberg-Semencul form: two triangular Toeplitz factors, as spectra."""

    length: int
    factors: NDArray[np.complex128]  # (nodes, 2, length/2 + 1), conjugated, over sqrt(first element)
    trend: Array  # (nodes, 2, order + 1, steps): the factors times the trend's polynomials
    gram_inverse: Array  # (nodes, order + 1, order + 1)
    constant: Array  # (nodes,) log|R| + log|X' R^-1 X|


@lru_cache(maxsize=16)
def _exact_plan(steps: int, order: int) -> _ExactPlan:
    column, log_determinant = _toeplitz_inverse(fgn_autocovariance(_nodes(), steps))
    length = scipy.fft.next_fast_len(2 * steps, real=True)
    factors = np.zeros((NODES, 2, steps))
    factors[:, 0] = column
    factors[:, 1, 1:] = column[:, :0:-1]
    factors /= np.sqrt(column[:, :1, None])
    spectra = scipy.fft.rfft(factors, length).conj()
    basis = scipy.fft.rfft(trend_basis(steps, order), length)
    trend = scipy.fft.irfft(spectra[:, :, None] * basis, length)[..., :steps]
    # Transposed: NumPy before 2.0 has no `mT`.
    first, second = ((part, part.swapaxes(-1, -2)) for part in (trend[:, 0], trend[:, 1]))
    gram = first[0] @ first[1] - second[0] @ second[1]
    constant = log_determinant + np.linalg.slogdet(gram)[1]
    return _ExactPlan(length, spectra, trend, np.linalg.inv(gram), constant)


def _exact(signals: Array, order: int) -> Array:
    """(signals, nodes) log posterior up to a constant, with the mean (and line) and the scale integrated out."""
    steps = signals.shape[-1]
    plan = _exact_plan(steps, order)
    spectrum = scipy.fft.rfft(signals, plan.length)
    squares = np.empty((len(signals), NODES))
    for node in range(NODES):
        first, second = (
            scipy.fft.irfft(factor * spectrum, plan.length)[:, :steps] for factor in plan.factors[node]
        )
        cross = first @ plan.trend[node, 0].T - second @ plan.trend[node, 1].T
        squares[:, node] = np.einsum("lt,lt->l", first, first) - np.einsum("lt,lt->l", second, second)
        squares[:, node] -= np.einsum("li,ij,lj->l", cross, plan.gram_inverse[node], cross)
    result: Array = -0.5 * (plan.constant + (steps - order - 1) * np.log(squares))
    return result


def fgn_autocovariance(hurst: ArrayLike, steps: int) -> Array:
    """(..., steps) autocovariance of unit fractional Gaussian noise at lags 0 to steps - 1, for H (...,)."""
    lags = np.arange(steps + 1, dtype=np.float64)
    powers = lags ** (2 * np.asarray(hurst, dtype=np.float64)[..., None])
    after, before = powers[..., 1:], np.concatenate([powers[..., 1:2], powers[..., :-2]], axis=-1)
    autocovariance: Array = 0.5 * (after - 2 * powers[..., :-1] + before)
    return autocovariance


def _toeplitz_inverse(autocovariance: Array) -> tuple[Array, Array]:
    """First column of R^-1 (nodes, steps) and log|R| (nodes,) by the Levinson-Durbin recursion."""
    nodes, steps = autocovariance.shape
    predictor = np.zeros((nodes, steps - 1))
    variance = autocovariance[:, 0].copy()
    log_determinant = np.log(variance)
    for lag in range(1, steps):
        known = predictor[:, : lag - 1]
        error = autocovariance[:, lag] - np.einsum("nj,nj->n", known, autocovariance[:, lag - 1 : 0 : -1])
        reflection = error / variance
        known -= reflection[:, None] * known[:, ::-1].copy()
        predictor[:, lag - 1] = reflection
        variance *= 1 - reflection**2
        log_determinant += np.log(variance)
    column = np.concatenate([np.ones((nodes, 1)), -predictor], axis=1) / variance[:, None]
    return column, log_determinant


@lru_cache(maxsize=8)
def _spectral_plan(steps: int) -> tuple[Array, Array]:
    """1 / f (frequencies, nodes) of fractional Gaussian noise up to a constant, and its sum of log f (nodes,)."""
    frequency = 2 * np.pi * np.arange(1, (steps - 1) // 2 + 1)[:, None] / steps
    power = -2 * _nodes() - 1
    density = frequency**power
    terms = 10
    for fold in range(1, terms + 1):
        density += (2 * np.pi * fold + frequency) ** power + (2 * np.pi * fold - frequency) ** power
    # The rest of the sum over aliases, as an integral (midpoint rule).
    edge = 2 * np.pi * (terms + 0.5)
    density += ((edge + frequency) ** (power + 1) + (edge - frequency) ** (power + 1)) / (
        -2 * np.pi * (power + 1)
    )
    density *= 1 - np.cos(frequency)
    return 1 / density, np.log(density).sum(axis=0)


def _whittle(signals: Array, order: int) -> Array:
    """(signals, nodes) Whittle's log posterior, the periodogram against the spectrum; the trend is removed already."""
    inverse, log_density = _spectral_plan(signals.shape[-1])
    count = len(inverse)
    periodogram = np.abs(scipy.fft.rfft(signals)[:, 1 : count + 1]) ** 2
    result: Array = -log_density - count * np.log(periodogram @ inverse)
    return result
