"""Epochs that change their length begin another start-up: S moves by more or less where no layer changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_dynamics.config import MeasureConfig
from mlflow_dynamics.measures import SignalWindow
from mlflow_dynamics.records import EpochActivations, Layer

LAYERS = tuple(Layer(index=i, name=str(i), type="Linear", output_shape=(1,), parameters=1) for i in range(3))


def marks(lengths: list[int], window: int | None = None) -> list[bool]:
    """start_up after each epoch of so many steps."""
    rng, held, found = np.random.default_rng(0), SignalWindow(MeasureConfig(window=window)), []
    for epoch, steps in enumerate(lengths):
        mean = rng.normal(size=(3, steps)).astype(np.float32)
        step = np.arange(steps, dtype=np.int32)
        held.append(EpochActivations(epoch=epoch, step=step, mean=mean, std=np.abs(mean), layers=LAYERS))
        found.append(held.start_up)
    return found


def test_a_change_of_length_begins_a_start_up_that_ends_when_the_window_has_passed_it() -> None:
    # A window of 120 steps holds steps of the longer epochs for six of the shorter ones.
    assert marks([40] * 6 + [20] * 9) == [True] * 4 + [False] * 2 + [True] * 5 + [False] * 4
    assert marks([40] * 6 + [80] * 3) == [True] * 4 + [False] * 2 + [True] + [False] * 2
    # One epoch at the least, or the detector would go on with moves of another overlap.
    assert marks([40] * 6 + [150] * 3) == [True] * 4 + [False] * 2 + [True] + [False] * 2


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_start_up_does_not_end_with_epochs_of_few_steps(steps: int) -> None:
    assert all(marks([steps] * 200))


@given(st.integers(8, 600), st.integers(0, 10**6))
def test_epochs_of_about_the_same_length_begin_none(steps: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = [int(rng.integers(steps - steps // 20, steps + 1)) for _ in range(12)]
    settled = marks(lengths)
    assert settled == sorted(settled, reverse=True)
    assert not settled[6:] or not any(settled[6:])


def test_rounding_of_the_record_is_no_signal() -> None:
    rng, held = np.random.default_rng(1), SignalWindow(MeasureConfig(window=64))
    one = np.float32(1.0)
    jitter = np.where(rng.random((3, 200)) < 0.5, one, np.nextafter(one, np.float32(2.0)))
    jitter[2] = rng.normal(size=200)
    step = np.arange(200, dtype=np.int32)
    std = np.zeros((3, 200), np.float32)
    held.append(EpochActivations(epoch=0, step=step, mean=jitter.astype(np.float32), std=std, layers=LAYERS))
    assert held.measure().layers_dropped == 2
