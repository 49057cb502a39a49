"""Detrended fluctuation analysis: the scaling exponent of each of many short signals."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlflow_dynamics.measures.signals import Array, as_signals, standardise, trend_basis

BLOCKS: Final = (2, 3)
"""Box sizes are 2, 4, 8, ... times these: 4, 6, 8, 12, 16, 24, ... steps, two sizes an octave. Four sizes an octave err
as much (on fractional Gaussian noise 0.1733 instead of 0.1737 at 32 steps, 0.0381 instead of 0.0379 at 512), because
neighbouring sizes agree."""

SHORT_STEPS: Final = 128
"""Below this many steps the largest box is T/2, not T/4: otherwise too few sizes are left to fit a slope."""

MIN_SIZES: Final = 3
"""The fewest box sizes for a slope: a slope through fewer has no residual to tell whether there is a slope."""

MATRIX_STEPS: Final = 256
"""Up to this many steps one product with a matrix is faster than going from size to size."""


@lru_cache(maxsize=64)
def default_box_sizes(steps: int) -> tuple[int, ...]:
    """4, 6 and their doublings up to T/4 (T/2 where T < 128)."""
    largest = steps // 2 if steps < SHORT_STEPS else steps // 4
    doublings = range(1, max(largest, 1).bit_length())
    return tuple(sorted(size for k in doublings for block in BLOCKS if (size := block << k) <= largest))


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
            variance E[F^2] = (n^2 - 4) / (15 n), where an unbiased slope needs n / 15.

    Returns:
        box sizes (sizes,) and F (..., sizes) in the signals' unit, 0 or more; NaN for signals that are constant or
        not finite.

    How to read it: a straight line in log F over log n is scaling, and its slope the exponent (see `dfa`); a bend
    is a time scale, such as the period of a sine. What it does not show: scales above the largest box. F is rough for
    the largest boxes, because only a few of them fit.

    Raises:
        ValueError: signals without a steps axis or not real; a box size that does not fit; a negative order.

    References:
        Peng et al. 1994, doi 10.1103/PhysRevE.49.1685; Kantelhardt et al. 2001, doi
        10.1016/S0378-4371(01)00144-3 (the bias of small boxes).

    Examples:
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
    """Box sizes, F (..., sizes) in units of each signal's deviation, and that deviation (...,), NaN if unusable."""
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
    if sizes and box_sizes is None and order == 1 and overlap:
        squares = _doubling_boxes(centred, sizes)
    else:
        profile = np.cumsum(centred.reshape(math.prod(centred.shape[:-1]), steps), axis=1)
        squares = np.empty((len(profile), len(sizes)))
        for i, size in enumerate(sizes):
            squares[:, i] = _residual_squares(profile, size, order, overlap)
        squares = squares.reshape(*centred.shape[:-1], len(sizes))
    box = np.asarray(sizes, dtype=np.int64)
    if corrected and order == 1:
        squares *= _correction(sizes)
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
        box_sizes: as for `fluctuations`.
        order: as for `fluctuations`.
        overlap: as for `fluctuations`.
        corrected: as for `fluctuations`.

    Returns:
        (...,) exponents, about 0 to 2. NaN where a signal is constant or not finite, where fewer than 3 box sizes
        fit (fewer than 16 steps by default), or where it is so regular that some F(n) is 0.

    How to read it: 0.5 is white noise, less is alternation, more is persistence; 1 is 1/f noise, 1.5 Brownian
    motion (1.46 at 4,096 steps with the defaults: the correction is exact for white noise only). What it does not
    show: proof of long memory. AR(1) noise with coefficient 0.5 gives 0.81 at 64 points, because the slope over
    few sizes cannot tell a slow decay of correlation from a power law.

    Raises:
        ValueError: as for `fluctuations`.

    References:
        Peng et al. 1994, doi 10.1103/PhysRevE.49.1685.

    Examples:
        >>> import numpy as np
        >>> noise = np.random.default_rng(0).normal(size=(2, 20_000))
        >>> noise[1] = np.cumsum(noise[1])
        >>> np.round(dfa(noise), 1)
        array([0.5, 1.5])
    """
    sizes, f, deviation = _in_deviations(signals, box_sizes, order, overlap, corrected)
    f = np.where(np.isfinite(deviation)[..., None], f, np.nan)
    return _slope(f, tuple(sizes.tolist()), weighted)


def dfa_of_standardised(signals: Array) -> Array:
    """`dfa`, with its defaults, of signals (..., steps) that `standardise` has returned; NaN for a signal of zeros."""
    sizes = default_box_sizes(signals.shape[-1])
    if len(sizes) < MIN_SIZES:
        return np.full(signals.shape[:-1], np.nan)[()]
    return _slope(np.sqrt(_doubling_boxes(signals, sizes) * _correction(sizes)), sizes, weighted=True)


def _correction(sizes: tuple[int, ...]) -> Array:
    """(sizes,) factors of F^2 with which it is n / 15 for white noise."""
    box = np.asarray(sizes, dtype=np.float64)
    return box**2 / (box**2 - 4.0)


def _slope(f: Array, sizes: tuple[int, ...], weighted: bool) -> Array:
    """(...,) least-squares slopes of log F (..., sizes) on log n; NaN with too few sizes, or where some F is 0."""
    if len(sizes) < MIN_SIZES:
        return np.full(f.shape[:-1], np.nan)[()]
    positive = np.where(f > 0, f, np.nan)
    exponents: Array = (np.log(positive) @ _slope_weights(sizes, weighted))[()]
    return exponents


@lru_cache(maxsize=64)
def _slope_weights(sizes: tuple[int, ...], weighted: bool) -> Array:
    """(sizes,) weights whose product with log F is the least-squares slope on log n."""
    x = np.log(sizes)
    weights = 1.0 / np.asarray(sizes) if weighted else np.ones(len(sizes))
    weights = weights / weights.sum()
    centred = x - weights @ x
    slope: Array = weights * centred / (weights @ centred**2)
    return slope


def _residual_squares(profile: Array, size: int, order: int, overlap: bool) -> Array:
    """(signals,) mean squared residual of profiles (signals, steps) about a polynomial in each box, by definition."""
    stride = size // 2 if overlap else size
    boxes = np.lib.stride_tricks.sliding_window_view(profile, size, axis=-1)[:, ::stride]
    basis = trend_basis(size, order)
    local = boxes - boxes[..., size // 2, None]
    local -= (local @ basis.T) @ basis
    squares: Array = np.einsum("lbn,lbn->l", local, local) / (boxes.shape[1] * size)
    return squares


def _doubling_boxes(centred: Array, sizes: tuple[int, ...]) -> Array:
    """(..., sizes) mean squared residuals of centred signals (..., steps) about lines in the default boxes.

    The boxes overlap by half, and their sizes double. So a box's line and its residual follow from those of the box's
    two halves, and the steps are read once, for the smallest blocks. The residual is a sum of squares of
    `_coordinates`, which are linear in the signal; for short signals the coordinates and the sums are a matrix each.
    """
    steps = centred.shape[-1]
    flat = centred.reshape(math.prod(centred.shape[:-1]), steps)
    if steps <= MATRIX_STEPS:
        coordinates, sums = _matrices(steps, sizes)
        squares = np.square(flat @ coordinates) @ sums
    else:
        found = _coordinates(np.cumsum(flat.T, axis=0), sizes[-1])
        squares = _mean_squares({size: np.square(values) for size, values in found.items()}).T
    return squares.reshape(*centred.shape[:-1], len(sizes))


def _coordinates(profile: Array, largest: int) -> dict[int, Array]:
    """Size -> (1 or 2, boxes, signals): roots of what a box's line leaves of the profiles beyond its halves' lines.

    The profiles are (steps, signals). Let m1, m2 and b1, b2 be the means and slopes of the lines through two adjacent
    blocks of h steps, s = h (h^2 - 1) / 12 the sum of squares of h steps about their centre, and S that of 2 h steps.
    The residual squares about the line through both blocks exceed those about the blocks' own lines by
    s/2 (b2 - b1)^2 + s h^3 / S ((b1 + b2) / 2 - (m2 - m1) / h)^2. Those about the line through a first block of 2 or 3
    steps are 3/2 (first + last - 2 mean)^2.
    """
    found = {}
    for block in BLOCKS:
        h = block
        parts = profile[: len(profile) // h * h].reshape(len(profile) // h, h, -1)
        first, last, mean = parts[:, 0], parts[:, -1], parts.sum(axis=1) / h
        slope = (last - first) / (h - 1)
        found[h] = math.sqrt(1.5) * (first + last - 2 * mean)[None]
        while 2 * h <= largest:
            s, both = _spread(h), _spread(2 * h)
            rise, total = mean[1:] - mean[:-1], slope[1:] + slope[:-1]
            pair = np.empty((2, *rise.shape))
            np.multiply(math.sqrt(s / 2), slope[1:] - slope[:-1], out=pair[0])
            np.multiply(math.sqrt(s * h / both), h / 2 * total - rise, out=pair[1])
            mean = (mean[:-1:2] + mean[1::2]) / 2
            slope = s / both * total[::2] + h**2 / (2 * both) * rise[::2]
            h *= 2
            found[h] = pair
    return found


def _spread(steps: int) -> float:
    """Sum of squares of so many steps about their centre."""
    return steps * (steps**2 - 1) / 12


def _mean_squares(squares: dict[int, Array]) -> Array:
    """(sizes, signals) mean squared residuals. A box's are its own squared coordinates plus its halves' residuals."""
    found = {}
    for block in BLOCKS:
        size, residual = block, squares[block][0]
        while (size := 2 * size) in squares:
            residual = squares[size].sum(axis=0) + residual[:-1] + residual[1:]
            found[size] = residual.mean(axis=0) / size
            residual = residual[::2]
    return np.stack([found[size] for size in sorted(found)])


@lru_cache(maxsize=8)  # each entry takes up to 2 MB
def _matrices(steps: int, sizes: tuple[int, ...]) -> tuple[Array, Array]:
    """`_coordinates` and `_mean_squares` as matrices: (steps, coordinates) and (coordinates, sizes)."""
    found = _coordinates(np.tri(steps), sizes[-1])
    coordinates = np.concatenate([values.reshape(-1, steps) for values in found.values()])
    ends = np.cumsum([values[..., 0].size for values in found.values()])
    unit = np.split(np.eye(len(coordinates)), ends[:-1])
    squares = {size: rows.reshape(*found[size].shape[:2], -1) for size, rows in zip(found, unit, strict=True)}
    used = coordinates.any(axis=1)  # a line through 2 steps leaves nothing
    return coordinates[used].T, _mean_squares(squares).T[used]
