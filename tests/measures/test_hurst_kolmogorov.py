"""The Hurst-Kolmogorov estimate against dense linear algebra, simulation and its own invariances."""

import numpy as np
import pytest
from known_signals import fractional_noise
from scipy.linalg import toeplitz

from mlflow_dynamics.measures import hurst, hurst_kolmogorov, integration
from mlflow_dynamics.measures.hurst_kolmogorov import GRID, fgn_autocovariance

HURST = (0.3, 0.5, 0.7, 0.9)


def dense_posterior_mean(signal, order):
    """The posterior mean by dense covariance matrices over the same grid."""
    steps = len(signal)
    trend = np.vander(np.linspace(-1, 1, steps), order + 1)
    logs = []
    for value in GRID[::5]:
        covariance = toeplitz(fgn_autocovariance(value, steps))
        inverse = np.linalg.inv(covariance)
        gram = trend.T @ inverse @ trend
        projected = inverse - inverse @ trend @ np.linalg.solve(gram, trend.T @ inverse)
        square = signal @ projected @ signal
        logs.append(
            -0.5
            * (
                np.linalg.slogdet(covariance)[1]
                + np.linalg.slogdet(gram)[1]
                + (steps - order - 1) * np.log(square)
            )
        )
    density = np.exp(np.array(logs) - max(logs))
    density[[0, -1]] /= 2
    return density @ GRID[::5] / density.sum()


@pytest.mark.parametrize("detrend", [True, False])
@pytest.mark.parametrize("steps", [16, 33, 150])
def test_agrees_with_dense_matrices(steps, detrend):
    rng = np.random.default_rng(steps)
    for value in HURST:
        signal = fractional_noise(rng, value, steps, 1)[0] + 3
        found = hurst_kolmogorov(signal, detrend=detrend).exponent
        assert found == pytest.approx(dense_posterior_mean(signal, int(detrend)), abs=2e-4)


def test_accuracy_at_32_points():
    rng = np.random.default_rng(0)
    squares = [np.mean((hurst(fractional_noise(rng, h, 32, 1000), estimator="hk") - h) ** 2) for h in HURST]
    assert np.sqrt(np.mean(squares)) <= 0.15


@pytest.mark.parametrize("steps", [64, 256, 2048])  # the last by Whittle's likelihood
def test_the_interval_covers(steps):
    rng = np.random.default_rng(1)
    for value in HURST:
        found = hurst_kolmogorov(fractional_noise(rng, value, steps, 500))
        assert 0.90 <= np.mean((found.low <= value) & (value <= found.high)) <= 0.99


def test_whittle_is_near_exact_where_both_can_be_had():
    signals = np.concatenate([fractional_noise(np.random.default_rng(2), h, 1024, 10) for h in HURST])
    exact = hurst_kolmogorov(signals, likelihood="exact").exponent
    whittle = hurst_kolmogorov(signals, likelihood="whittle").exponent
    assert np.abs(exact - whittle).max() < 0.02


def test_long_signals_are_accurate():
    rng = np.random.default_rng(3)
    for value in HURST:
        assert hurst(fractional_noise(rng, value, 8192, 10), estimator="hk").mean() == pytest.approx(
            value, abs=0.015
        )


def test_a_line_changes_nothing_when_detrended():
    noise = np.random.default_rng(4).normal(size=(50, 64))
    drift = noise + np.linspace(-50, 50, 64)
    np.testing.assert_allclose(hurst_kolmogorov(drift).exponent, hurst_kolmogorov(noise).exponent, atol=1e-9)
    assert hurst_kolmogorov(drift, detrend=False).exponent.min() > 0.9


def test_drift_fools_neither_when_it_is_removed():
    rng = np.random.default_rng(5)
    drift = rng.normal(size=(500, 64)) + np.linspace(0, 5, 64)
    assert hurst(drift, estimator="hk").mean() == pytest.approx(0.5, abs=0.03)
    assert integration(drift) == pytest.approx(0.5, abs=0.05)
    assert hurst_kolmogorov(drift, detrend=False).exponent.mean() > 0.85


@pytest.mark.parametrize("steps", [256, 2048])
def test_a_walk_ends_at_the_edge_and_says_so(steps):
    walks = np.random.default_rng(6).normal(size=(100, steps)).cumsum(axis=1)
    assert hurst_kolmogorov(walks).at_edge.mean() > 0.95
    assert hurst_kolmogorov(np.diff(walks)).at_edge.mean() == 0


def test_undefined_is_nan():
    signals = np.random.default_rng(7).normal(size=(4, 64))
    signals[1] = 3
    signals[2, 5] = np.nan
    found = hurst_kolmogorov(signals)
    for field in (found.exponent, found.low, found.high):
        assert np.isnan(field).tolist() == [False, True, True, False]
    assert not found.at_edge[1:3].any()
    assert np.isnan(hurst_kolmogorov(signals[:, :7]).exponent).all()


@pytest.mark.parametrize(
    ("options", "message"), [({"level": 1.0}, "level=1.0"), ({"likelihood": "mle"}, "likelihood='mle'")]
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        hurst_kolmogorov(np.zeros(64), **options)
