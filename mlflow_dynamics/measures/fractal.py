"""Detrended fluctuation analysis: the scaling exponent of each of many short signals."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from mlflow_dynamics.measures.lines import line_residuals
from mlflow_dynamics.measures.signals import Array, as_signals, standardise, trend_basis

MIN_BOX: Final = 4
"""The smallest box: a line through fewer than 4 points leaves next to nothing to measure."""

SHORT_STEPS: Final = 128
"""Below this many steps the largest box is T/2, not T/4: otherwise too few sizes are left to fit a slope."""

BOXES_PER_OCTAVE: Final = 4

MIN_SIZES: Final = 3
"""A slope through fewer sizes has no residual: nothing would tell whether there is a slope."""

FEW_STEPS: Final = 128
"""Up to here one product with a matrix of all boxes is faster than going through the sizes."""

CACHED: Final = 2**15
"""So many numbers stay in a core's cache between two passes over them."""

NARROW: Final = 32
"""Up to this size, products with two boxes at a time are about twice as fast as with one: a line has but 2 columns."""

CANCELLATION: Final = 1e-5
"""Below this ratio of residual to energy, energy minus projections has lost too many digits (F to about 1e-10)."""


@lru_cache(maxsize=64)
def default_box_sizes(steps: int) -> tuple[int, ...]:
    """Log-spaced box sizes from 4 to T/4 (T/2 where T < 128), about four an octave."""
    largest = steps // 2 if steps < SHORT_STEPS else steps // 4
    if largest < MIN_BOX:
        return ()
    count = int(np.ceil(np.log2(largest / MIN_BOX) * BOXES_PER_OCTAVE)) + 1
    return tuple(np.unique(np.geomspace(MIN_BOX, largest, count).round().astype(int)).tolist())


def fluctuations(
    signals: ArrayLike,
    *,
    box_sizes: tuple[int, ...] | None = None,
    order: int = 1,
    overlap: bool = True,
    corrected: bool = True,
) -> tuple[NDArray[np.int64], Array]:
    """The fluctuation function F(n): what is left of a signal's profile after detrending boxes of n steps.

    y(t) = sum over s <= t of (x(s) - mean x);  F(n)^2 = mean over boxes and steps of (y - its polynomial fit)^2.

    Args:
        signals: (..., steps).
        box_sizes: n in steps, each at least order + 2 and at most `steps`; None takes `default_box_sizes`.
        order: degree of the polynomial removed in each box.
        overlap: boxes start every n // 2 steps; otherwise they lie side by side.
        corrected: divide out the bias of small boxes, exactly for white noise (order 1 only): for unit
            variance E[F^2] = (n^2 - 4) / (15 n), where an unbiased slope asks for n / 15.

    Returns:
        box sizes (sizes,) and F (..., sizes) in the signals' unit, 0 or more; NaN for signals that are constant or
        not finite.

    How to read it: a straight line in log F over log n is scaling, and its slope the exponent (see `dfa`); a bend
    is a time scale, such as the period of a sine. What it does not show: scales above the largest box, and of the
    largest boxes, of which a few fit, only a rough value.

    Raises:
        ValueError: signals without a steps axis or not real; a box size that does not fit; a negative order.

    References:
        Peng et al. 1994, doi 10.1103/PhysRevE.49.1685; Kantelhardt et al. 2001, doi
        10.1016/S0378-4371(01)00144-3 (the bias of small boxes).

    Example:
        >>> import numpy as np
        >>> sizes, f = fluctuations(np.random.default_rng(0).normal(size=100_000), box_sizes=(4, 16, 64))
        >>> np.round(f**2 / (sizes / 15), 1)
        array([1., 1., 1.])
    """
    box, relative, deviation = _in_deviations(signals, box_sizes, order, overlap, corrected)
    with np.errstate(over="ignore", under="ignore"):
        return box, relative * deviation[..., None]


def _in_deviations(
    signals: ArrayLike, box_sizes: tuple[int, ...] | None, order: int, overlap: bool, corrected: bool
) -> tuple[NDArray[np.int64], Array, Array]:
    """Box sizes, F (..., sizes) in units of each signal's standard deviation, and that (...,), NaN if unusable."""
    values = as_signals(signals, layers=False)
    steps = values.shape[-1]
    if order < 0:
        raise ValueError(f"order={order!r} must be 0 or more.")
    sizes = default_box_sizes(steps) if box_sizes is None else tuple(int(n) for n in box_sizes)
    if box_sizes is None:
        sizes = tuple(n for n in sizes if n >= order + 2)
    if any(n < order + 2 or n > steps for n in sizes):
        raise ValueError(
            f"box_sizes={sizes} must lie between order + 2 = {order + 2} and the {steps} steps of signals of "
            f"shape {values.shape}."
        )
    centred, deviation = standardise(values, order=0)
    squares = _mean_squares(centred, sizes, order, overlap)
    box = np.asarray(sizes, dtype=np.int64)
    if corrected and order == 1:
        squares *= box**2 / (box**2 - 4.0)
    return box, np.sqrt(squares), deviation


def dfa(
    signals: ArrayLike,
    *,
    box_sizes: tuple[int, ...] | None = None,
    order: int = 1,
    overlap: bool = True,
    corrected: bool = True,
    weighted: bool = True,
) -> Array:
    """The exponent of detrended fluctuation analysis: the slope of log F(n) on log n.

    alpha = sum w (log n - m) log F / sum w (log n - m)^2,  m = sum w log n / sum w,  w = T/n (or 1).

    Args:
        signals: (..., steps).
        weighted: weight each size by its number of boxes, T/n.
        box_sizes, order, overlap, corrected: see `fluctuations`.

    Returns:
        (...,) exponents, about 0 to 2. NaN where a signal is constant or not finite, where fewer than 3 box sizes
        fit (fewer than 12 steps by default), or where it is so regular that some F(n) is 0.

    How to read it: 0.5 white noise, below it alternation, above it persistence, 1 for 1/f noise, 1.5 Brownian
    motion (1.46 at 4,096 steps with the defaults: the correction is exact for white noise only). What it does not
    show: proof of long memory. AR(1) noise with coefficient 0.5 gives 0.81 at 64 points, because the slope over
    few sizes cannot tell a slow decay of correlation from a power law.

    Raises:
        ValueError: as for `fluctuations`.

    References:
        Peng et al. 1994, doi 10.1103/PhysRevE.49.1685.

    Example:
        >>> import numpy as np
        >>> noise = np.random.default_rng(0).normal(size=(2, 20_000))
        >>> noise[1] = np.cumsum(noise[1])
        >>> np.round(dfa(noise), 1)
        array([0.5, 1.5])
    """
    sizes, f, deviation = _in_deviations(signals, box_sizes, order, overlap, corrected)
    if len(sizes) < MIN_SIZES:
        return np.full(f.shape[:-1], np.nan)[()]
    weights = slope_weights(tuple(sizes.tolist()), weighted)
    positive = np.where((f > 0) & np.isfinite(deviation)[..., None], f, np.nan)
    exponents: Array = (np.log(positive) @ weights)[()]
    return exponents


@lru_cache(maxsize=64)
def slope_weights(sizes: tuple[int, ...], weighted: bool) -> Array:
    """(sizes,) what log F is multiplied with to give the least-squares slope on log n."""
    x = np.log(sizes)
    weights = 1.0 / np.asarray(sizes) if weighted else np.ones(len(sizes))
    weights = weights / weights.sum()
    centred = x - weights @ x
    slope: Array = weights * centred / (weights @ centred**2)
    return slope


def _mean_squares(centred: Array, sizes: tuple[int, ...], order: int, overlap: bool) -> Array:
    """(..., sizes) mean squared residual of the profiles of centred signals (..., steps) in boxes of each size.

    The signals are overwritten: another large array would cost as much as the sums, in pages the kernel zeroes.
    """
    steps = centred.shape[-1]
    flat = centred.reshape(math.prod(centred.shape[:-1]), steps)
    if order != 1 or not sizes:
        profile = np.cumsum(flat, axis=1, out=flat)
        squares = np.empty((len(flat), len(sizes)))
        for i, size in enumerate(sizes):
            squares[:, i] = _residual_square(profile, size, order, overlap)
    elif steps <= FEW_STEPS and _few_small_boxes(steps, sizes, overlap):
        operator, weights = _residual_product(steps, sizes, overlap)
        found = flat @ operator
        found *= found
        squares = found @ weights
    elif steps <= FEW_STEPS:
        operator, weights = _products(steps, sizes, overlap)
        found = flat @ operator
        profile = found[:, :steps]
        parts = (found * found) @ weights
        squares = _difference(profile, sizes, overlap, parts[:, : len(sizes)], parts[:, len(sizes) :])
    elif overlap:
        squares = line_residuals(np.cumsum(flat, axis=1, out=flat), sizes, overlap=True)
    else:
        profile = np.cumsum(flat, axis=1, out=flat)
        taken = np.stack([_projection_square(profile, size) for size in sizes], axis=1)
        squares = _difference(profile, sizes, overlap, _energy(profile, sizes), taken)
    return squares.reshape(*centred.shape[:-1], len(sizes))


def _difference(profile: Array, sizes: tuple[int, ...], overlap: bool, energy: Array, taken: Array) -> Array:
    """(signals, sizes) energies less what lines take up, anew from the lines where that has lost too many digits."""
    squares = energy - taken
    lost = (squares < CANCELLATION * energy).any(axis=1)
    if lost.any():
        squares[lost] = line_residuals(profile[lost], sizes, overlap=overlap)
    return squares


def _starts(steps: int, size: int, overlap: bool) -> range:
    """Where the boxes of a size begin."""
    return range(0, steps - size + 1, size // 2 if overlap else size)


@lru_cache(maxsize=64)
def _few_small_boxes(steps: int, sizes: tuple[int, ...], overlap: bool) -> bool:
    """Whether the residuals' coordinates, n - 2 a box, are fewer than the profile's and two of a line a box."""
    return sum(len(_starts(steps, size, overlap)) * (size - 4) for size in sizes) < steps


@lru_cache(maxsize=16)
def _residual_product(steps: int, sizes: tuple[int, ...], overlap: bool) -> tuple[Array, Array]:
    """Two matrices that stand for all boxes where these are few and small.

    Centred signals (signals, steps) times the first are coordinates of what lines leave of the profile in every
    box; the squares of these times the second are the mean squared residuals (signals, sizes).
    """
    left = [scipy.linalg.null_space(trend_basis(size, 1)).T for size in sizes]
    return _coordinates_in_boxes(steps, left, overlap)


@lru_cache(maxsize=16)
def _products(steps: int, sizes: tuple[int, ...], overlap: bool) -> tuple[Array, Array]:
    """Two matrices that stand for all boxes of short signals, where many small operations cost more than one large.

    Centred signals (signals, steps) times the first are their profiles beside the profiles' coordinates on the
    straight lines of every box of every size; the squares of these times the second are energies and what lines
    take up, each (signals, sizes).
    """
    lines, taken = _coordinates_in_boxes(steps, [trend_basis(size, 1) for size in sizes], overlap)
    operator = np.concatenate([_cumulative(steps), lines], axis=1)
    return operator, scipy.linalg.block_diag(_coverage(steps, sizes, overlap), taken)


def _coordinates_in_boxes(steps: int, bases: list[Array], overlap: bool) -> tuple[Array, Array]:
    """Two matrices for the profiles' coordinates in every box, given one basis (rows, n) for each size n.

    Centred signals (signals, steps) times the first are the coordinates; the squares of these times the second are
    the mean squares that the bases take up (signals, sizes).
    """
    rows, weights = [], []
    for i, basis in enumerate(bases):
        count, size = basis.shape
        starts = _starts(steps, size, overlap)
        for start in starts:
            row = np.zeros((count, steps))
            row[:, start : start + size] = basis
            rows.append(row)
        weight = np.zeros((count * len(starts), len(bases)))
        weight[:, i] = 1 / (len(starts) * size)
        weights.append(weight)
    return _cumulative(steps) @ np.concatenate(rows).T, np.concatenate(weights)


def _cumulative(steps: int) -> Array:
    """(steps, steps) what signals are multiplied with to give their profiles."""
    return np.triu(np.ones((steps, steps)))


def _energy(profile: Array, sizes: tuple[int, ...]) -> Array:
    """(signals, sizes) mean square of the profiles in boxes side by side, some signals at a time to stay in cache."""
    coverage = _coverage(profile.shape[1], sizes, False)
    rows = max(1, CACHED // profile.shape[1])
    parts = [profile[i : i + rows] ** 2 @ coverage for i in range(0, len(profile), rows)]
    return np.concatenate(parts) if parts else np.empty((0, len(sizes)))


@lru_cache(maxsize=16)
def _coverage(steps: int, sizes: tuple[int, ...], overlap: bool) -> Array:
    """(steps, sizes) in how many boxes a step lies, over boxes times n: energies of all sizes as one product."""
    coverage = np.zeros((steps, len(sizes)))
    for i, size in enumerate(sizes):
        starts = _starts(steps, size, overlap)
        for start in starts:
            coverage[start : start + size, i] += 1
        coverage[:, i] /= len(starts) * size
    coverage.setflags(write=False)
    return coverage


def _projection_square(profile: Array, size: int) -> Array:
    """(signals,) mean square that straight lines take up in boxes side by side."""
    boxes = profile.shape[1] // size
    if size > NARROW:
        return _taken(profile[:, : size * boxes], trend_basis(size, 1)) / (boxes * size)
    paired = boxes - boxes % 2
    taken = _taken(profile[:, : size * paired], _basis_of_two(size))
    if paired < boxes:
        taken += _taken(profile[:, size * paired : size * boxes], trend_basis(size, 1))
    return taken / (boxes * size)


def _taken(profile: Array, basis: Array) -> Array:
    """(signals,) sum of squared coordinates on the basis (rows, n) in every n steps of the profile."""
    signals, steps = profile.shape
    rows, size = basis.shape
    taken = profile.reshape(signals, steps // size, size) @ basis.T
    taken = taken.reshape(signals, steps // size * rows)
    energy: Array = np.vecdot(taken, taken)
    return energy


@lru_cache(maxsize=64)
def _basis_of_two(size: int) -> Array:
    """(4, 2 * size) the straight lines of two boxes side by side."""
    return scipy.linalg.block_diag(trend_basis(size, 1), trend_basis(size, 1))


def _residual_square(profile: Array, size: int, order: int, overlap: bool) -> Array:
    """(signals,) mean squared residual, box by box, about polynomials of any order."""
    stride = size // 2 if overlap else size
    boxes = np.lib.stride_tricks.sliding_window_view(profile, size, axis=-1)[:, ::stride]
    basis = trend_basis(size, order)
    local = boxes - boxes[..., size // 2, None]
    local -= (local @ basis.T) @ basis
    result: Array = np.einsum("lbn,lbn->l", local, local) / (boxes.shape[1] * size)
    return result
