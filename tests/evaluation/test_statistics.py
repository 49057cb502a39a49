"""Intervals that hold what they are of as often as they say, on made data and beside other people's code."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mlflow_dynamics.evaluation.statistics import (
    ENOUGH_CLUSTERS,
    ENOUGH_RUNS,
    interval,
    resampled,
    share_interval,
    wilson,
)

SIZES = {"6 clusters of 3": [3] * 6, "12 clusters of 3 and 6": [3, 6] * 6}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("alike", [0.0, 0.5, 0.9])
def test_an_interval_of_a_mean_holds_it_as_often_as_it_says(sizes: list[int], alike: float) -> None:
    """`alike`: the part of the variance that runs of one cluster share."""
    rng = np.random.default_rng(5)
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    held = 0
    for _ in range(150):
        common, own = rng.standard_normal(len(sizes))[clusters], rng.standard_normal(len(clusters))
        low, high = interval(
            resampled(clusters, rng) @ (np.sqrt(alike) * common + np.sqrt(1 - alike) * own), clusters
        )
        held += low <= 0 <= high
    assert 0.89 <= held / 150 <= 0.99


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("alike", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_an_interval_of_a_share_holds_it_as_often_as_it_says(
    sizes: list[int], alike: float, share: float
) -> None:
    """Runs of a cluster share a beta-distributed probability, so that `alike` is their correlation."""
    rng = np.random.default_rng(6)
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    spread = (1 - alike) / alike if alike else None
    held = 0
    for _ in range(300):
        chance = (
            np.full(len(sizes), share)
            if spread is None
            else rng.beta(share * spread, (1 - share) * spread, len(sizes))
        )
        low, high = share_interval(rng.random(len(clusters)) < chance[clusters], clusters)
        held += low <= share <= high
    assert 0.90 <= held / 300 <= 0.99


def test_runs_of_one_cluster_do_not_make_an_interval_narrower() -> None:
    rng = np.random.default_rng(0)
    values, once = rng.standard_normal(8), np.arange(8)
    thrice = np.repeat(once, 3)
    assert interval(
        resampled(thrice, np.random.default_rng(1)) @ np.repeat(values, 3), thrice
    ) == pytest.approx(interval(resampled(once, np.random.default_rng(1)) @ values, once))
    happened = values > 0
    assert share_interval(np.repeat(happened, 3), thrice) == pytest.approx(
        share_interval(happened, once), abs=0.03
    )


@pytest.mark.parametrize("runs", [1, 4, 16, 200])
def test_wilsons_interval_is_scipys(runs: int) -> None:
    for count in range(runs + 1):
        theirs = stats.binomtest(count, runs).proportion_ci(method="wilson")
        assert wilson(count / runs, runs) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_the_least_numbers_are_what_they_are_said_to_be() -> None:
    assert wilson(0, ENOUGH_RUNS)[1] < 0.2 < wilson(0, ENOUGH_RUNS - 1)[1]
    p = [stats.binomtest(n, n).pvalue for n in (ENOUGH_CLUSTERS - 1, ENOUGH_CLUSTERS)]
    assert p[0] > 0.05 > p[1]


def test_of_one_cluster_no_interval_is_known() -> None:
    alone = np.zeros(5, dtype=np.int64)
    assert np.isnan(interval(resampled(alone, np.random.default_rng(0)) @ np.arange(5.0), alone)).all()
    assert share_interval(np.array([True, False, True, True, False]), alone)[1] > 0.9
