"""DFA against its definition, closed forms, published values and an independent implementation."""

import warnings

import numpy as np
import pytest
from known_signals import autoregression, fractional_noise, plain_fluctuations

from mlflow_dynamics.measures import dfa, fluctuations, integration
from mlflow_dynamics.measures.fractal import default_box_sizes

HURST = (0.3, 0.5, 0.7, 0.9)


def plain(signal, sizes, **options):
    return dfa(signal, box_sizes=tuple(sizes), corrected=False, weighted=False, **options)


def antropy_boxes(steps: int) -> tuple[int, ...]:
    """antropy's box sizes: 4 to steps / 10, growing by 1.2, rounded down, without repetitions."""
    count = int(np.floor(np.log(0.1 * steps / 4) / np.log(1.2)))
    return tuple(dict.fromkeys(int(np.floor(4 * 1.2**i)) for i in range(count + 1)))


def test_published_value_of_uniform_noise():
    noise = np.random.RandomState(1234567).rand(3000)
    assert plain(noise, antropy_boxes(3000), overlap=False) == pytest.approx(0.4976, abs=5e-5)


def test_published_value_of_a_sine():
    sine = np.sin(2 * np.pi * 1 * np.arange(3000) / 100)
    assert plain(sine, antropy_boxes(3000), overlap=False) == pytest.approx(1.5848, abs=5e-5)


def test_published_value_of_neurokit():
    signal = np.cos(np.linspace(0, 30, 1000))
    # neurokit2 leaves out a last box that ends with the signal, as a signal one step shorter does. The profile of
    # that one differs by a straight line, which detrending removes.
    assert plain(signal[:-1], (4, 8, 12, 20)) == pytest.approx(2.10090484, abs=5e-9)


@pytest.mark.slow  # numba compiles antropy for 20 to 40 s
def test_agrees_with_antropy():
    antropy = pytest.importorskip("antropy", reason="antropy is a test extra")
    rng = np.random.default_rng(0)
    for signal in (rng.normal(size=3000), rng.normal(size=777).cumsum(), autoregression(rng, 0.9, 512, 1)[0]):
        boxes = antropy_boxes(len(signal))
        assert plain(signal, boxes, overlap=False) == pytest.approx(
            antropy.detrended_fluctuation(signal), abs=1e-9
        )


def test_agrees_with_nolds():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns while it is compiled
        nolds = pytest.importorskip("nolds", reason="nolds is a test extra")
    rng = np.random.default_rng(0)
    for signal in (rng.normal(size=3000), rng.normal(size=777).cumsum(), autoregression(rng, 0.9, 512, 1)[0]):
        boxes = antropy_boxes(len(signal))
        theirs = nolds.dfa(signal, nvals=boxes, overlap=False, fit_exp="poly")
        assert plain(signal, boxes, overlap=False) == pytest.approx(theirs, abs=1e-9)


SHAPES = {
    "white": lambda rng, steps: rng.normal(size=steps),
    "walk": lambda rng, steps: rng.normal(size=steps).cumsum(),
    "walk of a walk": lambda rng, steps: rng.normal(size=steps).cumsum().cumsum(),
    "steep ramp": lambda rng, steps: rng.normal(size=steps) + 1e3 * np.arange(steps),
    "spike": lambda rng, steps: rng.normal(size=steps) + 1e6 * (np.arange(steps) == steps // 3),
}


FEW_SIZES = (3, 4, 5)
MANY_SIZES = (3, 4, 5, 6, 7, 8, 9, 13, 16, 31, 50, 64, 100, 120, 175)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(
    ("steps", "sizes"),
    [(64, FEW_SIZES), (120, MANY_SIZES), (701, MANY_SIZES)],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_is_its_definition_to_nine_digits(shape, steps, sizes, order, overlap):
    signal = SHAPES[shape](np.random.default_rng(1), steps)
    sizes = tuple(n for n in sizes if order + 2 <= n <= steps)
    _, f = fluctuations(signal, box_sizes=sizes, order=order, overlap=overlap, corrected=False)
    np.testing.assert_allclose(f, plain_fluctuations(signal, sizes, order=order, overlap=overlap), rtol=1e-9)


@pytest.mark.parametrize("steps", [8, 13, 64, 97, 127, 128, 129, 130, 255, 512, 701, 4096])
@pytest.mark.parametrize("shape", SHAPES)
def test_default_boxes_are_the_definition_to_nine_digits(shape, steps):
    rng = np.random.default_rng(1)
    signals = np.stack([SHAPES[shape](rng, steps) for _ in range(3)])
    sizes, f = fluctuations(signals, corrected=False)
    for one, found in zip(signals, f, strict=True):
        np.testing.assert_allclose(found, plain_fluctuations(one, sizes, overlap=True), rtol=1e-9)
    # Asked for by name, the same boxes are taken one by one.
    by_name = fluctuations(signals, box_sizes=tuple(sizes), corrected=False)[1]
    np.testing.assert_allclose(by_name, f, rtol=1e-9)


def test_white_noise_has_its_closed_form():
    noise = np.random.default_rng(2).normal(size=(200, 4096))
    sizes, f = fluctuations(noise, box_sizes=(4, 5, 8, 16), corrected=False)
    np.testing.assert_allclose((f**2).mean(axis=0), (sizes**2 - 4) / (15 * sizes), rtol=0.01)


def test_brownian_motion_is_three_halves():
    walks = np.random.default_rng(3).normal(size=(100, 4096)).cumsum(axis=1)
    assert dfa(walks, corrected=False).mean() == pytest.approx(1.5, abs=0.02)
    # The correction of small boxes is exact for white noise only; the documentation states what it costs here.
    assert dfa(walks).mean() == pytest.approx(1.46, abs=0.02)


def test_f_has_the_signals_unit():
    signal = np.random.default_rng(4).normal(size=256)
    np.testing.assert_allclose(fluctuations(1e3 * signal + 7)[1], 1e3 * fluctuations(signal)[1], rtol=1e-9)


# Root mean square error over the four H, as required, and what the mean may be off by.
@pytest.mark.parametrize(
    ("steps", "draws", "error", "bias"),
    [
        (32, 1000, 0.19, None),
        (64, 1000, 0.13, None),
        (128, 600, 0.08, None),
        (512, 300, 0.04, 0.03),
        (4096, 60, 0.025, 0.02),
    ],
)
def test_accuracy_on_fractional_gaussian_noise(steps, draws, error, bias):
    rng = np.random.default_rng(5)
    squares = []
    for hurst in HURST:
        found = dfa(fractional_noise(rng, hurst, steps, draws))
        squares.append(np.mean((found - hurst) ** 2))
        if bias is not None:
            assert found.mean() == pytest.approx(hurst, abs=bias)
    assert np.sqrt(np.mean(squares)) <= error


NOT_FRACTIONAL = {
    "drift of 2 sd": (lambda rng: white(rng) + np.linspace(-1, 1, 64), 0.49, 0.51),
    "drift of 5 sd": (lambda rng: white(rng) + np.linspace(-2.5, 2.5, 64), 0.49, 0.51),
    "decay of 5 sd": (lambda rng: white(rng) + 5 * np.exp(-np.arange(64) / 16), 0.64, 0.72),
    "AR(1), 0.5": (lambda rng: autoregression(rng, 0.5, 64, 1000), 0.81, 0.85),
    "AR(1), 0.9": (lambda rng: autoregression(rng, 0.9, 64, 1000), 1.22, 0.96),
    "random walk": (lambda rng: white(rng).cumsum(axis=1), 1.31, 0.97),
    "sine in noise": (
        lambda rng: white(rng) + np.sin(2 * np.pi * (np.arange(64) / 16 + rng.uniform(size=(1000, 1)))),
        0.80,
        0.75,
    ),
}
"""What the documentation's table says of 64 points, detrended: draw, mean of dfa, mean of hk."""


def white(rng):
    return rng.normal(size=(1000, 64))


@pytest.mark.parametrize("name", NOT_FRACTIONAL)
def test_what_is_not_fractional_noise_reads_as_documented(name):
    draw, by_dfa, by_hk = NOT_FRACTIONAL[name]
    signals = draw(np.random.default_rng(6))
    assert integration(signals) == pytest.approx(by_dfa, abs=0.03)
    assert integration(signals, estimator="hk") == pytest.approx(by_hk, abs=0.03)


def test_too_few_sizes_are_undefined():
    assert np.isnan(dfa(np.random.default_rng(7).normal(size=15)))
    assert np.isnan(dfa(np.random.default_rng(7).normal(size=100), box_sizes=(4, 8)))
    assert np.isfinite(dfa(np.random.default_rng(7).normal(size=16)))


def test_default_sizes_are_four_and_six_doubled():
    assert default_box_sizes(7) == ()
    assert default_box_sizes(8) == (4,)
    assert default_box_sizes(64) == (4, 6, 8, 12, 16, 24, 32)
    assert default_box_sizes(127) == (4, 6, 8, 12, 16, 24, 32, 48)
    assert default_box_sizes(128) == (4, 6, 8, 12, 16, 24, 32)
    assert default_box_sizes(700)[-3:] == (64, 96, 128)


@pytest.mark.parametrize("sizes", [(2, 8, 16), (4, 8, 101), (0, 4, 8)])
def test_box_sizes_that_do_not_fit_are_refused(sizes):
    with pytest.raises(ValueError, match=r"box_sizes=.*\(3, 100\)"):
        dfa(np.zeros((3, 100)), box_sizes=sizes)
