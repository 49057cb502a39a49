"""How long a window is, when start-up ends, and that nothing of start-up becomes volatility."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_dynamics.config import MeasureConfig
from mlflow_dynamics.measures import SignalWindow, measure, volatility
from mlflow_dynamics.measures.windows import FIRST_STEPS, START_UP, volatility_of, window_rule
from mlflow_dynamics.records import EpochActivations, Layer


def record(epoch, steps, layers=3, seed=0):
    rng = np.random.default_rng([seed, epoch])
    return EpochActivations(
        epoch=epoch,
        step=np.arange(steps, dtype=np.int32),
        mean=rng.normal(size=(layers, steps)).astype(np.float32),
        std=np.zeros((layers, steps), dtype=np.float32),
        layers=tuple(
            Layer(index=i, name=f"l{i}", type="Linear", output_shape=(1,), parameters=1)
            for i in range(layers)
        ),
    )


@pytest.mark.parametrize("steps", [8, 9, 10, 11, 15, 16, 24, 31, 32, 33, 40, 79, 157, 391, 600, 1000, 5000])
def test_start_up_is_over_after_at_most_five_epochs(steps):
    rule = window_rule([steps, steps])
    assert 32 <= rule.length <= 512
    assert not rule.starting_up(START_UP * steps)
    assert rule.starting_up(rule.length + rule.left_out - 1)
    # The transient of fresh weights is left out as far as five epochs allow: two of them, or the first of few steps.
    assert rule.left_out >= min(2 * steps if steps > 10 else steps, FIRST_STEPS)
    assert rule.left_out <= FIRST_STEPS


@st.composite
def of_about_one_length(draw):
    """Steps of the epochs of one training: some without any, the first perhaps the rest of an interrupted one."""
    whole = draw(st.integers(1, 700))
    epochs = draw(st.lists(st.integers(-(-whole * 9 // 10), whole) | st.just(0), min_size=1, max_size=12))
    return [draw(st.integers(0, whole)), *epochs[1:]]


@given(of_about_one_length(), st.none() | st.integers(32, 600))
def test_a_window_after_start_up_is_full_and_free_of_the_first_steps_and_keeps_its_length(epochs, asked):
    found = SignalWindow(MeasureConfig(window=asked, signal="mean"))
    records = [record(epoch, steps) for epoch, steps in enumerate(epochs)]
    everything = np.empty((3, 0))
    lengths, over = set(), False
    for one in records:
        found.append(one)
        everything = np.concatenate([everything, one.mean], axis=1)
        measures = found.measure()
        assert measures.window == found.signals().shape[1]
        np.testing.assert_array_equal(
            found.signals(), everything[:, everything.shape[1] - int(measures.window) :]
        )
        # Once over, start-up does not come again.
        assert not (over and measures.start_up)
        over = not measures.start_up
        if over:
            lengths.add(measures.window)
            whole = [steps for steps in epochs if steps][:2]
            first = everything.shape[1] - measures.window
            assert first >= min(FIRST_STEPS, max(whole))
            assert measures.window == asked or asked is None
    assert len(lengths) <= 1


def test_a_first_epoch_that_was_cut_short_does_not_decide():
    assert window_rule([10, 200]) == window_rule([200, 200])
    assert window_rule([10, 200, 5000]) == window_rule([200, 200])


def test_given_steps_are_kept_and_wait_for_the_first_epoch_to_leave():
    rule = window_rule([15, 15], 512)
    assert rule.length == 512
    # The cliff of a training of 15 steps an epoch was at epoch 34 = 512 / 15.
    assert [rule.starting_up(15 * epochs) for epochs in (34, 35, 36)] == [True, True, False]


def test_the_epochs_protocol_never_leaves_start_up():
    found = SignalWindow(MeasureConfig(protocol="epochs"))
    for epoch in range(40):
        found.append(record(epoch, 100))
    assert found.measure().reason is None
    assert found.measure().start_up
    assert found.measure().window == 40


def test_volatility_is_that_of_epochs_after_start_up_alone():
    rng = np.random.default_rng(0)
    epochs = [replace(measure(rng.normal(size=(3, 64))), start_up=epoch < 3) for epoch in range(8)]
    found = [volatility_of(epochs[: epoch + 1], window=5) for epoch in range(8)]
    assert all(math.isnan(value) for value in found[:7])
    assert found[7] == volatility([one.stability for one in epochs[3:]], window=5)
