"""Phases against scipy's Hilbert transform, closed forms and switching with known answer."""

import numpy as np
import pytest
from scipy.signal import detrend, hilbert

from mlflow_dynamics.measures import (
    measure,
    metastability,
    metastability_ratio,
    order_parameter,
    synchrony,
)
from mlflow_dynamics.measures.synchrony import incoherent_metastability, incoherent_synchrony, phasors


@pytest.mark.parametrize("steps", [512, 511, 64])
def test_is_scipys_analytic_signal(steps):
    signals = np.random.default_rng(0).normal(size=(7, steps)).cumsum(axis=1)
    expected = np.abs(np.exp(1j * np.angle(hilbert(detrend(signals)))).mean(axis=0))[10:-10]
    np.testing.assert_allclose(order_parameter(signals), expected, atol=1e-10)


def test_the_analytic_signal_of_a_sine_turns_with_it():
    angle = 2 * np.pi * 16 * np.arange(512) / 512
    found = phasors(np.sin(angle)[None], np.array([True]))
    np.testing.assert_allclose(found.cos[0], np.sin(angle)[10:-10], atol=1e-12)
    np.testing.assert_allclose(found.sin[0], -np.cos(angle)[10:-10], atol=1e-12)


def test_identical_layers_are_in_phase():
    signal = np.random.default_rng(1).normal(size=300)
    signals = np.outer([1, 5, 1e-3, 1e6], signal) + np.array([[0], [3], [9], [-4]])
    assert synchrony(signals) == pytest.approx(1, abs=1e-12)
    assert metastability(signals) == pytest.approx(0, abs=1e-7)
    np.testing.assert_allclose(measure(signals).phase_coherence, 1, atol=1e-7)


def test_antiphase_is_minus_one():
    wave = np.sin(np.linspace(0, 80, 400))
    found = measure([wave, -wave])
    assert found.synchrony == pytest.approx(0, abs=1e-7)
    np.testing.assert_allclose(found.phase_coherence, -1, atol=1e-7)


@pytest.mark.parametrize("layers", [20, 100])
def test_incoherent_layers_have_their_closed_form(layers):
    windows = np.random.default_rng(2).normal(size=(20, layers, 1024))
    assert synchrony(windows).mean() == pytest.approx(incoherent_synchrony(layers), rel=0.02)
    # The closed form is the limit of many layers; at L layers it is high by about 1 / (2 L).
    allowed = 0.01 + 0.6 / layers
    assert metastability(windows).mean() == pytest.approx(incoherent_metastability(layers), rel=allowed)
    assert metastability_ratio(windows).mean() == pytest.approx(1, rel=allowed)


def test_switching_is_metastable():
    rng = np.random.default_rng(3)
    steps = np.arange(512)
    frequency = rng.uniform(0.05, 0.15, size=(30, 1))
    apart = np.sin(2 * np.pi * (frequency * steps + rng.uniform(size=(30, 1))))
    together = np.sin(2 * np.pi * 0.1 * steps)
    switching = np.where(steps // 128 % 2 == 0, apart, together)
    assert metastability_ratio(switching) > 3 > 1.5 > metastability_ratio(apart)


def test_a_common_drift_is_no_synchrony():
    signals = np.random.default_rng(4).normal(size=(50, 512)) + 0.1 * np.arange(512)
    assert synchrony(signals) == pytest.approx(0.12, abs=0.02)


def test_phase_coherence_finds_the_odd_layer():
    rng = np.random.default_rng(5)
    signals = rng.normal(size=512) + 0.1 * rng.normal(size=(10, 512))
    signals[3] = rng.normal(size=512)
    coherence = measure(signals).phase_coherence
    assert coherence.argmin() == 3
    assert abs(coherence[3]) < 0.3 < 0.9 < np.delete(coherence, 3).min()
