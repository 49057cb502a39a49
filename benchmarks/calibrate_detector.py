"""Make the threshold table of the detector `volatility`: python benchmarks/calibrate_detector.py.

For each length the threshold is the 96 % quantile of the largest statistic on the worst of four kinds of series
without any change: 4 % so that fresh draws stay under 5 % despite the sampling error of both.
"""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from mlflow_dynamics.convergence.volatility import THRESHOLDS_FILE, statistics

LENGTHS = (20, 25, 30, 40, 50, 60, 80, 100, 150, 200, 300)
DRAWS = 20_000
SIZE = 0.04
BURN_IN = 50


def null_series(epochs: int, draws: int, rng: np.random.Generator) -> dict[str, NDArray[np.float64]]:
    """(draws, epochs) series whose noise does not change."""
    noise = rng.normal(size=(draws, epochs + BURN_IN))
    autoregressive = np.zeros_like(noise)
    for t in range(1, noise.shape[1]):
        autoregressive[:, t] = 0.8 * autoregressive[:, t - 1] + noise[:, t]
    return {
        "white noise": rng.normal(size=(draws, epochs)),
        "AR(1) 0.8": autoregressive[:, BURN_IN:],
        "random walk": rng.normal(size=(draws, epochs)).cumsum(axis=1),
        "Student t, 3 d.f.": rng.standard_t(3, size=(draws, epochs)),
    }


def main() -> None:
    """Write the table."""
    rng = np.random.default_rng(20261123)
    table = {}
    for epochs in LENGTHS:
        peaks = [np.nanmax(statistics(s)[0], axis=1) for s in null_series(epochs, DRAWS, rng).values()]
        table[str(epochs)] = round(max(float(np.quantile(peak, 1 - SIZE)) for peak in peaks), 3)
        print(epochs, table[str(epochs)], flush=True)
    THRESHOLDS_FILE.write_text(json.dumps({"size": SIZE, "draws": DRAWS, "threshold": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
