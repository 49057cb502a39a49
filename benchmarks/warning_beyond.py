"""Counts how often the early warning fires on layers that do not change, in trainings in which it fires too often.

    python benchmarks/warning_beyond.py [--draws 240] [--page]

In these trainings, windows overlap more and more, or the detector begins anew again and again, or the memory or the
volatility of the layers wanders by itself. The signals pass through `SignalWindow` and `ConvergenceMonitor` as in a
training, one epoch after the other. The script prints the table of docs/early-warning.md; with --page, it also writes
the table there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm
from warning_nulls import COMMON, LAYERS, Array, mixed, share, write_page

from mlflow_dynamics.config import MeasureConfig
from mlflow_dynamics.convergence import ConvergenceMonitor, Schedule
from mlflow_dynamics.measures import SignalWindow
from mlflow_dynamics.records import EpochActivations, Layer

Make = Callable[[np.random.Generator, tuple[int, int]], Array]
"""(generator, (layers, steps)) -> signals."""

NAMED = tuple(
    Layer(index=i, name=str(i), type="Linear", output_shape=(1,), parameters=1) for i in range(LAYERS)
)
SEED = 28112026


def white(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return rng.standard_normal(shape)


def common(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Return white noise with a common factor."""
    return mixed(rng.standard_normal((1, shape[0] + 1, shape[1])), COMMON)[0]


def switching(dwell: int) -> Make:
    """Return a maker of AR(1) layers whose common coefficient is 0.2 or 0.9, each for `dwell` steps in the mean."""

    def make(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
        state = (np.cumsum(rng.random(shape[1]) < 1 / dwell) + rng.integers(2)) % 2
        coefficient = np.where(state, 0.9, 0.2)
        values = rng.standard_normal(shape)
        for t in range(1, shape[1]):
            values[:, t] *= np.sqrt(1 - coefficient[t] ** 2)
            values[:, t] += coefficient[t] * values[:, t - 1]
        return values

    return make


def volatile(memory: int) -> Make:
    """Return a maker of layers, with a common factor, whose log deviation is AR(1) with a memory of `memory` steps."""

    def make(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
        kept = np.exp(-1 / memory)
        level = rng.standard_normal((shape[0] + 1, shape[1]))
        for t in range(1, shape[1]):
            level[:, t] = kept * level[:, t - 1] + np.sqrt(1 - kept**2) * level[:, t]
        values = np.exp(level) * rng.standard_normal(level.shape)
        return mixed(values[None], COMMON)[0]

    return make


class Case(NamedTuple):
    """One kind of training.

    Attributes:
        name: the row of the table.
        lengths: the number of steps of each epoch.
        make: makes the layers' signals.
        window: the length of the window in steps; None means the default.
        known: whether the detector knows the number of epochs.
        drops: the epochs at which the learning rate steps down.
    """

    name: str
    lengths: Sequence[int]
    make: Make = white
    window: int | None = None
    known: bool = True
    drops: tuple[int, ...] = ()


CASES = (
    Case("`window=512` where epochs have 8 steps, 200 epochs, white noise", [8] * 200, window=512),
    Case("the same where epochs have 16 steps", [16] * 200, window=512),
    Case("the same, length not known", [16] * 200, window=512, known=False),
    Case("two epochs of 160 steps, then 198 of 8: the window of the first two stays", [160] * 2 + [8] * 198),
    Case("epochs that shorten slowly, from 124 to 81 steps in 100", [*np.linspace(124, 81, 100).astype(int)]),
    Case(
        "epochs of 40 and 60 steps in turn, 40 of each, length not known (each change is a reset), common factor",
        ([40] * 40 + [60] * 40) * 2 + [40] * 40,
        common,
        known=False,
    ),
    Case(
        "four steps of the rate in 200 epochs of 40 steps, length not known (likewise), common factor",
        [40] * 200,
        common,
        known=False,
        drops=(40, 80, 120, 160),
    ),
    Case(
        "memory switches (AR(1) 0.2 or 0.9), 15 epochs each in the mean, 16 x 100", [16] * 100, switching(240)
    ),
    Case("the same, 40 x 100", [40] * 100, switching(600)),
    Case("volatility wanders with a memory of 3 epochs, common factor, 16 x 100", [16] * 100, volatile(48)),
)


def epoch_that_fires(case: Case, rng: np.random.Generator) -> int:
    """Return the first epoch of the warning in one training, or -1 if the warning does not fire."""
    window = SignalWindow(MeasureConfig(window=case.window, signal="mean"))
    plan = Schedule(
        name="step" if case.drops else "constant",
        planned_epochs=len(case.lengths) if case.known else None,
        drop_epochs=case.drops,
    )
    monitor = ConvergenceMonitor(schedule=plan)
    ends = np.cumsum(case.lengths)
    signals = case.make(rng, (LAYERS, int(ends[-1]))).astype(np.float32)
    for epoch, (end, steps) in enumerate(zip(ends, case.lengths, strict=True)):
        mean = signals[:, end - steps : end]
        step = np.arange(end - steps, end, dtype=np.int32)
        window.append(
            EpochActivations(epoch=epoch, step=step, mean=mean, std=np.zeros_like(mean), layers=NAMED)
        )
        found = window.measure()
        monitor.update(epoch, found.stability, start_up=found.start_up)
    return -1 if monitor.converged_epoch is None else monitor.converged_epoch


def main() -> None:
    """Print the table, and write it into the page if that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=240)
    parser.add_argument("--page", action="store_true", help="write the table into docs/early-warning.md")
    options = parser.parse_args()
    lines = ["| layers that do not change | fires |", "| --- | --- |"]
    for number, case in enumerate(tqdm(CASES)):
        rng = np.random.default_rng([SEED, number])
        fired = np.array([epoch_that_fires(case, rng) for _ in range(options.draws)])
        lines.append(f"| {case.name} | {share(fired)} |")
    print("\n".join(lines))
    if options.page:
        write_page(lines, "<!-- beyond -->", "<!-- end of beyond -->")


if __name__ == "__main__":
    main()
