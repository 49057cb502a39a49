"""What is measured across layers: the exponent of what they share, and metastability at any depth."""

from itertools import permutations

import numpy as np
import pytest
import scipy.signal
from known_signals import autoregression, plain_fluctuations

from mlflow_dynamics.config import MeasureConfig
from mlflow_dynamics.measures import (
    SignalWindow,
    global_integration,
    integration,
    measure,
    metastability,
    metastability_ratio,
    metastability_unbiased,
)
from mlflow_dynamics.tracking import names


def coupled(rng, layers, steps=512, share=1.0):
    """AR(1) 0.8, each with a common factor."""
    return autoregression(rng, 0.8, steps, layers) + share * autoregression(rng, 0.8, steps, 1)


def switching(rng, layers, steps=512):
    """Own frequencies, and one common one every other 64 steps."""
    time = np.arange(steps)
    own = 2 * np.pi * (rng.uniform(0.05, 0.45, size=(layers, 1)) * time + rng.uniform(size=(layers, 1)))
    together = time // 64 % 2 == 1
    return np.where(together, np.sin(2 * np.pi * 0.1 * time), np.sin(own)) + 0.1 * rng.normal(
        size=(layers, steps)
    )


def uncoupled(rng, layers, steps=512):
    return autoregression(rng, 0.8, steps, layers)


def plain_exponent(signal):
    """DFA as its page defines it, from the extended-precision F."""
    largest = len(signal) // (2 if len(signal) < 128 else 4)
    sizes = np.array(sorted(n for b in (4, 6) for n in b * 2 ** np.arange(12) if n <= largest))
    f = plain_fluctuations(signal, sizes, overlap=True) * sizes / np.sqrt(sizes**2 - 4)
    return np.polyfit(np.log(sizes), np.log(f), 1, w=np.sqrt(1 / sizes))[0]


@pytest.mark.parametrize("steps", [64, 200, 512])
def test_global_integration_is_its_definition(steps):
    signals = coupled(np.random.default_rng(0), 7, steps) * np.geomspace(1e-3, 1e3, 7)[:, None] + 5
    flat = scipy.signal.detrend(signals)
    mean = (flat / flat.std(axis=1, keepdims=True)).mean(axis=0)
    assert global_integration(signals) == pytest.approx(plain_exponent(mean), abs=1e-9)
    assert measure(signals).global_integration == pytest.approx(plain_exponent(mean), abs=1e-9)


def test_it_is_the_exponent_of_what_is_shared():
    rng = np.random.default_rng(1)
    walks, noise = rng.normal(size=(40, 512)).cumsum(axis=1), rng.normal(size=(40, 512))
    walks /= walks.std(axis=1, keepdims=True)
    shared_noise, shared_walk = walks + rng.normal(size=512), noise + walks[0]
    assert global_integration(shared_noise) == pytest.approx(0.5, abs=0.1)
    assert global_integration(shared_noise) < integration(shared_noise) - 0.1
    assert global_integration(shared_walk) > integration(shared_walk) + 0.2
    # Nothing shared: that of an average layer.
    drawn = [global_integration(rng.normal(size=(20, 512))) for _ in range(100)]
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.02)


def test_layers_that_cancel_have_none():
    noise = np.random.default_rng(2).normal(size=(3, 256))
    found = measure(np.concatenate([noise, -3 * noise]))
    assert np.isnan(found.global_integration)
    assert np.isfinite(found.integration)
    assert "cancel" in found.reason
    assert np.isnan(global_integration(noise[:1]))
    assert np.isnan(global_integration(np.ones((4, 256))))


@pytest.mark.parametrize("function", [global_integration, metastability_unbiased])
def test_invariances_and_batches(function):
    rng = np.random.default_rng(3)
    windows = np.stack([coupled(rng, 9) for _ in range(6)]).reshape(2, 3, 9, 512)
    windows[1, 1, 4] = 7.0
    found = function(windows)
    assert found.shape == (2, 3)
    for index in np.ndindex(2, 3):
        one = windows[index]
        assert function(one) == pytest.approx(found[index], abs=1e-12)
        assert function(one[rng.permutation(9)]) == pytest.approx(found[index], abs=1e-9)
        scaled = one * np.geomspace(1e-3, 1e3, 9)[:, None] + rng.normal(size=(9, 1))
        assert function(scaled) == pytest.approx(found[index], abs=1e-9)
    kept = np.delete(windows[1, 1], 4, axis=0)
    assert function(kept) == pytest.approx(found[1, 1], abs=1e-12)


def test_unbiased_metastability_is_its_definition():
    signals = coupled(np.random.default_rng(4), 5, 100)
    flat = scipy.signal.detrend(signals)
    z = scipy.signal.hilbert(flat / flat.std(axis=1, keepdims=True))[:, 10:-10]
    z /= np.abs(z)
    pairs = np.mean([z[i] * z[j].conj() for i, j in permutations(range(5), 2)], axis=0).real
    fours = [z[i] * z[j] * (z[k] * z[m]).conj() for i, j, k, m in permutations(range(5), 4)]
    variance = np.mean(fours).real - pairs.mean() ** 2
    assert metastability_unbiased(signals) == pytest.approx(np.sqrt(variance), abs=1e-9)
    assert measure(signals).metastability_unbiased == pytest.approx(np.sqrt(variance), abs=1e-9)
    assert np.isnan(metastability_unbiased(signals[:3]))
    assert np.isfinite(metastability_unbiased(signals[:4]))


@pytest.mark.parametrize(
    ("draw", "expected"),
    [(uncoupled, 0.0), (coupled, 0.24), (switching, 0.49)],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
@pytest.mark.parametrize("layers", [5, 20, 100])
def test_unbiased_metastability_is_the_same_at_every_depth(draw, expected, layers):
    rng = np.random.default_rng(5)
    found = [metastability_unbiased(draw(rng, layers)) for _ in range(120 if layers < 20 else 30)]
    variance = np.mean(np.sign(found) * np.square(found))
    assert variance == pytest.approx(expected**2, abs=0.006)


@pytest.mark.parametrize(("layers", "expected"), [(5, 0.40), (20, 0.08), (100, 0.01)])
def test_a_fixed_relation_of_few_layers_other_than_in_phase_is_misread(layers, expected):
    """As the documentation says of what unbiased metastability does not show."""
    waves = np.sin(np.arange(512) * np.pi / 16 + np.pi * (np.arange(layers)[:, None] < layers // 2))
    assert metastability_unbiased(waves) == pytest.approx(expected, abs=0.01)
    assert metastability(waves) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("steps", [128, 512])
def test_of_layers_as_slow_as_the_window_it_falls_with_their_number(steps):
    """Likewise: a walk's memory is as long as any window."""
    rng = np.random.default_rng(9)
    found = {
        layers: metastability_unbiased(
            rng.normal(size=(draws, layers, steps)).cumsum(axis=-1)
            + rng.normal(size=(draws, 1, steps)).cumsum(axis=-1)
        ).mean()
        for layers, draws in {5: 200, 20: 200, 100: 60}.items()
    }
    assert found[5] == pytest.approx(0.11, abs=0.03)
    assert found[20] == pytest.approx(0.19, abs=0.03)
    assert found[100] == pytest.approx(0.21, abs=0.03)


def test_the_ratio_grows_with_the_depth_of_coupled_layers():
    """As the documentation says; if it did not, it would be the one to compare."""
    rng = np.random.default_rng(6)
    ratio = {
        layers: np.mean([metastability_ratio(coupled(rng, layers)) for _ in range(30)])
        for layers in (5, 20, 100)
    }
    assert ratio[5] == pytest.approx(1.13, abs=0.1)
    assert ratio[20] == pytest.approx(2.14, abs=0.1)
    assert ratio[100] == pytest.approx(4.73, abs=0.2)
    raw = [np.mean([metastability(coupled(rng, n, share=0.5)) for _ in range(30)]) for n in (5, 100)]
    assert raw[0] > 1.25 * raw[1]


def test_both_are_logged_and_undefined_where_they_have_no_meaning():
    metrics = names.measure_metrics(measure(coupled(np.random.default_rng(7), 12)))
    assert 0.5 < metrics["dynamics/global_integration"] < 1.5
    assert 0.1 < metrics["dynamics/metastability_unbiased"] < 0.4
    window = SignalWindow(MeasureConfig(protocol="depth"))
    window._recent = coupled(np.random.default_rng(8), 20, 100)
    assert np.isnan(window.measure().global_integration)
    assert window.measure().reason is None
