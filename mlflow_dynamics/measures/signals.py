"""What every measure does first: check the signals' shape, detrend them, and set aside those that hold nothing."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

CONSTANT: Final = 1e-12
"""A signal that departs from a straight line by less than this fraction of its size is constant: rounding is
2e-16 a sample, and grows with the square root of the number of samples summed."""

STEEP: Final = 1e-3
"""Below this ratio of signal to trend, rounding leaves enough of the trend to be taken out a second time."""

SMALL: Final = 1e-200
LARGE: Final = 1e200
"""Energies between these come from squares that neither under- nor overflow."""


def as_signals(signals: ArrayLike, *, layers: bool) -> Array:
    """The signals as float64 (..., steps), or (..., layers, steps) where `layers` asks for that axis too.

    Raises:
        ValueError: too few axes, or values that are not real numbers; the message names the shape.
    """
    values = np.asarray(signals)
    wanted, axes = ("(..., layers, steps)", 2) if layers else ("(..., steps)", 1)
    if values.ndim < axes:
        raise ValueError(f"signals must have shape {wanted}, not {values.shape}.")
    return as_reals(values, f"signals of shape {values.shape}")


def as_reals(values: ArrayLike, what: str) -> Array:
    """The values as float64; ValueError, which says `what` they are, unless they are real numbers."""
    given = np.asarray(values)
    if given.dtype.kind not in "biuf":
        raise ValueError(f"{what} must be real numbers, not {given.dtype}.")
    return given.astype(np.float64, copy=False)


@lru_cache(maxsize=64)
def trend_basis(steps: int, order: int) -> Array:
    """(order + 1, steps) orthonormal polynomials of degree 0 to `order` over the steps, positive at the last."""
    q, _ = np.linalg.qr(np.vander(np.linspace(-1.0, 1.0, steps), order + 1, increasing=True))
    basis = np.ascontiguousarray(q.T)
    basis *= np.sign(basis[:, -1:])
    basis.setflags(write=False)
    return basis


def _less_trend(values: Array, order: int) -> tuple[Array, Array]:
    """Signals (..., steps) less their polynomial trend, and that trend's energy (...,)."""
    steps = values.shape[-1]
    if order == 0:
        total = values.sum(axis=-1)
        return values - (total / steps)[..., None], total * total / steps
    basis = trend_basis(steps, order)
    coordinates = values @ basis.T
    return values - coordinates @ basis, np.vecdot(coordinates, coordinates)


def _root_mean_square(values: Array) -> Array:
    """(...,) of signals (..., steps)."""
    size: Array = np.sqrt(np.vecdot(values, values) / values.shape[-1])
    return size


def standardise(values: Array, *, order: int) -> tuple[Array, Array]:
    """Signals less their polynomial trend, in units of their own standard deviation.

    Args:
        values: (..., steps).
        order: 0 removes the mean, 1 a straight line.

    Returns:
        The detrended signals of unit variance (..., steps) and the standard deviation (...,) they had. A signal
        that is constant (up to the trend), not finite or shorter than order + 2 steps has NaN for its deviation
        and zeros for its values, so that nothing after it can warn.
    """
    steps = values.shape[-1]
    if steps < order + 2 or values.size == 0:
        return np.zeros(values.shape), np.full(values.shape[:-1], np.nan)
    with np.errstate(over="ignore", invalid="ignore"):
        detrended, trend = _less_trend(values, order)
        energy = np.vecdot(detrended, detrended)
        largest = energy + trend
    if ((energy > STEEP**2 * largest) & (energy > SMALL) & (largest < LARGE)).all():
        deviation = np.sqrt(energy / steps)
        detrended *= (1 / deviation)[..., None]
        return detrended, deviation
    return _standardise_with_care(values, order)


def _standardise_with_care(values: Array, order: int) -> tuple[Array, Array]:
    """The same for signals among which some are constant, steep, not finite, or of extreme size."""
    size = np.maximum(values.max(axis=-1), -values.min(axis=-1))
    usable = np.isfinite(size) & (size > 0)
    # A power of two, so that scaling is exact: squares of 1e-200 or 1e200 would otherwise under- or overflow.
    # (Within what 2.0**-exponent can be: subnormal signals stay somewhat below 1.)
    exponent = np.clip(np.frexp(np.where(usable, size, 1.0))[1], -1022, 1022)
    finite = values if usable.all() else np.where(usable[..., None], values, 0.0)
    detrended, _ = _less_trend(finite * np.ldexp(1.0, -exponent)[..., None], order)
    deviation = _root_mean_square(detrended)
    if (deviation < STEEP).any():
        detrended, _ = _less_trend(detrended, order)
        deviation = _root_mean_square(detrended)
    usable &= deviation > CONSTANT
    detrended *= (1 / np.where(usable, deviation, np.inf))[..., None]
    with np.errstate(over="ignore", under="ignore"):
        deviation = np.where(usable, np.ldexp(deviation, exponent), np.nan)
    return detrended, deviation
