"""Intervals cover and tests reject as often as they say, on signals whose truth is known."""

import numpy as np
import pytest
from known_signals import autoregression, fractional_noise

from mlflow_dynamics.measures import integration, integration_interval, surrogate_tests

LAYERS, STEPS = 8, 128


def white(rng):
    return rng.normal(size=(LAYERS, STEPS))


def slow_noise(rng):
    return autoregression(rng, 0.8, STEPS, LAYERS)


def linear_factor(rng):
    return autoregression(rng, 0.8, STEPS, LAYERS) + autoregression(rng, 0.8, STEPS, 1)


def switching(rng):
    """Layers with their own frequencies half of the time, in phase the other half."""
    steps = np.arange(256)
    own = rng.uniform(0.05, 0.15, size=(12, 1))
    apart = np.sin(2 * np.pi * (own * steps + rng.uniform(size=(12, 1))))
    together = np.sin(2 * np.pi * 0.1 * steps)
    return np.where(steps // 64 % 2 == 0, apart, together) + 0.2 * rng.normal(size=(12, 256))


def rejections(make, draws, seed):
    rng = np.random.default_rng(seed)
    found = [surrogate_tests(make(rng), seed=draw) for draw in range(draws)]
    return (
        np.mean([one.coupling_p <= 0.05 for one in found]),
        np.mean([one.metastability_p <= 0.05 for one in found]),
    )


@pytest.mark.parametrize("make", [white, slow_noise])
def test_uncoupled_layers_are_rejected_as_rarely_as_stated(make):
    for share in rejections(make, 1000, seed=1):
        assert 0.03 <= share <= 0.07


def test_a_linear_factor_is_coupling_but_no_metastability():
    coupled, metastable = rejections(linear_factor, 500, seed=1)
    assert coupled >= 0.95
    assert metastable <= 0.07


def test_switching_is_both():
    assert min(rejections(switching, 100, seed=2)) >= 0.95


@pytest.mark.parametrize("layers", [8, 32])
@pytest.mark.parametrize("hurst", [0.5, 0.8])
def test_intervals_cover_the_expected_integration(hurst, layers):
    windows = fractional_noise(np.random.default_rng(3), hurst, 256, 500 * layers).reshape(500, layers, 256)
    truth = integration(windows).mean()
    found = [integration_interval(window, resamples=499) for window in windows]
    assert 0.90 <= np.mean([one.low <= truth <= one.high for one in found]) <= 0.98


def test_seeds_repeat():
    window = switching(np.random.default_rng(4))
    assert surrogate_tests(window, seed=5) == surrogate_tests(window, seed=5)
    assert integration_interval(window, seed=5) == integration_interval(window, seed=5)
    assert integration_interval(window, seed=5) != integration_interval(window, seed=6)


def test_undefined_is_nan():
    window = white(np.random.default_rng(6))
    window[:6] = 1.0
    assert np.isnan(integration_interval(window).low)
    assert np.isfinite(surrogate_tests(window).coupling_p)
    window[6] = np.nan
    assert np.isnan(surrogate_tests(window).coupling_p)
    assert np.isnan(surrogate_tests(np.empty((0, 0))).metastability_p)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"not \(2, 3, 64\)"):
        surrogate_tests(np.zeros((2, 3, 64)))
    with pytest.raises(ValueError, match="surrogates=0"):
        surrogate_tests(np.zeros((3, 64)), surrogates=0)
    with pytest.raises(ValueError, match=r"level=1\.5"):
        integration_interval(np.zeros((3, 64)), level=1.5)
