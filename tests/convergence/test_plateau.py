"""The plateau of known curves, and of any."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_dynamics.convergence.plateau import plateau_epoch


def test_plateau():
    accuracy = np.array([0.1, 0.4, 0.6, 0.7, 0.796, 0.8, 0.797, 0.799, 0.8, 0.798])
    # The median of epochs 3 to 7 is 0.797, of 2 to 6 0.796, of 1 to 5 0.7.
    assert plateau_epoch(accuracy) == 4
    assert plateau_epoch(accuracy, tolerance=0.0035) == 5
    assert plateau_epoch([0.5] * 3) == 0
    assert plateau_epoch([]) is None


def test_a_single_lucky_epoch_is_no_plateau():
    assert plateau_epoch([0.5, 0.5, 0.5, 0.9, 0.5, 0.5, 0.5]) is None


def test_a_curve_that_rises_to_its_end_is_not_flat():
    assert plateau_epoch([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]) is None
    assert plateau_epoch([0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.7, 0.7]) == 5
    assert plateau_epoch([0.5]) is None


def test_plateau_within_half_a_point_includes_half_a_point():
    assert plateau_epoch([0.2, 0.2, 0.2, 0.8, 0.8, 0.8, 0.8, 0.8, 0.805]) == 3


def test_an_accuracy_in_percent_has_the_plateau_of_the_same_in_parts_of_one():
    rng = np.random.default_rng(0)
    for _ in range(200):
        accuracy = np.maximum.accumulate(rng.uniform(0.02, 1.0, 12)) - rng.uniform(0, 0.01, 12)
        assert plateau_epoch(100 * accuracy) == plateau_epoch(accuracy)


def test_epochs_without_a_value_are_left_out():
    nan = math.nan
    assert plateau_epoch([nan, 0.1, nan, 0.2, nan, 0.7, nan, 0.7, nan, 0.7]) == 5
    assert plateau_epoch([nan, nan]) is None


@given(st.lists(st.floats(0, 1) | st.just(math.nan), max_size=40))
def test_a_plateau_is_an_epoch_whose_median_is_near_the_best(accuracy):
    epoch = plateau_epoch(accuracy)
    if epoch is None:
        return
    values = [value for value in accuracy if not math.isnan(value)]
    position = sum(not math.isnan(value) for value in accuracy[:epoch])
    around = values[max(0, position - 2) : position + 3]
    assert np.median(around) >= max(values) - 0.005 - 1e-9


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_a_constant_is_flat_from_the_start(level):
    assert plateau_epoch([level] * 10) == 0
