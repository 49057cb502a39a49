"""Computes intervals for numbers from runs of which some are alike. Runs that are alike form a cluster."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mlflow_dynamics.evaluation.traces import Array

LEVEL: Final = 0.95
RESAMPLES: Final = 2_000

ENOUGH_CLUSTERS: Final = 6
"""The least number of clusters. With five, even five results of one sign would be no surprise: 2 x 0.5^5 = 0.06."""

ENOUGH_RUNS: Final = 16
"""The least number of runs for a share. If none of 16 runs counts, Wilson's interval still reaches to 19 %."""

Clusters = NDArray[np.int64]
"""(runs,) the number of each run's cluster, from 0."""


def resampled(clusters: Clusters, rng: np.random.Generator) -> Array:
    """Return (RESAMPLES, runs): the weight of each run in each bootstrap sample of whole clusters. A row sums to 1."""
    count = int(clusters.max()) + 1
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)[:, clusters].astype(np.float64)
    return np.asarray(drawn / drawn.sum(axis=1, keepdims=True))


def interval(draws: Array, clusters: Clusters) -> tuple[float, float]:
    """Return the 95 % interval of a statistic from its (RESAMPLES,) values in bootstrap samples of whole clusters.

    The ends are percentiles. They lie further out if there are fewer clusters, by as much as Student's interval of a
    mean is wider than the normal one with the variance of the bootstrap (Hesterberg 2015, section 5.3.2, doi
    10.1080/00031305.2015.1089789). Both ends are NaN for a single cluster.
    """
    count = len(np.unique(clusters))
    if count < 2:
        return np.nan, np.nan
    widened = np.sqrt(count / (count - 1)) * stats.t.ppf((1 - LEVEL) / 2, count - 1)
    tail = stats.norm.cdf(widened)
    low, high = np.nanquantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def share_interval(happened: NDArray[np.bool_], clusters: Clusters) -> tuple[float, float]:
    """Return Wilson's interval of a share of runs (Wilson 1927, doi 10.1080/01621459.1927.10502953).

    The number of runs is divided by the design effect: how many times the share's variance over clusters exceeds that
    over independent runs, but at least 1. If all runs agree, the design effect cannot be estimated, and the number of
    clusters is used in place of the number of runs.

    Args:
        happened: (runs,), True for the runs that count.
        clusters: (runs,), as `clusters_of` returns it.
    """
    _, own = np.unique(clusters, return_inverse=True)
    runs, count, share = len(happened), own.max() + 1, float(happened.mean())
    size = float(count)
    if count > 1 and 0 < share < 1:
        deviations = np.bincount(own, weights=happened - share)
        variance = count / (count - 1) * float(deviations @ deviations) / runs**2
        size = runs / max(1.0, variance / (share * (1 - share) / runs))
    return wilson(share, size)


def wilson(share: float, size: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share of `size` independent trials. `size` need not be a whole number."""
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    centre = (share + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z / (1 + z**2 / size) * np.sqrt(share * (1 - share) / size + z**2 / (4 * size**2))
    return max(0.0, centre - half), min(1.0, centre + half)
