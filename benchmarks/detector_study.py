"""Compares detectors of falling volatility that all fire on 5 % of series in which nothing changes.

Usage: python benchmarks/detector_study.py [--epochs 60] [--draws 3000]

The threshold of every rival is set on the same series, so that the worst of the four nulls fires on 5 % of its series.
Then the study counts on how many series whose noise decays to a fifth a rival fires, and at which epoch (median). The
detector of the package is also shown with its own table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from calibrate_detector import NULLS, Series, autoregressive

from mlflow_dynamics.convergence.volatility import (
    BOUNDARY_EXPONENT,
    MIN_MOVES,
    score_series,
    trend_series,
)

SIZE = 0.05
DRIFT = 3.0
"""The drift over a whole series, in standard deviations of the noise at its beginning."""

SHAPES: dict[str, Callable[[Series], Series]] = {
    "step at 1/2": lambda u: np.where(u < 0.5, 1.0, 0.2),
    "step at 1/3": lambda u: np.where(u < 1 / 3, 1.0, 0.2),
    "smooth step at 1/2": lambda u: 0.2 + 0.8 / (1 + np.exp((u - 0.5) / 0.05)),
    "linear, done at 1/2": lambda u: 1 - 0.8 * np.minimum(1, 2 * u),
    "exponential, done at 1/2": lambda u: 5.0 ** -np.minimum(1, 2 * u),
    "exponential towards 1/5": lambda u: 0.2 + 0.8 * np.exp(-u / 0.2),
    "exponential, done at the end": lambda u: 5.0**-u,
    "linear, done at the end": lambda u: 1 - 0.8 * u,
}


def naive(series: Series) -> Series:
    """Return minus the deviation over 5 epochs as a part of its peak so far, at the largest of the last 3 epochs."""
    windows = np.lib.stride_tricks.sliding_window_view(series, 5, axis=1).std(axis=2)
    ratio = windows / np.maximum.accumulate(windows, axis=1)
    held = np.lib.stride_tricks.sliding_window_view(ratio, 3, axis=1).max(axis=2)
    return np.pad(-held, ((0, 0), (6, 0)), constant_values=-np.inf)


def cusum_of_squares(series: Series) -> Series:
    """Return a one-sided CUSUM of squared differences, divided by the median of the first 10 and bounded at 9."""
    squares = np.diff(series, axis=1) ** 2
    scale = np.median(squares[:, :10], axis=1, keepdims=True) / 0.455
    return _cusum(0.5 - np.minimum(squares / scale, 9.0))


def cusum_of_logs(series: Series) -> Series:
    """Return a one-sided CUSUM of log |difference|, below the median of the first half so far and bounded at 2."""
    moves = np.log(np.abs(np.diff(series, axis=1)))
    evidence = np.zeros_like(moves)
    for t in range(10, moves.shape[1]):
        reference = np.median(moves[:, : max(10, t // 2)], axis=1)
        evidence[:, t] = np.clip(reference - moves[:, t], -2.0, 2.0) - 0.5
    return _cusum(evidence)


def _cusum(evidence: Series) -> Series:
    total = np.zeros(len(evidence))
    path = np.zeros((len(evidence), evidence.shape[1] + 1))
    for t in range(10, evidence.shape[1]):
        total = np.maximum(0.0, total + evidence[:, t])
        path[:, t + 1] = total
    return path


def trend(series: Series) -> Series:
    """Return the package's statistic, multiplied so that its falling threshold becomes a constant."""
    statistic = trend_series(series)
    return np.nan_to_num(statistic, nan=-np.inf) * np.arange(1, statistic.shape[1] + 1) ** BOUNDARY_EXPONENT


def change_point(series: Series) -> Series:
    """Return the largest standardised difference of mean scores before and after a split, 8 values on each side."""
    size = np.abs(np.diff(series, axis=1))
    path = np.full(series.shape, -np.inf)
    for n in range(MIN_MOVES + 1, size.shape[1] + 1):
        score = np.log((size[:, :n] / np.median(size[:, :n], axis=1, keepdims=True)) ** 2 + 1.0)
        score -= score.mean(axis=1, keepdims=True)
        early = np.arange(8, n - 7)
        contrast = score.cumsum(axis=1)[:, 7 : n - 8] * np.sqrt(n / (early * (n - early)))
        path[:, n] = (contrast / score.std(axis=1, keepdims=True)).max(axis=1)
    return path


RIVALS = (naive, cusum_of_squares, cusum_of_logs, change_point, trend)


def report(label: str, path: Series, threshold: float) -> str:
    fired = path >= threshold
    ever = fired.any(axis=1)
    when = f"{np.median(fired[ever].argmax(axis=1)):.0f}" if ever.any() else "-"
    return f"  {label:45s} fires on {100 * ever.mean():5.1f} %, median epoch {when}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--draws", type=int, default=3000)
    arguments = parser.parse_args()
    epochs, draws = arguments.epochs, arguments.draws
    rng = np.random.default_rng(2)
    nulls = {name: make(rng, draws, epochs) for name, make in NULLS.items()}
    u = np.arange(epochs) / (epochs - 1)
    white = rng.standard_normal((draws, epochs))
    decaying = {name: white * shape(u) + DRIFT * u for name, shape in SHAPES.items()}
    red = 0.6 * autoregressive(rng, draws, epochs)
    decaying["step at 1/2, AR(1) 0.8 noise"] = red * SHAPES["step at 1/2"](u) + DRIFT * u
    steps = rng.standard_normal((draws, epochs))
    decaying["step at 1/2, increments of a random walk"] = (steps * SHAPES["step at 1/2"](u)).cumsum(axis=1)

    naive_rule = {name: (naive(s) >= -0.3).any(axis=1).mean() for name, s in nulls.items()}
    print(f"{epochs} epochs, {draws} draws")
    print("naive rule (0.3 of the peak for 3 epochs) on nulls:", _percent(naive_rule))
    for rival in RIVALS:
        quantiles = {n: float(np.quantile(rival(s).max(axis=1), 1 - SIZE)) for n, s in nulls.items()}
        threshold = max(quantiles.values())
        print(f"{rival.__name__}: threshold {threshold:.3f} from {max(quantiles, key=quantiles.__getitem__)}")
        for name, series in decaying.items():
            print(report(name, rival(series), threshold))
    for known, planned in (("its own table", epochs), ("length not known", None)):
        size = {n: (score_series(s, planned)[0] >= 1).any(axis=1).mean() for n, s in nulls.items()}
        print(f"volatility, {known}: on nulls", _percent(size))
        for name, series in decaying.items():
            print(report(name, np.nan_to_num(score_series(series, planned)[0], nan=-np.inf), 1.0))


def _percent(fractions: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * value:.1f} %" for name, value in fractions.items())


if __name__ == "__main__":
    main()
