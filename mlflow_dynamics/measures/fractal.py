"""Detrended fluctuation analysis: the scaling exponent of each of many short signals."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

MIN_BOX: Final = 4
"""The smallest box: a line through fewer than 4 points leaves next to nothing to measure."""

SHORT_STEPS: Final = 128
"""Below this many steps the largest box is T/2, not T/4: otherwise too few sizes are left to fit a slope."""

BOXES_PER_OCTAVE: Final = 4


@lru_cache(maxsize=64)
def default_box_sizes(steps: int) -> tuple[int, ...]:
    """Log-spaced box sizes from 4 to T/4 (T/2 where T < 128), about four an octave."""
    largest = steps // 2 if steps < SHORT_STEPS else steps // 4
    if largest < MIN_BOX:
        return ()
    count = int(np.ceil(np.log2(largest / MIN_BOX) * BOXES_PER_OCTAVE)) + 1
    return tuple(np.unique(np.geomspace(MIN_BOX, largest, count).round().astype(int)).tolist())


@lru_cache(maxsize=512)
def _polynomials(size: int, order: int) -> Array:
    """(size, order + 1) orthonormal polynomials of degree 0 to `order` on a box."""
    q, _ = np.linalg.qr(np.vander(np.linspace(-1.0, 1.0, size), order + 1, increasing=True))
    q.setflags(write=False)
    return q


def fluctuations(
    signals: ArrayLike,
    *,
    box_sizes: tuple[int, ...] | None = None,
    order: int = 1,
    overlap: bool = True,
    corrected: bool = True,
) -> tuple[NDArray[np.int64], Array]:
    """The fluctuation function F(n) of each signal: what is left of its profile after detrending boxes of n steps.

    Args:
        signals: (..., steps), finite.
        box_sizes: n in steps; None takes `default_box_sizes`.
        order: degree of the polynomial removed in each box.
        overlap: boxes overlap by half; otherwise they lie side by side.
        corrected: divide out the bias of small boxes, exactly for white noise (order 1 only).

    Returns:
        box sizes (sizes,) and F (..., sizes).
    """
    values = np.asarray(signals, dtype=np.float64)
    steps = values.shape[-1]
    sizes = np.asarray(default_box_sizes(steps) if box_sizes is None else box_sizes, dtype=np.int64)
    profile = np.cumsum(values - values.mean(axis=-1, keepdims=True), axis=-1)
    squares = np.empty((*values.shape[:-1], len(sizes)))
    for i, size in enumerate(sizes.tolist()):
        stride = max(size // 2, 1) if overlap else size
        boxes = np.lib.stride_tricks.sliding_window_view(profile, size, axis=-1)[..., ::stride, :]
        basis = _polynomials(size, order)
        residual = boxes - (boxes @ basis) @ basis.T
        squares[..., i] = np.einsum("...bn,...bn->...", residual, residual) / (boxes.shape[-2] * size)
    if corrected and order == 1:
        # White noise of unit variance has E[F^2] = (n^2 - 4) / (15 n); a slope without bias asks for n / 15.
        squares *= sizes**2 / (sizes**2 - 4.0)
    return sizes, np.sqrt(squares)


def dfa(
    signals: ArrayLike,
    *,
    box_sizes: tuple[int, ...] | None = None,
    order: int = 1,
    overlap: bool = True,
    corrected: bool = True,
    weighted: bool = True,
) -> Array:
    """The DFA exponent of each signal: the slope of log F(n) on log n.

    Args:
        signals: (..., steps), finite.
        weighted: weight each size by its number of boxes, T/n.
        box_sizes, order, overlap, corrected: see `fluctuations`.

    Returns:
        (...,) exponents: 0.5 white noise, 1 for 1/f noise, 1.5 Brownian motion.

    References:
        Peng et al. 1994, doi 10.1103/PhysRevE.49.1685.
    """
    sizes, f = fluctuations(signals, box_sizes=box_sizes, order=order, overlap=overlap, corrected=corrected)
    x = np.log(sizes)
    weights = 1.0 / sizes if weighted else np.ones(len(sizes))
    weights = weights / weights.sum()
    centred = x - weights @ x
    slope: Array = np.log(f) @ (weights * centred) / (weights @ centred**2)
    return slope
