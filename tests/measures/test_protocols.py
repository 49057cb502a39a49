"""From the record to signals: windows, protocols, and records with holes."""

import numpy as np
import pytest

from mlflow_dynamics.config import MeasureConfig
from mlflow_dynamics.measures import SignalWindow, measure
from mlflow_dynamics.measures.protocols import MIN_DEPTH, MIN_EPOCHS
from mlflow_dynamics.records import EpochActivations, Layer


def record(epoch, steps, layers=20, seed=0):
    rng = np.random.default_rng([seed, epoch])
    return EpochActivations(
        epoch=epoch,
        step=np.arange(epoch * 1000, epoch * 1000 + steps, dtype=np.int32),
        mean=rng.normal(size=(layers, steps)).astype(np.float32),
        std=rng.uniform(0.5, 1.5, size=(layers, steps)).astype(np.float32),
        layers=tuple(
            Layer(index=i, name=f"l{i}", type="Linear", output_shape=(1,), parameters=1)
            for i in range(layers)
        ),
    )


def window(records, **options):
    found = SignalWindow(MeasureConfig(**options))
    for one in records:
        found.append(one)
    return found


EXPECTED = {
    "rms": lambda r: np.hypot(r.mean.astype(float), r.std.astype(float)).astype(np.float32),
    "mean": lambda r: r.mean,
    "std": lambda r: r.std,
}


@pytest.mark.parametrize("signal", EXPECTED)
def test_steps_are_the_last_of_the_record(signal):
    records = [record(e, 30) for e in range(5)]
    everything = np.concatenate([EXPECTED[signal](r) for r in records], axis=1)
    found = window(records, window=100, signal=signal)
    np.testing.assert_array_equal(found.signals(), everything[:, -100:])
    expected = measure(everything[:, -100:])
    assert found.measure().stability == pytest.approx(expected.stability, abs=1e-9)


@pytest.mark.parametrize(("protocol", "epochs"), [("steps", 5), ("epochs", MIN_EPOCHS), ("depth", 5)])
def test_uncertainty_is_given_on_request_and_changes_nothing_else(protocol, epochs):
    records = [record(e, 30) for e in range(epochs)]
    without = window(records, protocol=protocol).measure()
    found = window(records, protocol=protocol, uncertainty=True).measure()
    assert found.integration_low < found.integration == without.integration < found.integration_high
    assert 0 < found.coupling_p <= 1
    assert 0 < found.metastability_p <= 1
    assert found.stability == without.stability
    unasked = (without.integration_low, without.integration_high, without.coupling_p, without.metastability_p)
    assert np.isnan(unasked).all()


def test_uncertainty_of_what_is_undefined_is_undefined():
    assert np.isnan(window([record(0, 20)], uncertainty=True).measure().coupling_p)


def test_an_epoch_longer_than_the_window_is_cut():
    one = record(0, 500)
    np.testing.assert_array_equal(window([one], window=64, signal="std").signals(), one.std[:, -64:])


def test_only_the_window_stays_in_memory():
    found = window([record(e, 500) for e in range(3)], window=64)
    held = found.signals()
    assert held.base is None or held.base.size <= 20 * 64


def test_epochs_are_means_of_all_epochs():
    records = [record(e, 7 + e) for e in range(MIN_EPOCHS)]
    found = window(records, protocol="epochs", signal="mean", window=64)
    np.testing.assert_allclose(
        found.signals(), np.stack([r.mean.astype(float).mean(axis=1) for r in records], axis=1), rtol=1e-9
    )
    assert found.measure().reason is None
    assert 0 < found.measure().integration < 1
    other = window(records, protocol="epochs", signal="mean", estimator="dfa")
    assert other.measure().integration != found.measure().integration


def test_too_few_epochs_say_so():
    found = window([record(e, 5) for e in range(MIN_EPOCHS - 1)], protocol="epochs").measure()
    assert found.reason == "15 epochs are recorded; the epochs protocol needs at least 16."
    assert np.isnan(found.stability)
    assert found.exponents.shape == (20,)


def test_depth_takes_steps_for_oscillators():
    one = record(0, 100)
    found = window([one], protocol="depth", signal="mean")
    np.testing.assert_array_equal(found.signals(), one.mean.T)
    measures = found.measure()
    expected = measure(one.mean.T, min_steps=MIN_DEPTH)
    assert measures.integration == pytest.approx(expected.integration, abs=1e-9)
    assert measures.metastability == pytest.approx(expected.metastability, abs=1e-9)
    # One row for each layer, as in every protocol: a signal is no layer here.
    assert np.isnan(measures.exponents).all()
    assert measures.exponents.shape == measures.phase_coherence.shape == (20,)


def test_depth_leaves_out_layers_that_did_not_run():
    one = record(0, 100)
    one.mean[3, 50] = np.nan
    found = window([one], protocol="depth")
    assert found.signals().shape == (100, 19)
    assert found.measure().layers_dropped == 1
    assert np.isfinite(found.measure().integration)


def test_depth_of_a_shallow_network_says_so():
    found = window([record(0, 100, layers=15)], protocol="depth").measure()
    assert found.reason == "15 layers are recorded and finite; the depth protocol needs at least 16."


def test_epochs_average_over_the_steps_a_layer_ran():
    records = [record(e, 10) for e in range(MIN_EPOCHS)]
    records[4].mean[2, :5] = np.nan
    records[5].mean[3] = np.nan
    found = window(records, protocol="epochs", signal="mean")
    assert found.signals()[2, 4] == pytest.approx(records[4].mean[2, 5:].mean(), rel=1e-6)
    assert found.measure().layers_dropped == 1


@pytest.mark.parametrize("protocol", ["steps", "epochs", "depth"])
def test_epochs_without_steps_change_nothing(protocol):
    records = [record(e, 10) for e in range(MIN_EPOCHS)]
    with_holes = [record(90, 0), *records[:3], record(91, 0), *records[3:], record(92, 0)]
    one, other = window(records, protocol=protocol), window(with_holes, protocol=protocol)
    np.testing.assert_array_equal(one.signals(), other.signals())
    assert one.measure().stability == pytest.approx(other.measure().stability, abs=1e-12)


@pytest.mark.parametrize("protocol", ["steps", "epochs", "depth"])
def test_nothing_recorded_is_undefined(protocol):
    for found in (window([], protocol=protocol), window([record(0, 0)], protocol=protocol)):
        assert np.isnan(found.measure().integration)
        assert found.measure().reason


def test_another_number_of_layers_is_refused():
    found = window([record(0, 10)])
    with pytest.raises(ValueError, match=r"\(21, 10\) do not continue a record of 20 layers"):
        found.append(record(1, 10, layers=21))
