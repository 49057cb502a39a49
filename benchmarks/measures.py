"""Times `integration` with its defaults beside the plain DFA of other packages, and all measures of one window.

    python benchmarks/measures.py [--layers-of parquet:PATH]

There are three kinds of signals: white noise, random walks, and the layers of a ResNet-20, which this script trains (on
scikit-learn's digits, which takes two minutes, or on the images given). `integration` uses overlapping boxes up to
T/4, with correction and weights. The other packages use boxes side by side, of the sizes that antropy uses.

One process runs on one core. Processor time is measured, the candidates take turns, and medians are compared, so that
other load on the machine affects all candidates alike. Packages that are not installed (antropy, fracjax, nolds,
neurokit2, fathon, MFDFA) are left out.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
from layer_signals import layer_signals

from mlflow_dynamics.measures import fluctuations, integration, measure, surrogate_tests

LAYERS = 64
STEPS = (64, 512, 4096)
OURS = "mlflow_dynamics, `integration`"
TURN_S = 0.005  # how long a turn of a fast candidate lasts


def antropy_boxes(steps: int) -> np.ndarray:
    """Return antropy's box sizes. They cannot be chosen, so the other packages are given the same sizes."""
    sizes = [4]
    factor = 1.2
    count = int(np.floor(np.log(0.1 * steps / 4) / np.log(factor)))
    for power in range(count + 1):
        size = int(np.floor(4 * factor**power))
        if size > sizes[-1]:
            sizes.append(size)
    return np.array(sizes)


def candidates(signals: np.ndarray, sizes: np.ndarray) -> dict[str, Callable[[], object]]:
    """Return name -> call: our integration, and plain DFA (no overlap, order 1, boxes of `sizes`) by other packages."""
    boxes = tuple(sizes.tolist())
    found: dict[str, Callable[[], object]] = {
        OURS: lambda: integration(signals),
        "mlflow_dynamics, plain F": lambda: fluctuations(
            signals, box_sizes=boxes, overlap=False, corrected=False
        ),
    }
    if find_spec("antropy"):
        from antropy import detrended_fluctuation

        found["antropy"] = lambda: [detrended_fluctuation(one) for one in signals]
    if find_spec("fracjax"):
        import jax
        from fracjax.estimators.dfa import make_kernel

        kernel = jax.jit(jax.vmap(make_kernel(boxes)))
        held = jax.numpy.asarray(signals, dtype=jax.numpy.float32)
        found["fracjax (jit, float32)"] = lambda: kernel(held).block_until_ready()
    if find_spec("nolds"):
        import nolds

        found["nolds"] = lambda: [
            nolds.dfa(one, nvals=sizes, overlap=False, fit_exp="poly") for one in signals
        ]
    if find_spec("neurokit2"):
        import neurokit2

        found["neurokit2"] = lambda: [
            neurokit2.fractal_dfa(one, scale=sizes, overlap=False) for one in signals
        ]
    if find_spec("fathon"):
        import fathon

        def with_fathon() -> None:
            for one in signals:
                computed = fathon.DFA(np.cumsum(one - one.mean()))
                computed.computeFlucVec(sizes, polOrd=1)

        found["fathon (F only)"] = with_fathon
    if find_spec("MFDFA"):
        from MFDFA import MFDFA

        found["MFDFA (F only)"] = lambda: [MFDFA(one, lag=sizes, order=1, q=2) for one in signals]
    return found


def medians(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Return name -> median of `timed`. The calls take turns, and a turn lasts some milliseconds, as in a loop."""
    calls_a_turn: dict[str, int] = {}
    for name, call in calls.items():
        call()
        calls_a_turn[name] = max(1, round(TURN_S / timed(call, 1)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    while due := [name for name in calls if spent[name] < seconds / len(calls)]:
        for name in due:
            times[name].append(timed(calls[name], calls_a_turn[name]))
            spent[name] += times[name][-1] * calls_a_turn[name]
    return {name: statistics.median(values) for name, values in times.items()}


def timed(call: Callable[[], object], repetitions: int) -> float:
    """Return the mean processor time of a call, in seconds."""
    start = time.process_time()
    for _ in range(repetitions):
        call()
    return (time.process_time() - start) / repetitions


def main() -> None:
    """Print all tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of measurement for each table column")
    parser.add_argument("--layers-of", default="digits", help="the data set on which a network is trained")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # other packages warn of short signals
    torch.set_num_threads(1)
    noise = np.random.default_rng(0).normal(size=(2 * LAYERS, max(STEPS)))
    kinds = {
        "white noise": noise,
        "walks": noise.cumsum(axis=1),
        "real layers": layer_signals(options.layers_of, count=2 * LAYERS, steps=max(STEPS)),
    }
    for steps in STEPS:
        columns = {
            kind: medians(candidates(signals[:LAYERS, :steps].copy(), antropy_boxes(steps)), options.seconds)
            for kind, signals in kinds.items()
        }
        print(f"| {LAYERS} x {steps} | " + " | ".join(kinds) + " |")
        print("| --- |" + " --- |" * len(kinds))
        for name in columns["walks"]:
            cells = [
                f"{found[name] * 1e3:.2f} ms ({found[name] / found[OURS]:.1f} x)"
                for found in columns.values()
            ]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
        print()
    calls: dict[str, Callable[[], object]] = {
        f"measure, {kind}": partial(measure, signals[:, :512].copy()) for kind, signals in kinds.items()
    }
    walks = kinds["walks"][:, :512].copy()
    calls |= {
        'measure, estimator="hk", walks': lambda: measure(walks, estimator="hk"),
        "surrogate_tests, 99 of each kind, walks": lambda: surrogate_tests(walks),
    }
    print(f"| one window of {2 * LAYERS} x 512 | median |\n| --- | --- |")
    for name, median in medians(calls, options.seconds).items():
        print(f"| {name} | {median * 1e3:.1f} ms |")


if __name__ == "__main__":
    main()
