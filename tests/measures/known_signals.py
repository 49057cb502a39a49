"""Signals whose measures are known, and plain implementations to compare with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def fractional_noise(rng: np.random.Generator, hurst: float, steps: int, count: int) -> NDArray[np.float64]:
    """(count, steps) exact unit fractional Gaussian noise by circulant embedding."""
    lags = np.arange(steps + 1.0)
    gamma = 0.5 * ((lags + 1) ** (2 * hurst) - 2 * lags ** (2 * hurst) + np.abs(lags - 1) ** (2 * hurst))
    eigenvalues = np.fft.fft(np.concatenate([gamma, gamma[-2:0:-1]])).real
    assert eigenvalues.min() > -1e-9
    size = len(eigenvalues)
    noise = rng.normal(size=(count, size)) + 1j * rng.normal(size=(count, size))
    return np.fft.fft(np.sqrt(np.maximum(eigenvalues, 0) / size) * noise, axis=1).real[:, :steps]


def autoregression(
    rng: np.random.Generator, coefficient: float, steps: int, count: int
) -> NDArray[np.float64]:
    """(count, steps) stationary AR(1) of unit variance."""
    values = rng.normal(size=(count, steps)) * np.sqrt(1 - coefficient**2)
    values[:, 0] = rng.normal(size=count)
    for t in range(1, steps):
        values[:, t] += coefficient * values[:, t - 1]
    return values


def plain_fluctuations(signal: NDArray[np.float64], sizes, *, order: int = 1, overlap: bool = False):
    """F(n) of one signal by the definition, in extended precision, one box at a time."""
    signal = np.asarray(signal, dtype=np.longdouble)
    profile = np.cumsum(signal - signal.mean())
    result = []
    for size in sizes:
        powers = np.vander(np.linspace(-1, 1, size, dtype=np.longdouble), order + 1)
        squares = []
        for start in range(0, len(profile) - size + 1, size // 2 if overlap else size):
            residual = profile[start : start + size].copy()
            basis: list = []
            for column in powers.T[::-1]:
                for known in basis:
                    column = column - known * (known @ column)
                column = column / np.sqrt(column @ column)
                basis.append(column)
            for _ in range(2):
                for known in basis:
                    residual = residual - known * (known @ residual)
            squares.append((residual**2).mean())
        result.append(np.sqrt(np.mean(squares)))
    return np.asarray(result, dtype=np.float64)
