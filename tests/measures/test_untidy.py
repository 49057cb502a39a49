"""What trainings and users hand in that is not tidy: lost steps, huge offsets, masks, and every kind of array."""

import numpy as np
import pytest

from mlflow_dynamics.config import MeasureConfig
from mlflow_dynamics.convergence import ConvergenceMonitor
from mlflow_dynamics.measures import SignalWindow, dfa, measure, order_parameter, surrogate_tests
from mlflow_dynamics.records import EpochActivations, Layer

SCALARS = ("integration", "synchrony", "metastability", "stability")


def walks(layers=12, steps=512, seed=0):
    return np.random.default_rng(seed).normal(size=(layers, steps)).cumsum(axis=1)


def record(values, epoch=0):
    return EpochActivations(
        epoch=epoch,
        step=np.arange(values.shape[1], dtype=np.int32),
        mean=values.astype(np.float32),
        std=np.ones(values.shape, dtype=np.float32),
        layers=tuple(
            Layer(index=i, name=f"l{i}", type="Linear", output_shape=(1,), parameters=1)
            for i in range(len(values))
        ),
    )


@pytest.mark.parametrize("step", [0, 7, 255, 511])
@pytest.mark.parametrize("hole", [np.nan, np.inf])
def test_one_step_lost_in_all_layers_changes_next_to_nothing(step, hole):
    clean = walks()
    signals = clean.copy()
    signals[:, step] = hole
    before = signals.copy()
    found, expected = measure(signals), measure(clean)
    assert found.layers_dropped == 0
    assert found.reason is None
    for name in SCALARS:
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=0.002)
    assert order_parameter(signals).shape == order_parameter(clean).shape
    assert surrogate_tests(signals).coupling_p == pytest.approx(surrogate_tests(clean).coupling_p, abs=0.05)
    np.testing.assert_array_equal(signals, before)


def test_the_bridge_is_a_straight_line():
    signals = walks(steps=100)
    signals[:, 40:43] = np.nan
    lines = signals.copy()
    lines[:, 39:44] = np.linspace(signals[:, 39], signals[:, 43], 5, axis=1)
    np.testing.assert_array_equal(measure(signals).exponents, measure(lines).exponents)


@pytest.mark.parametrize(("lost", "bridged"), [(25, True), (26, False)])
def test_up_to_five_percent_of_a_window_are_bridged(lost, bridged):
    signals = walks()
    signals[:, np.random.default_rng(1).choice(512, lost, replace=False)] = np.nan
    found = measure(signals)
    assert np.isfinite(found.stability) == bridged
    if not bridged:
        assert found.reason == "no layer is finite at 26 of 512 steps; at most 5% of a window are bridged."
        assert found.layers_dropped == 12


def test_a_step_that_some_layer_survives_costs_the_others():
    signals = walks()
    signals[:9, 100] = np.nan
    assert measure(signals).layers_dropped == 9


def test_each_window_of_a_batch_has_its_own_lost_steps():
    windows = np.stack([walks(seed=i) for i in range(4)]).reshape(2, 2, 12, 512)
    windows[0, 1, :, 30] = np.nan
    windows[1, 0, :, 200:300] = np.nan
    found = measure(windows)
    for index in np.ndindex(2, 2):
        alone = measure(windows[index])
        np.testing.assert_allclose(found.stability[index], alone.stability, atol=1e-12)
        np.testing.assert_allclose(found.exponents[index], alone.exponents, atol=1e-12)
    assert np.isnan(found.stability).tolist() == [[False, False], [True, False]]
    assert "100 of 512 steps" in found.reason


@pytest.mark.parametrize("protocol", ["steps", "depth"])
def test_a_training_with_one_lost_step_is_measured_and_not_called_diverging(protocol):
    monitor = ConvergenceMonitor()
    window = SignalWindow(MeasureConfig(protocol=protocol, window=256))
    signals = walks(layers=20, steps=1000)
    signals[:, 450] = np.nan
    for epoch, part in enumerate(np.split(signals, 10, axis=1)):
        window.append(record(part, epoch))
        found = window.measure()
        assert np.isfinite(found.stability), found.reason
        assert monitor.update(epoch, found.stability, loss=1.0).state != "diverging"


def test_an_undefined_index_is_no_divergence_while_the_loss_is_finite():
    monitor = ConvergenceMonitor()
    for epoch in range(10):
        monitor.update(epoch, 0.5, loss=1.0)
    assert monitor.update(10, np.nan, loss=1.0).state == "waiting"
    assert monitor.update(11, np.nan, loss=np.nan).state == "diverging"


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6, 1e9, -1e9])
def test_a_small_signal_on_a_large_offset_is_a_signal(offset):
    small = 1e-3 * np.random.default_rng(2).normal(size=(12, 512))
    found = measure(small + offset)
    assert found.layers_dropped == 0
    np.testing.assert_allclose(found.exponents, measure(small).exponents, atol=1e-3)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("slope", [0.0, 1e-3, 1.0, -37.3])
@pytest.mark.parametrize("steps", [64, 512, 20_000])
def test_the_rounding_of_a_line_is_no_signal(kind, slope, steps):
    line = (0.1 + slope * np.linspace(0, 1, steps)).astype(kind)
    assert measure(np.stack([line, 3 * line, line[::-1]])).layers_dropped == 3


@pytest.mark.parametrize(("kind", "size"), [(np.float16, 5e-3), (np.float32, 1e-6), (np.float64, 1e-13)])
def test_what_exceeds_rounding_is_a_signal(kind, size):
    signals = (1 + size * np.random.default_rng(3).normal(size=(4, 512))).astype(kind)
    assert measure(signals).layers_dropped == 0


def test_masked_values_are_missing_values():
    signals = walks()
    holes = np.zeros(signals.shape, dtype=bool)
    holes[3, 10] = holes[:, 77] = True
    expected = measure(np.where(holes, np.nan, signals))
    masked = np.ma.array(np.where(holes, 1e20, signals), mask=holes)
    for given in (masked, list(masked), masked.astype(np.float64)):
        found = measure(given)
        assert found.layers_dropped == 1
        np.testing.assert_array_equal(found.exponents, expected.exponents)
    counts = np.ma.array(np.arange(200) % 7, mask=np.arange(200) == 5)
    assert np.isnan(dfa(counts))
    assert np.isfinite(dfa(np.ma.array(counts.data)))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.int32, np.uint8, bool])
def test_every_real_kind_is_its_double(kind):
    signals = (np.random.default_rng(4).normal(size=(5, 200)) * 40 + 100).clip(0, 250).astype(kind)
    if kind is bool:
        signals = np.random.default_rng(4).normal(size=(5, 200)) > 0
    found, expected = measure(signals), measure(signals.astype(np.float64))
    np.testing.assert_array_equal(found.exponents, expected.exponents)
    assert found.stability == expected.stability
    assert measure(signals.tolist()).stability == expected.stability
    assert measure(np.asfortranarray(signals)).stability == pytest.approx(expected.stability, abs=1e-12)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            np.full((3, 100), None),
            r"\(3, 100\) must be real numbers, not object; convert them with numpy.asarray",
        ),
        (np.ones((3, 100)) * 1j, r"\(3, 100\) must be real numbers, not complex128"),
        ([[1.0, 2.0], [1.0]], "rows of different lengths"),
        (np.ma.array([["a", "b"]]), r"\(1, 2\) must be real numbers"),
    ],
)
def test_what_is_no_array_of_reals_is_refused_in_one_sentence(given, said):
    with pytest.raises(ValueError, match=said) as refusal:
        measure(given)
    assert "\n" not in str(refusal.value)
