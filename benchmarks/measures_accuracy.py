"""Prints the accuracy tables of docs/measures.md and, with --figures, draws its figures.

python benchmarks/measures_accuracy.py [--draws 400] [--figures docs/images]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from mlflow_dynamics.measures import (
    dfa,
    fluctuations,
    hurst,
    hurst_kolmogorov,
    measure,
    order_parameter,
    surrogate_tests,
    volatility,
)
from mlflow_dynamics.measures.hurst_kolmogorov import fgn_autocovariance
from mlflow_dynamics.measures.signals import Array, standardise

HURST = (0.3, 0.5, 0.7, 0.9)
LENGTHS = (32, 48, 64, 128, 256, 512)
LAYERS = 12


def fractional_noise(rng: np.random.Generator, exponent: float, steps: int, count: int) -> Array:
    """Return (count, steps): exact fractional Gaussian noise, by circulant embedding."""
    gamma = fgn_autocovariance(exponent, steps + 1)
    eigenvalues = np.fft.fft(np.concatenate([gamma, gamma[-2:0:-1]])).real
    noise = rng.normal(size=(2, count, len(eigenvalues)))
    scaled = np.sqrt(np.maximum(eigenvalues, 0) / len(eigenvalues)) * (noise[0] + 1j * noise[1])
    return np.fft.fft(scaled, axis=1).real[:, :steps]


def autoregression(noise: Array, coefficient: float) -> Array:
    """Return (count, steps): stationary AR(1) series of unit variance, driven by the white noise given."""
    values = noise * np.sqrt(1 - coefficient**2)
    values[:, 0] = noise[:, 0]
    for step in range(1, values.shape[1]):
        values[:, step] += coefficient * values[:, step - 1]
    return values


def accuracy(rng: np.random.Generator, draws: int) -> None:
    """Print each estimator's mean and spread on fractional Gaussian noise, and its error over the four exponents."""
    print("| estimator | T | " + " | ".join(f"H = {h}" for h in HURST) + " | rms error |")
    print("| --- " * (len(HURST) + 3) + "|")
    for steps in (32, 64, 128, 512, 4096):
        count = draws if steps < 4096 else max(draws // 5, 20)
        signals = {h: fractional_noise(rng, h, steps, count) for h in HURST}
        for method in ("dfa", "hk"):
            found = {h: hurst(signals[h], estimator=method) for h in HURST}
            error = np.sqrt(np.mean([np.mean((found[h] - h) ** 2) for h in HURST]))
            cells = " | ".join(f"{found[h].mean():.2f} ± {found[h].std():.2f}" for h in HURST)
            print(f"| {method} | {steps} | {cells} | {error:.3f} |")


def robustness(rng: np.random.Generator, draws: int) -> None:
    """Print what the estimators give for 64 points of signals that are not fractional Gaussian noise."""
    noise = rng.normal(size=(draws, 64))
    time = np.arange(64)
    cases = {
        "white noise": noise,
        "white noise, drift of 2 sd": noise + 2 * time / 63,
        "white noise, drift of 5 sd": noise + 5 * time / 63,
        "white noise, exponential decay of 5 sd": noise + 5 * np.exp(-time / 16),
        "AR(1), 0.5": autoregression(noise, 0.5),
        "AR(1), 0.9": autoregression(noise, 0.9),
        "random walk": noise.cumsum(axis=1),
        "sine of period 16, amplitude 1, in noise": noise + np.sin(2 * np.pi * time / 16),
    }
    print("\n| 64 points | dfa | dfa, detrended | hk, not detrended | hk | hk at its edge |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, signals in cases.items():
        likely = hurst_kolmogorov(signals)
        columns = (
            dfa(signals),
            dfa(standardise(signals, order=1)[0]),
            hurst_kolmogorov(signals, detrend=False).exponent,
            likely.exponent,
        )
        cells = " | ".join(f"{one.mean():.2f} ± {one.std():.2f}" for one in columns)
        print(f"| {name} | {cells} | {likely.at_edge.mean():.0%} |")


def lengths(rng: np.random.Generator, draws: int) -> None:
    """Print every measure of the same layers, for windows of each length."""
    longest = LENGTHS[-1]
    noise = rng.normal(size=(draws * LAYERS, longest))
    common = np.repeat(autoregression(rng.normal(size=(draws, longest)), 0.8), LAYERS, axis=0)
    cases = {
        "white noise": noise,
        "AR(1) 0.9": autoregression(noise, 0.9),
        "random walk": noise.cumsum(axis=1),
        "AR(1) 0.8, common factor": 0.5**0.5 * (autoregression(noise, 0.8) + common),
    }
    measures = (
        "integration",
        "global_integration",
        "synchrony",
        "metastability",
        "metastability_ratio",
        "metastability_unbiased",
        "stability",
    )
    print(f"\n| {LAYERS} layers | steps | " + " | ".join(measures) + " |")
    print("| --- " * (len(measures) + 2) + "|")
    for name, signals in cases.items():
        windows = signals.reshape(draws, LAYERS, longest)
        for steps in LENGTHS:
            found = measure(windows[..., :steps])
            values = [getattr(found, one) for one in measures]
            cells = " | ".join(f"{one.mean():.2f} ± {one.std():.2f}" for one in values)
            print(f"| {name} | {steps} | {cells} |")


def bridging(rng: np.random.Generator, draws: int) -> None:
    """Print the largest change of each measure when steps are lost and bridged."""
    measures = ("integration", "synchrony", "metastability")
    print(f"\n| {LAYERS} layers | lost in all | " + " | ".join(measures) + " |")
    print("| --- " * (len(measures) + 2) + "|")
    for steps, lost in ((512, 1), (512, 25), (48, 1)):
        noise = rng.normal(size=(draws, LAYERS, steps))
        common = 0.3**0.5 * noise + 0.7**0.5 * rng.normal(size=(draws, 1, steps))
        for name, whole in {"white noise": noise, "white noise, common factor": common}.items():
            holed = whole.copy()
            for one, start in zip(holed, rng.integers(1, steps - lost, size=draws), strict=True):
                one[:, start : start + lost] = np.nan
            before, after = measure(whole), measure(holed)
            moved = [np.abs(getattr(after, one) - getattr(before, one)).max() for one in measures]
            print(f"| {name} | {lost} of {steps} | " + " | ".join(f"{one:.3f}" for one in moved) + " |")


def figures(folder: Path, rng: np.random.Generator) -> None:
    """Draw each measure on signals of which the right answer is known."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    def save(name: str) -> None:
        plt.tight_layout()
        plt.savefig(folder / f"measures-{name}.png", dpi=80)
        plt.close()

    white = rng.normal(size=4096)
    pink = fractional_noise(rng, 0.9, 4096, 1)[0]
    _, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    for label, one in (("white noise", white), ("H = 0.9", pink), ("Brownian", white.cumsum())):
        sizes, f = fluctuations(one)
        axes[0].loglog(sizes, f / f[0], "o-", ms=3, label=f"{label}: slope {dfa(one):.2f}")
    axes[0].set(xlabel="box size n (steps)", ylabel="F(n) / F(4)", title="integration: DFA")
    axes[0].legend()
    for method in ("dfa", "hk"):
        found = [hurst(fractional_noise(rng, h, 64, 200), estimator=method) for h in HURST]
        means, spread = [one.mean() for one in found], [one.std() for one in found]
        axes[1].errorbar(HURST, means, spread, fmt="o", capsize=3, label=method)
    axes[1].plot([0.3, 0.9], [0.3, 0.9], "k:", lw=1)
    axes[1].set(xlabel="true H", ylabel="estimate, mean ± sd", title="64 points")
    axes[1].legend()
    save("integration")

    steps = np.arange(512)
    own = rng.uniform(0.02, 0.08, size=(20, 1))
    apart = np.sin(2 * np.pi * (own * steps + rng.uniform(size=(20, 1))))
    together = np.tile(np.sin(2 * np.pi * 0.05 * steps), (20, 1))
    switching = np.where(steps // 128 % 2 == 0, apart, together)
    _, axes = plt.subplots(1, 3, figsize=(11, 2.9), sharey=True)
    for axis, (label, one) in zip(
        axes, {"independent": apart, "in phase": together, "switching": switching}.items(), strict=True
    ):
        noisy = one + 0.1 * rng.normal(size=one.shape)
        found, tests = measure(noisy), surrogate_tests(noisy)
        axis.plot(steps[10:-10], order_parameter(noisy), lw=1)
        axis.set(
            xlabel="step",
            title=f"{label}: synchrony {found.synchrony:.2f},\nmetastability {found.metastability:.2f} "
            f"(p {tests.metastability_p:.2f}, coupling p {tests.coupling_p:.2f})",
        )
        axis.title.set_fontsize(9)
    axes[0].set(ylabel="order parameter R", ylim=(0, 1.05))
    save("synchrony")

    epochs = np.arange(40)
    stability = 0.6 - 0.4 * np.exp(-epochs / 8) + 0.08 * np.exp(-epochs / 8) * rng.normal(size=40)
    spread = [volatility(stability[: epoch + 1]) for epoch in epochs]
    _, axis = plt.subplots(figsize=(6, 2.8))
    axis.plot(epochs, stability, label="stability (made up: settles by epoch 25)")
    axis.plot(epochs, spread, label="volatility over 5 epochs")
    axis.set(xlabel="epoch", title="volatility falls as stability settles")
    axis.legend()
    save("volatility")


def main() -> None:
    """Print the tables, and draw the figures if they are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--figures", type=Path, help="an existing folder")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    accuracy(rng, options.draws)
    robustness(rng, options.draws)
    lengths(rng, options.draws)
    bridging(rng, options.draws)
    if options.figures is not None:
        figures(options.figures, rng)


if __name__ == "__main__":
    main()
