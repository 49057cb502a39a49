"""Straight lines through the boxes of many profiles at once, put together from those through their halves."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import scipy.linalg

from mlflow_dynamics.measures.signals import Array, trend_basis

SMALL_BLOCK: Final = 48
"""Up to here a product with all of an orthonormal basis is faster than taking lines out of blocks."""


class Lines(NamedTuple):
    """The least-squares lines through adjacent blocks of `size` steps: each array (signals, blocks)."""

    size: int
    mean: Array
    slope: Array
    residual: Array  # sum of squares


def line_residuals(profiles: Array, sizes: tuple[int, ...], *, overlap: bool) -> Array:
    """Mean squared residual of boxes about their least-squares lines.

    Nothing is found by subtracting large sums of each other: residuals are sums of squares of what is left over,
    so that they are exact to rounding of the profiles themselves, however steep these are.

    Args:
        profiles: (signals, steps).
        sizes: n, each at least 3 and at most `steps`.
        overlap: boxes start every n // 2 steps; otherwise they lie side by side.

    Returns:
        (signals, sizes).
    """
    squares = np.empty((len(profiles), len(sizes)))
    known: dict[int, Lines] = {}
    for i, size in enumerate(sizes):
        blocks = size // 2 if overlap else size
        lines = known.get(blocks) or _lines_of_blocks(profiles, blocks)
        known[blocks] = lines
        if not overlap:
            residual = lines.residual
        else:
            left, right = _every(lines, slice(None, -1)), _every(lines, slice(1, None))
            residual = _joint_residual(left, right)
            if 2 * blocks in {n // 2 for n in sizes[i + 1 :]}:
                alternate = slice(None, None, 2)
                line = _joint_line(_every(left, alternate), _every(right, alternate))
                known[2 * blocks] = Lines(2 * blocks, *line, residual[:, alternate].copy())
            if size % 2:
                residual = _with_one_more(residual, left, right, profiles[:, 2 * blocks :: blocks])
        squares[:, i] = residual.mean(axis=1) / size
    return squares


def _every(lines: Lines, these: slice) -> Lines:
    """Some of the blocks."""
    return Lines(lines.size, lines.mean[:, these], lines.slope[:, these], lines.residual[:, these])


def _spread(size: int) -> float:
    """Sum of squares of that many steps about their centre."""
    return size * (size**2 - 1) / 12


def _lines_of_blocks(profiles: Array, size: int) -> Lines:
    """The lines through adjacent blocks, from their steps."""
    blocks = profiles.shape[1] // size
    parts = profiles[:, : size * blocks].reshape(len(profiles), blocks, size)
    if size == 1:
        return Lines(1, parts[..., 0], np.zeros(parts.shape[:2]), np.zeros(parts.shape[:2]))
    if size <= SMALL_BLOCK:
        line = parts @ _orthonormal(size)
        residual = np.square(line) @ _others(size)
        mean = line[..., 0] / math.sqrt(size)
    else:
        level = parts[..., size // 2]
        basis = trend_basis(size, 1)
        rest = parts - level[..., None]
        line = rest @ basis.T
        rest -= line @ basis
        residual = np.vecdot(rest, rest)
        mean = level + line[..., 0] / math.sqrt(size)
    return Lines(size, mean, line[..., 1] / math.sqrt(_spread(size)), residual)


def _joint_line(left: Lines, right: Lines) -> tuple[Array, Array]:
    """Mean and slope of the lines through pairs of blocks."""
    size = left.size
    slope = left.slope + right.slope
    slope *= _spread(size) / _spread(2 * size)
    apart = right.mean - left.mean
    apart *= size**2 / (2 * _spread(2 * size))
    slope += apart
    return (left.mean + right.mean) / 2, slope


def _joint_residual(left: Lines, right: Lines) -> Array:
    """Sum of squares about the lines through pairs of blocks.

    That about their own lines, and what these leave over: with s the spread of one block of h steps and S that of
    both, s/2 (b2 - b1)^2 + s h^3 / S ((b1 + b2)/2 - (m2 - m1)/h)^2.
    """
    size, spread = left.size, _spread(left.size)
    residual = left.slope + right.slope
    residual *= size / 2
    residual -= right.mean
    residual += left.mean
    residual *= residual
    residual *= spread * size / _spread(2 * size)
    bend = right.slope - left.slope
    bend *= bend
    bend *= spread / 2
    residual += bend
    residual += left.residual
    residual += right.residual
    return residual


def _with_one_more(residual: Array, left: Lines, right: Lines, following: Array) -> Array:
    """Sum of squares about the lines through pairs of blocks and the step after them, as many as have one.

    The step adds its squared distance from the line over 1 + 1/n + d^2 / S, with d that of the step from the centre
    of the n steps before it.
    """
    size = 2 * left.size
    distance = (size + 1) / 2
    mean, error = _joint_line(left, right)
    error *= distance
    error += mean
    boxes = following.shape[1]
    error = error[:, :boxes]
    error -= following
    error *= error
    error /= 1 + 1 / size + distance**2 / _spread(size)
    error += residual[:, :boxes]
    return error


@lru_cache(maxsize=SMALL_BLOCK)
def _orthonormal(size: int) -> Array:
    """(size, size) an orthonormal basis as columns: the constant, the line, and what neither takes up."""
    line = trend_basis(size, 1)
    basis = np.concatenate([line.T, scipy.linalg.null_space(line)], axis=1)
    basis.setflags(write=False)
    return basis


@lru_cache(maxsize=SMALL_BLOCK)
def _others(size: int) -> Array:
    """(size,) 0 for the constant and the line, 1 for all else of the basis."""
    return (np.arange(size) > 1).astype(np.float64)
