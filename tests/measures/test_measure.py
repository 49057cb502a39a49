"""One window's measures: definitions put together, degenerate input, invariances, ranges."""

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from warm_python import COLD

import mlflow_dynamics.measures as package
from mlflow_dynamics.measures import (
    dfa,
    hurst,
    hurst_kolmogorov,
    integration,
    measure,
    metastability,
    metastability_ratio,
    order_parameter,
    stability_index,
    synchrony,
    volatility,
)

OF_LAYERS = (integration, order_parameter, synchrony, metastability, metastability_ratio)
OF_SIGNALS = (dfa, hurst, lambda x: hurst(x, estimator="hk"))
SCALARS = ("integration", "synchrony", "metastability", "metastability_ratio", "stability")


def noise(layers=6, steps=128, seed=0):
    return np.random.default_rng(seed).normal(size=(layers, steps))


@pytest.mark.parametrize("estimator", ["dfa", "hk"])
def test_is_what_the_single_functions_give(estimator):
    signals = noise().cumsum(axis=1) * 0.3 + noise(seed=1)
    found = measure(signals, estimator=estimator)
    assert found.integration == pytest.approx(integration(signals, estimator=estimator), abs=1e-9)
    assert found.integration == pytest.approx(found.exponents.mean())
    assert found.synchrony == pytest.approx(synchrony(signals), abs=1e-12)
    assert found.metastability == pytest.approx(metastability(signals), abs=1e-12)
    assert found.metastability_ratio == pytest.approx(metastability_ratio(signals), abs=1e-12)
    assert found.stability == pytest.approx(stability_index(found.integration, found.metastability))
    assert found.reason is None
    assert found.layers_dropped == 0


def test_the_estimator_is_used():
    walks = noise().cumsum(axis=1)
    assert measure(walks, estimator="hk").integration < 1 < measure(walks).integration


def test_windows_come_in_batches():
    windows = np.random.default_rng(2).normal(size=(3, 2, 5, 100))
    for function in OF_LAYERS:
        found = function(windows)
        assert found.shape[:2] == (3, 2)
        np.testing.assert_allclose(found[1, 0], function(windows[1, 0]), atol=1e-12)


@pytest.mark.parametrize("estimator", ["dfa", "hk"])
def test_a_batch_of_windows_is_each_window_measured(estimator):
    windows = np.random.default_rng(2).normal(size=(3, 2, 5, 100))
    windows[1, 0, 3] = 7.0
    windows[2, 1, 1:] = np.nan
    found = measure(windows, estimator=estimator)
    assert found.exponents.shape == found.phase_coherence.shape == (3, 2, 5)
    for index in np.ndindex(3, 2):
        alone = measure(windows[index], estimator=estimator)
        for name in (*SCALARS, "layers_dropped", "exponents", "phase_coherence"):
            np.testing.assert_allclose(getattr(found, name)[index], getattr(alone, name), atol=1e-12)
    assert "only one layer" in found.reason
    assert measure(windows[0]).reason is None
    assert measure(windows[..., :50]).stability.shape == (3, 2)


@pytest.mark.parametrize("bad", [0.0, 7.5, np.nan, np.inf, -np.inf, "line"])
def test_a_layer_that_holds_nothing_is_left_out_and_counted(bad):
    clean = noise()
    signals = np.insert(clean, 2, np.arange(128.0) if bad == "line" else clean[0], axis=0)
    if bad != "line":
        signals[2] = bad
    found, expected = measure(signals), measure(clean)
    assert found.layers_dropped == 1
    for name in SCALARS:
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-12)
    assert np.isnan(found.exponents).tolist() == [i == 2 for i in range(7)]
    assert np.isnan(found.phase_coherence).tolist() == [i == 2 for i in range(7)]


def test_a_single_nan_drops_its_layer():
    signals = noise()
    signals[4, 100] = np.nan
    assert measure(signals).layers_dropped == 1


@pytest.mark.parametrize("value", [0.0, 3.0, np.nan, np.inf])
def test_nothing_usable_is_undefined_with_its_reason(value):
    found = measure(np.full((4, 100), value))
    assert all(np.isnan(getattr(found, name)) for name in SCALARS)
    assert found.reason == "all 4 layers are constant or not finite in the window."
    assert found.layers_dropped == 4


def test_too_few_steps_are_undefined_with_their_reason():
    found = measure(noise(steps=31))
    assert all(np.isnan(getattr(found, name)) for name in SCALARS)
    assert found.reason == "31 steps are recorded; the measures need at least 32."
    assert measure(noise(steps=32)).reason is None


def test_a_single_layer_has_an_exponent_but_no_synchrony():
    found = measure(noise(layers=1))
    assert np.isfinite(found.integration)
    for name in ("synchrony", "metastability", "metastability_ratio", "stability"):
        assert np.isnan(getattr(found, name))
    assert "only one layer" in found.reason
    assert np.isnan(synchrony(noise(layers=1)))


@pytest.mark.parametrize("shape", [(0, 100), (3, 0), (0, 0)])
def test_empty_windows_are_undefined(shape):
    found = measure(np.empty(shape))
    assert found.reason is not None
    assert found.exponents.shape == (shape[0],)
    for function in (integration, synchrony, metastability, metastability_ratio):
        assert np.isnan(function(np.empty(shape)))


@pytest.mark.parametrize("steps", [100, 200])
@pytest.mark.parametrize("batch", [(0, 5), (2, 0), (0,)])
def test_empty_batches_give_empty_answers(batch, steps):
    for function in OF_SIGNALS:
        assert function(np.empty((*batch, steps))).shape == batch
    assert dfa(np.empty((*batch, steps)), overlap=False).shape == batch
    if len(batch) == 2:
        for function in (integration, synchrony, metastability, metastability_ratio):
            assert function(np.empty((*batch, steps))).shape == batch[:1]
        assert measure(np.empty((*batch, steps))).stability.shape == batch[:1]


@pytest.mark.parametrize("steps", range(8))
def test_no_window_is_so_short_that_its_measures_are_chance(steps):
    found = measure(noise(steps=steps), min_steps=0)
    assert all(np.isnan(getattr(found, name)) for name in SCALARS)
    assert found.reason == f"{steps} steps are recorded; the measures need at least 8."


@pytest.mark.parametrize("steps", range(12))
def test_very_short_signals_never_warn_or_give_a_number_by_chance(steps):
    signals = noise(steps=steps)
    for function in OF_LAYERS + OF_SIGNALS:
        function(signals)
    assert np.isnan(integration(signals))


@pytest.mark.parametrize("shape", [(), (5,)])
def test_wrong_rank_names_the_shape(shape):
    with pytest.raises(ValueError, match=r"signals must have shape .*layers, steps\), not \("):
        measure(np.zeros(shape))


@pytest.mark.parametrize("function", OF_LAYERS)
def test_layers_are_asked_for(function):
    with pytest.raises(ValueError, match=r"not \(100,\)"):
        function(np.zeros(100))


@pytest.mark.parametrize("function", OF_SIGNALS)
def test_steps_are_asked_for(function):
    with pytest.raises(ValueError, match=r"not \(\)"):
        function(3.0)


@pytest.mark.parametrize("function", OF_LAYERS + OF_SIGNALS + (measure, hurst_kolmogorov))
@pytest.mark.parametrize(
    "values", [np.zeros((3, 100), complex), np.full((3, 100), "a"), np.zeros((3, 100), object)]
)
def test_only_real_numbers_are_taken(function, values):
    with pytest.raises(ValueError, match=r"\(3, 100\) must be real"):
        function(values)


def test_unknown_estimators_are_refused():
    for call in (
        lambda: measure(noise(), estimator="dfs"),
        lambda: integration(noise(), estimator="dfs"),
        lambda: hurst(noise(), estimator="dfs"),
    ):
        with pytest.raises(ValueError, match=r"'dfs' is not known; accepted: dfa, hk\. Did you mean 'dfa'"):
            call()


def test_integers_are_numbers():
    counts = np.random.default_rng(3).integers(-50, 50, size=(5, 200))
    assert measure(counts).integration == measure(counts.astype(float)).integration
    assert measure(counts.astype(np.int8)).synchrony == measure(counts.astype(float)).synchrony


def test_views_and_read_only_arrays_work_and_stay_as_they_are():
    wide = np.random.default_rng(4).normal(size=(400, 12))
    view = wide.T[::2, ::2]
    view.setflags(write=False)
    before = view.copy()
    assert measure(view).integration == pytest.approx(measure(before).integration, abs=1e-12)
    np.testing.assert_array_equal(view, before)


def same(one, other, tolerance):
    for name in SCALARS:
        assert getattr(one, name) == pytest.approx(getattr(other, name), abs=tolerance)


windows = st.tuples(
    st.integers(0, 10**6), st.integers(2, 8), st.integers(64, 200), st.sampled_from([0.0, 0.9, 1.0])
)


def draw(case):
    seed, layers, steps, memory = case
    rng = np.random.default_rng(seed)
    white = rng.normal(size=(layers, steps))
    return white.cumsum(axis=1) if memory == 1 else white + memory * np.roll(white, 1, axis=1)


@settings(max_examples=40, deadline=None)
@given(windows, st.floats(-9, 9), st.floats(-1e3, 1e3))
def test_scale_and_shift_change_nothing(case, power, shift):
    signals = draw(case)
    same(measure(signals * 10**power), measure(signals), 1e-9)
    same(measure(signals + shift), measure(signals), 1e-8)


@settings(max_examples=40, deadline=None)
@given(windows, st.randoms())
def test_the_order_of_layers_changes_nothing(case, random):
    signals = draw(case)
    order = list(range(len(signals)))
    random.shuffle(order)
    one, other = measure(signals), measure(signals[order])
    same(one, other, 1e-9)
    np.testing.assert_allclose(one.exponents[order], other.exponents, atol=1e-9)
    np.testing.assert_allclose(one.phase_coherence[order], other.phase_coherence, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(windows, st.sampled_from(["dfa", "hk"]))
def test_measures_keep_to_their_ranges(case, estimator):
    found = measure(draw(case), estimator=estimator)
    assert -0.5 < found.integration < 2.5
    assert 0 <= found.synchrony <= 1 + 1e-12
    assert 0 <= found.metastability <= 0.5
    assert found.metastability_ratio >= 0
    assert 0 <= found.stability <= 1
    assert (np.abs(found.phase_coherence) <= 1).all()


@settings(max_examples=20, deadline=None)
@given(windows)
def test_float32_gives_what_float32_allows(case):
    signals = draw(case)
    same(measure(signals.astype(np.float32)), measure(signals), 1e-3)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300, 4e307])
def test_extreme_scales_neither_overflow_nor_vanish(scale):
    same(measure(noise() * scale), measure(noise()), 1e-9)


def test_stability_and_volatility():
    assert stability_index(1.5, 0) == 1
    assert stability_index(3.0, 0.25) == 0.5
    assert stability_index(-1.0, 0) == 0
    for failed in (np.nan, np.inf, -np.inf):
        assert np.isnan(stability_index(failed, 0.1))
        assert np.isnan(stability_index(0.7, failed))
    assert volatility([9, 1, 2, 3, 4, 5]) == pytest.approx(np.sqrt(2))
    assert volatility([9, 1, np.nan, 3], window=3) == 1
    assert np.isnan(volatility([1, 2, np.nan, np.nan, 1], window=3))
    with pytest.raises(ValueError, match=r"not \(2, 3\)"):
        volatility(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="window=1"):
        volatility([1.0, 2.0], window=1)
    with pytest.raises(ValueError, match="stability must be real numbers, not complex128"):
        volatility([1j, 2.0])
    with pytest.raises(ValueError, match="metastability must be real numbers"):
        stability_index(0.7, "0.1")


def test_importing_it_stays_cheap():
    heavy = ("torch", "mlflow", "pandas", "pyarrow", "scipy.signal", "scipy.stats")
    code = f"import sys, mlflow_dynamics.measures; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([COLD, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


FUNCTIONS = [name for name in package.__all__ if inspect.isfunction(getattr(package, name))]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    "part",
    ["(?i)how to read it", "(?i)what it\\s+does not\\s+show", "NaN", "References:", r"doi\s+10\.", ">>> "],
)
def test_every_function_says_what_its_reader_needs(name, part):
    assert re.search(part, getattr(package, name).__doc__), f"{name} does not say: {part}"


def test_the_documentations_examples_run():
    tried = 0
    for module in pkgutil.iter_modules(package.__path__):
        result = doctest.testmod(importlib.import_module(f"{package.__name__}.{module.name}"))
        assert result.failed == 0
        tried += result.attempted
    assert tried > 20
