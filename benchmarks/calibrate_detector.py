"""Calibrates the thresholds of the detector `volatility` on series that do not change, and writes the package's table.

Usage: python benchmarks/calibrate_detector.py [--draws 40000] [--output PATH]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

import mlflow_dynamics.convergence.volatility as detector

LENGTHS = (20, 25, 30, 40, 60, 80, 100, 150, 200, 300, 500)
TARGET = 0.045
"""The share of series on which the worst null may fire. It is below the promised 0.05, so that a fresh sample of 10,000
series (standard deviation 0.002) also stays below 0.05."""
WINDOWS, WINDOWS_OPEN = 1.05, 1.03
"""The factors by which the thresholds are raised, for a known and for an unknown length of the training. S comes from
windows of layers, which overlap and whose noise may change in size. Without the factors, the warning fires in up to 8 %
of trainings in which nothing changes (benchmarks/warning_nulls.py). If the length is not known, the threshold is made
for up to 500 epochs, so a smaller factor is enough at the lengths that were tried."""
SEED = 20261126
FIRST = detector.MIN_MOVES + 1
"""The first epoch with a verdict, counted from 0."""
CHUNK = 1000
BURN_IN = 60

Series = NDArray[np.float64]


def autoregressive(rng: np.random.Generator, draws: int, epochs: int) -> Series:
    noise = rng.standard_normal((draws, epochs + BURN_IN))
    return lfilter([1.0], [1.0, -0.8], noise, axis=1)[:, BURN_IN:]


NULLS: dict[str, Callable[[np.random.Generator, int, int], Series]] = {
    "white noise": lambda rng, draws, epochs: rng.standard_normal((draws, epochs)),
    "AR(1) 0.8": autoregressive,
    "random walk": lambda rng, draws, epochs: rng.standard_normal((draws, epochs)).cumsum(axis=1),
    "Student t3": lambda rng, draws, epochs: rng.standard_t(3, (draws, epochs)),
}


def extremes(null: str, epochs: int, draws: int, seed: int) -> dict[str, Series]:
    """Return four (draws,) arrays: the largest value of each statistic over the epochs of each null series."""
    rng = np.random.default_rng([seed, epochs, list(NULLS).index(null)])
    weight = (np.arange(1, epochs + 1) / epochs) ** detector.BOUNDARY_EXPONENT
    parts: dict[str, list[Series]] = {"falling": [], "falling_open": [], "rising": [], "rising_open": []}
    for start in range(0, draws, CHUNK):
        series = NULLS[null](rng, min(CHUNK, draws - start), epochs)
        statistic = detector.trend_series(series)[:, FIRST:]
        late = weight[FIRST:]
        for side, signed in (("falling", statistic), ("rising", -statistic)):
            parts[side].append((signed * late).max(axis=1))
            parts[f"{side}_open"].append(signed.max(axis=1))
    return {name: np.concatenate(chunks) for name, chunks in parts.items()}


def calibrate(draws: int) -> dict[str, list[float]]:
    """Return the thresholds for each length at which the worst null fires on a share TARGET of its series."""
    table: dict[str, list[float]] = {}
    for epochs in LENGTHS:
        began = time.perf_counter()
        enough = draws if epochs <= 100 else draws // 2 if epochs <= 200 else draws // 8
        per_null = [extremes(null, epochs, enough, SEED) for null in NULLS]
        for name in per_null[0]:
            worst = max(float(np.quantile(e[name], 1.0 - TARGET)) for e in per_null)
            table.setdefault(name, []).append(round(worst, 4))
        print(
            epochs, {k: v[-1] for k, v in table.items()}, f"{time.perf_counter() - began:.0f} s", flush=True
        )
    for name in ("falling_open", "rising_open"):
        table[name] = open_boundary(table[name], draws, sign=1 if name == "falling_open" else -1)
    return {"lengths": list(LENGTHS), **table}


def open_boundary(curve: list[float], draws: int, *, sign: int) -> list[float]:
    """Return a threshold that rises with the epochs and holds TARGET up to the longest length.

    It is `curve`, the flat thresholds of all lengths, times one factor.
    """
    longest = LENGTHS[-1]
    n = np.arange(FIRST + 1, longest + 1)
    height = np.interp(np.log(n), np.log(LENGTHS), curve)
    factors = []
    for null, make in NULLS.items():
        rng = np.random.default_rng([SEED, 1, list(NULLS).index(null)])
        peaks = []
        for start in range(0, draws // 8, CHUNK):
            series = make(rng, min(CHUNK, draws // 8 - start), longest)
            statistic = sign * detector.trend_series(series)[:, FIRST:]
            peaks.append((statistic / height).max(axis=1))
        factors.append(float(np.quantile(np.concatenate(peaks), 1.0 - TARGET)))
    print("open boundary: the curve times", round(max(factors), 4), flush=True)
    return [round(value * max(factors), 4) for value in curve]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=40_000)
    parser.add_argument("--output", type=Path, default=Path(detector.__file__).with_name(detector.TABLE))
    arguments = parser.parse_args()
    made_by = f"python benchmarks/calibrate_detector.py --draws {arguments.draws}"
    table = calibrate(arguments.draws)
    for name in table.keys() - {"lengths"}:
        factor = WINDOWS_OPEN if name.endswith("_open") else WINDOWS
        table[name] = [round(factor * height, 4) for height in table[name]]
    content = {"made_by": made_by, "seed": SEED, "target": TARGET, "table": table}
    arguments.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
