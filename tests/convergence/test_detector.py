"""The statistic against its written formula, its edge cases, and the live path against the vectorised one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlflow_dynamics.convergence import VolatilityDetector
from mlflow_dynamics.convergence.volatility import (
    MIN_MOVES,
    boundary,
    score_series,
    thresholds,
    trend_statistic,
)

FIRST = MIN_MOVES + 1
"""The first epoch with a verdict."""


def by_hand(short, long):
    """The formula of the docstring, in plain Python."""
    n = len(short)
    g = [0.0] * n
    for weight, moves in ((1.0, short), (0.5, long)):
        median = float(np.median([abs(d) for d in moves]))
        g = [x + weight * math.log(d * d / (median * median) + 1) for x, d in zip(g, moves, strict=True)]
    mean = sum(g) / n
    g = [x - mean for x in g]
    variance = sum(x * x for x in g) / n
    r = sum(a * b for a, b in itertools.pairwise(g)) / (n * variance)
    r = min(max(r, 0.0), 0.5)
    time = [i - (n - 1) / 2 for i in range(n)]
    covariance = sum(t * x for t, x in zip(time, g, strict=True))
    return -covariance / math.sqrt(sum(t * t for t in time) * variance * (1 + 2 * r))


def readings(stability, planned=None, epochs=None):
    detector = VolatilityDetector(planned_epochs=planned)
    epochs = range(len(stability)) if epochs is None else epochs
    return [detector.update(e, float(s)) for e, s in zip(epochs, stability, strict=True)]


@pytest.mark.parametrize("seed", range(5))
def test_the_statistic_is_its_formula(seed):
    short, long = np.random.default_rng(seed).standard_normal((2, 3, 20 + 7 * seed)).cumsum(axis=2)
    expected = [by_hand(*rows) for rows in zip(short, long, strict=True)]
    np.testing.assert_allclose(trend_statistic(short, long), expected, rtol=1e-10)


def test_the_statistic_is_standard_normal_on_independent_moves():
    short, long = np.random.default_rng(5).standard_normal((2, 20_000, 80))
    z = trend_statistic(short, long)
    assert abs(z.mean()) < 0.03
    # A little below 1: the correlation that is estimated is clipped at 0, not at its true value.
    assert 0.9 < z.std() < 1.02


@pytest.mark.parametrize("planned", [None, 40, 90])
def test_live_and_vectorised_agree(planned):
    series = np.random.default_rng(7).standard_normal((4, 60))
    score, rising = score_series(series, planned)
    for row in range(4):
        live = readings(series[row], planned)
        np.testing.assert_allclose([r.score for r in live], score[row], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose([r.rising for r in live], rising[row], rtol=1e-10, atol=1e-12)


def test_says_nothing_before_it_can():
    live = readings(np.random.default_rng(1).standard_normal(30))
    assert [math.isnan(r.score) for r in live] == [True] * FIRST + [False] * (30 - FIRST)


def test_a_move_across_missing_epochs_is_not_used():
    values = np.random.default_rng(2).standard_normal(40)
    shifted = values.copy()
    shifted[20:] += 1000.0
    epochs = [*range(20), *range(23, 43)]
    assert readings(shifted, epochs=epochs)[-1].score == pytest.approx(
        readings(values, epochs=epochs)[-1].score, abs=1e-9
    )
    assert readings(shifted)[-1].score != pytest.approx(readings(values)[-1].score, abs=1e-3)


def test_a_constant_series_has_no_trend():
    assert {r.score for r in readings([0.5] * 40)[FIRST:]} == {0.0}


def test_a_series_that_freezes_converges():
    series = np.full(60, 0.5)
    series[:30] += 0.01 * np.random.default_rng(3).standard_normal(30)
    live = readings(series, 60)
    assert max(r.score for r in live[FIRST:30]) < 1
    assert live[-1].score >= 1


@settings(max_examples=60, deadline=None)
@given(
    arrays(
        np.float64,
        st.integers(MIN_MOVES + 2, 40),
        elements=st.floats(-1, 1, allow_subnormal=False, width=32),
    )
)
def test_any_finite_series_has_a_finite_statistic(series):
    statistic = trend_statistic(np.diff(series)[None, 1:], (series[2:] - series[:-2])[None])
    assert np.isfinite(statistic).all()
    # The statistic is a correlation with time, times sqrt(n).
    assert abs(statistic[0]) <= math.sqrt(len(series) - 2) + 1e-9


def test_the_threshold_falls_towards_the_planned_end_and_is_the_open_one_beyond():
    assert boundary(60, 60) == pytest.approx(
        float(np.interp(60, thresholds()["lengths"], thresholds()["falling"]))
    )
    before = boundary(np.arange(17, 61), 60)
    assert (np.diff(before) < 0).all()
    beyond = np.arange(61, 90)
    np.testing.assert_array_equal(boundary(beyond, 60), boundary(beyond, None))
    assert boundary(61, 60) > boundary(60, 60)


def test_the_table_names_the_command_that_made_it():
    import importlib.resources
    import json

    text = importlib.resources.files("mlflow_dynamics.convergence").joinpath("thresholds.json").read_text()
    content = json.loads(text)
    assert content["made_by"] == "python benchmarks/calibrate_detector.py --draws 40000"
    lengths = content["table"].pop("lengths")
    assert lengths == sorted(lengths)
    assert all(len(column) == len(lengths) for column in content["table"].values())
