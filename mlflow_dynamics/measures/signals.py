"""What every measure does first: check the signals' shape, detrend them, and set aside those that hold nothing."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Real = NDArray[np.floating[Any]]
R = TypeVar("R", bound=np.floating[Any])

ARITHMETIC: Final = 16 * float(np.finfo(np.float64).eps)
"""What our own sums in double precision may leave of a straight line, as a fraction of its size (3.6e-15)."""

LOST: Final = 0.05
"""At most this fraction of a window's steps may be lost in all layers. A bridge over 25 adjacent steps of 512 moved
integration by 0.07 at most in 400 draws of white noise (by 0.16 with a common factor) and synchrony and metastability
by 0.03."""

STEEP: Final = 1e-3
"""Below this ratio of signal to trend, rounding leaves so much of the trend that it is taken out a second time."""

SMALL: Final = 1e-200
LARGE: Final = 1e200
"""Energies between these come from squares that neither under- nor overflow."""


def as_signals(signals: ArrayLike, *, layers: bool) -> Real:
    """The signals as an array (..., steps), or (..., layers, steps) if `layers` is True.

    float16 and float32 keep their type, because their rounding is no signal (see `standardise`); all other types become
    float64. Masked values become NaN. If `layers` is True, steps lost in all layers are bridged.

    Raises:
        ValueError: too few axes, or values that are not real numbers; the message names the shape.
    """
    values = _unmasked(signals, "signals")
    wanted, axes = ("(..., layers, steps)", 2) if layers else ("(..., steps)", 1)
    if values.ndim < axes:
        raise ValueError(f"signals must have shape {wanted}, not {values.shape}.")
    _check_real(values, f"signals of shape {values.shape}")
    if values.dtype not in (np.float16, np.float32):
        values = values.astype(np.float64, copy=False)
    return bridge_lost_steps(values) if layers else values


def as_reals(values: ArrayLike, what: str) -> Array:
    """The values as float64; ValueError, which says `what` they are, unless they are real numbers."""
    given = _unmasked(values, what)
    _check_real(given, what)
    return given.astype(np.float64, copy=False)


def _check_real(values: NDArray[Any], what: str) -> None:
    if values.dtype.kind not in "biuf":
        raise ValueError(
            f"{what} must be real numbers, not {values.dtype}; convert them with numpy.asarray(..., dtype=float)."
        )


def _unmasked(values: ArrayLike, what: str) -> NDArray[Any]:
    """The values as an array; masked values become NaN, also those of masked arrays in a list."""
    among = values if isinstance(values, list | tuple) else [values]
    try:
        if any(isinstance(one, np.ma.MaskedArray) for one in among):
            holes = np.ma.getmaskarray(np.ma.array(values))
            return np.where(holes, np.float16(np.nan), np.ma.getdata(np.ma.array(values)))
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{what} must be an array; rows of different lengths make none ({error}).") from None


def bridge_lost_steps(values: NDArray[R]) -> NDArray[R]:
    """Windows (..., layers, steps) in which straight lines replace the lost steps: those at which no layer is finite.

    Without a bridge, one overflow or one batch of NaN would leave no usable layer until the window has passed it. Up to
    5 % of a window's steps are bridged (at its ends with the nearest value); a window with more lost steps stays as it
    is. A step at which some layer is finite is not lost; the layers that are not finite there are left out.
    """
    if np.isfinite(values).all():
        return values
    lost = ~np.isfinite(values).any(axis=-2)
    count = lost.sum(axis=-1, keepdims=True)
    lost &= count <= LOST * values.shape[-1]
    bridged = values.copy()
    steps = np.arange(values.shape[-1])
    for window in np.ndindex(values.shape[:-2]):
        gone = lost[window]
        for layer in bridged[window] if gone.any() else ():
            layer[gone] = np.interp(steps[gone], steps[~gone], layer[~gone])
    return bridged


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
    return values - coordinates @ basis, _energy(coordinates)


def _energy(values: Array) -> Array:
    """(...,) sums of squares of signals (..., steps), as `np.vecdot` has them, which NumPy before 2.0 lacks."""
    squares: Array = (values[..., None, :] @ values[..., :, None])[..., 0, 0]
    return squares


def _root_mean_square(values: Array) -> Array:
    """(...,) root mean square of signals (..., steps)."""
    size: Array = np.sqrt(_energy(values) / values.shape[-1])
    return size


def standardise(values: Real, *, order: int) -> tuple[Array, Array]:
    """Signals less their polynomial trend, in units of their own standard deviation.

    A signal is constant if it departs from its trend by less than rounding: one unit in the last place of the
    precision that it comes in (1e-7 of its size for float32), or what sums in double precision leave.

    Args:
        values: (..., steps).
        order: 0 removes the mean, 1 a straight line.

    Returns:
        The detrended signals of unit variance (..., steps) and the standard deviation (...,) they had. A signal
        that is constant (up to the trend), not finite or shorter than order + 2 steps has NaN for its deviation
        and zeros for its values, so that nothing after it can warn.
    """
    steps = values.shape[-1]
    rounding = max(float(np.finfo(values.dtype).eps), ARITHMETIC)
    exact: Array = values.astype(np.float64, copy=False)
    if steps < order + 2 or values.size == 0:
        return np.zeros(values.shape), np.full(values.shape[:-1], np.nan)
    with np.errstate(over="ignore", invalid="ignore"):
        detrended, trend = _less_trend(exact, order)
        energy = _energy(detrended)
        largest = energy + trend
    if ((energy > STEEP**2 * largest) & (energy > SMALL) & (largest < LARGE)).all():
        deviation = np.sqrt(energy / steps)
        detrended *= (1 / deviation)[..., None]
        return detrended, deviation
    return _standardise_with_care(exact, order, rounding)


def _standardise_with_care(values: Array, order: int, rounding: float) -> tuple[Array, Array]:
    """`standardise` for signals some of which are constant, steep, not finite, or of extreme size."""
    size = np.maximum(values.max(axis=-1), -values.min(axis=-1))
    usable = np.isfinite(size) & (size > 0)
    # A power of two, so that scaling is exact: squares of 1e-200 or 1e200 would otherwise under- or overflow.
    # (The exponent is clipped to what 2.0**-exponent can represent: subnormal signals stay somewhat below 1.)
    exponent = np.clip(np.frexp(np.where(usable, size, 1.0))[1], -1022, 1022)
    finite = values if usable.all() else np.where(usable[..., None], values, 0.0)
    detrended, _ = _less_trend(finite * np.ldexp(1.0, -exponent)[..., None], order)
    deviation = _root_mean_square(detrended)
    if (deviation < STEEP).any():
        detrended, _ = _less_trend(detrended, order)
        deviation = _root_mean_square(detrended)
    usable &= deviation > rounding
    detrended *= (1 / np.where(usable, deviation, np.inf))[..., None]
    with np.errstate(over="ignore", under="ignore"):
        deviation = np.where(usable, np.ldexp(deviation, exponent), np.nan)
    return detrended, deviation
