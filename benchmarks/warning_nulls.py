"""Counts how often the early warning fires on layers that do not change, and on layers that settle.

    python benchmarks/warning_nulls.py nulls FOLDER --images ../shared/data/cifar10 [--draws 200]
    python benchmarks/warning_nulls.py settling FOLDER [--draws 100]
    python benchmarks/warning_nulls.py page FOLDER

The first two commands make layers, take windows and measures of them as a recorded training does, and keep S after
start-up in FOLDER, in a file for each kind of layers and number of steps an epoch. Files that exist are not made again.
The last command judges the kept S as the monitor does, with and without knowing the length of the training, and writes
the tables of docs/early-warning.md.

A null is a kind of layers that do not change. It is stationary (a random walk has stationary increments), so a training
of 200 epochs also gives two of 100, three of 60 and six of 30.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from tqdm import tqdm

from mlflow_dynamics.convergence.volatility import score_series
from mlflow_dynamics.measures import measure
from mlflow_dynamics.measures.windows import window_rule

Array = NDArray[np.float64]
Make = Callable[[np.random.Generator, int, int, int], Array]
"""(generator, draws, epochs, steps an epoch) -> (draws, layers, steps)."""

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "early-warning.md"
LAYERS: Final = 12
COMMON: Final = 0.7
"""The share of the common factor in a layer's deviation, for layers that have one."""

STEPS: Final = (8, 16, 40, 79, 157, 391)
EPOCHS: Final = (30, 60, 100, 200)
LONGEST: Final = EPOCHS[-1]
SETTLING_STEPS: Final = (16, 79, 391)
SETTLING_EPOCHS: Final = (30, 60, 100)
CHUNK: Final = 20
"""The number of draws that are in memory at once."""

SEED: Final = 77001
BATCH: Final = 32


# ---- layers that do not change ----


def autoregression(coefficient: float, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    noise = rng.standard_normal(shape)
    noise[..., 1:] *= np.sqrt(1 - coefficient**2)  # stationary from the first step on
    return np.asarray(lfilter([1.0], [1.0, -coefficient], noise, axis=-1))


def walk(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.standard_normal(shape).cumsum(axis=-1)


def student(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.standard_t(3, shape)


def garch(rng: np.random.Generator, shape: tuple[int, ...], *, burn_in: int = 300) -> Array:
    """Return GARCH(1, 1) series of unit variance, with coefficients 0.1 and 0.88 (Bollerslev 1986)."""
    values = rng.standard_normal((*shape[:-1], burn_in + shape[-1]))
    variance = np.ones(shape[:-1])
    for t in range(values.shape[-1]):
        values[..., t] *= np.sqrt(variance)
        variance = 0.02 + 0.1 * values[..., t] ** 2 + 0.88 * variance
    return values[..., burn_in:]


PROCESSES: Final[dict[str, Callable[[np.random.Generator, tuple[int, ...]], Array]]] = {
    "white noise": partial(autoregression, 0.0),
    "AR(1) 0.5": partial(autoregression, 0.5),
    "AR(1) 0.9": partial(autoregression, 0.9),
    "AR(1) 0.99": partial(autoregression, 0.99),
    "random walk": walk,
    "Student t3": student,
    "GARCH(0.1, 0.88)": garch,
}


def mixed(own_and_common: Array, share: float | Array) -> Array:
    """Return (draws, LAYERS, steps): layers that share a factor, the last series of (draws, LAYERS + 1, steps)."""
    own, common = own_and_common[:, :-1], own_and_common[:, -1:]
    return np.sqrt(1 - np.square(share)) * own + share * common


def of_process(
    name: str, share: float, rng: np.random.Generator, draws: int, epochs: int, steps: int
) -> Array:
    return mixed(PROCESSES[name](rng, (draws, LAYERS + 1, epochs * steps)), share)


@cache
def energies(images: Path) -> Array:
    """Return (images, layers): the mean square of each layer's output for each image, in an untrained ResNet-14."""
    import pyarrow.parquet as pq
    import torch
    from PIL import Image
    from torch import nn

    from mlflow_dynamics.training.architectures import CifarResNet

    torch.set_num_threads(1)
    torch.manual_seed(0)
    # In evaluation mode, normalisation keeps its initial state, so that images do not affect each other.
    model = CifarResNet(2, num_classes=10, channels=3).eval()
    column = pq.read_table(images / "train.parquet", columns=["image"])["image"][
        : STEPS[-1] * BATCH
    ].to_pylist()
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(one["bytes"])).convert("RGB")) for one in column])
    inputs = torch.tensor(pixels).permute(0, 3, 1, 2) / 255.0
    inputs = (inputs - inputs.mean((0, 2, 3), keepdim=True)) / inputs.std((0, 2, 3), keepdim=True)
    found: list[torch.Tensor] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda _, __, out: found.append(out.square().flatten(1).mean(1)))
    parts = []
    with torch.no_grad():
        for some in inputs.split(500):
            model(some)
            parts.append(torch.stack(found, dim=1))
            found.clear()
    return torch.cat(parts).numpy().astype(np.float64)


def of_network(images: Path, rng: np.random.Generator, draws: int, epochs: int, steps: int) -> Array:
    """Return root mean squares of an untrained network's layers over batches of real images, shuffled in each epoch."""
    signals = []
    for _ in range(draws):
        some = energies(images)[: steps * BATCH]
        shuffled = (
            some[rng.permutation(len(some))].reshape(steps, BATCH, -1).mean(axis=1) for _ in range(epochs)
        )
        signals.append(np.sqrt(np.concatenate(list(shuffled))).T)
    return np.stack(signals)


def nulls(images: Path) -> dict[str, Make]:
    alone = {name: partial(of_process, name, 0.0) for name in PROCESSES}
    common = {f"{name}, common factor": partial(of_process, name, COMMON) for name in PROCESSES}
    return {**alone, **common, "untrained ResNet-14, rate 0": partial(of_network, images)}


# ---- layers that settle ----


def wandering(rng: np.random.Generator, draws: int, epochs: int) -> Array:
    """Return (draws, epochs): in each epoch a random value in [-1, 1], and from half-time on in [-0.2, 0.2]."""
    return rng.uniform(-1, 1, (draws, epochs)) * np.where(np.arange(epochs) < epochs / 2, 1.0, 0.2)


def calming(rng: np.random.Generator, draws: int, epochs: int) -> Array:
    """Return (draws, epochs): random values in a range that shrinks from [-1, 1] to [-0.2, 0.2] all the time."""
    return rng.uniform(-1, 1, (draws, epochs)) * 5.0 ** -np.linspace(0, 1, epochs)


def approaching(_: np.random.Generator, draws: int, epochs: int) -> Array:
    """Return (draws, epochs): a fall from 1 to -1, exponential, by e each fifth of the training."""
    return np.tile(2 * np.exp(-5 * np.linspace(0, 1, epochs)) - 1, (draws, 1))


Course = Callable[[np.random.Generator, int, int], Array]
"""(generator, draws, epochs) -> (draws, epochs) in [-1, 1]."""


def of_memory(course: Course, rng: np.random.Generator, draws: int, epochs: int, steps: int) -> Array:
    """Return AR(1) layers of coefficient 0.6 + 0.35 course, with a common factor of half their deviation."""
    coefficient = np.repeat(0.6 + 0.35 * course(rng, draws, epochs), steps, axis=1)[:, None]
    values = rng.standard_normal((draws, LAYERS + 1, epochs * steps))
    for t in range(1, values.shape[-1]):
        phi = coefficient[..., t]
        values[..., t] = phi * values[..., t - 1] + np.sqrt(1 - phi**2) * values[..., t]
    return mixed(values, 0.5)


def of_coupling(course: Course, rng: np.random.Generator, draws: int, epochs: int, steps: int) -> Array:
    """Return layers of AR(1) 0.8 in which the share of a common factor is 0.5 + 0.4 course."""
    shared = np.repeat(0.5 + 0.4 * course(rng, draws, epochs), steps, axis=1)[:, None]
    return mixed(autoregression(0.8, rng, (draws, LAYERS + 1, epochs * steps)), shared)


def of_level(rng: np.random.Generator, draws: int, epochs: int, steps: int) -> Array:
    """Return layers of AR(1) 0.8 whose mean falls exponentially, by e each fifth of the training.

    The deviation of the noise is 0.03 of the whole fall.
    """
    values = autoregression(0.8, rng, (draws, LAYERS, epochs * steps))
    return values + np.exp(-5 * np.linspace(0, 1, values.shape[-1])) / 0.03


SETTLING: Final[dict[str, Make]] = {
    "memory wanders, a fifth as far from half-time on": partial(of_memory, wandering),
    "memory wanders less and less, to a fifth": partial(of_memory, calming),
    "coupling wanders, a fifth as far from half-time on": partial(of_coupling, wandering),
    "coupling wanders less and less, to a fifth": partial(of_coupling, calming),
    "memory comes down, exponentially": partial(of_memory, approaching),
    "coupling comes down, exponentially": partial(of_coupling, approaching),
    "only the layers' means settle, exponentially": of_level,
}


# ---- from layers to S ----


def first_epoch(steps: int) -> int:
    """Return the first epoch after start-up."""
    rule = window_rule([steps])
    return next(epoch for epoch in range(LONGEST) if not rule.starting_up((epoch + 1) * steps))


def stability_of(signals: Array, steps: int) -> Array:
    """Return S as (draws, epochs after start-up), from signals (draws, layers, steps)."""
    length = window_rule([steps]).length
    ends = range((first_epoch(steps) + 1) * steps, signals.shape[-1] + 1, steps)
    return np.stack([measure(signals[..., end - length : end]).stability for end in ends], axis=1)


def kept(folder: Path, name: str, make: Make, *, steps: int, epochs: int, draws: int) -> None:
    """Write S of `draws` trainings into a file of the folder, unless the file exists."""
    path = file_of(folder, name, steps, epochs)
    if path.exists():
        return
    seed = [SEED, *name.encode(), steps, epochs]
    parts = []
    for chunk, start in enumerate(range(0, draws, CHUNK)):
        rng = np.random.default_rng([*seed, chunk])
        parts.append(stability_of(make(rng, min(CHUNK, draws - start), epochs, steps), steps))
    np.save(path, np.concatenate(parts).astype(np.float32))


def file_of(folder: Path, name: str, steps: int, epochs: int) -> Path:
    word = "".join(letter if letter.isalnum() else "-" for letter in name)
    return folder / f"{word}_{steps}x{epochs}.npy"


# ---- the verdicts ----


def pieces(series: Array, epochs: int, steps: int) -> Array:
    """Return the epochs after start-up of trainings of `epochs` epochs, cut from longer trainings."""
    length = epochs - first_epoch(steps)
    count = (series.shape[1] + first_epoch(steps)) // epochs
    return np.concatenate([series[:, i * epochs : i * epochs + length] for i in range(count)])


def fired(series: Array, *, known: bool = True, rising: bool = False) -> NDArray[np.int_]:
    """Return (draws,): the epoch after start-up at which the warning fires (`rising`: volatility has risen), or -1."""
    reached = score_series(series, series.shape[1] if known else None)[int(rising)] >= 1.0
    return np.where(reached.any(axis=1), reached.argmax(axis=1), -1)


def wilson(count: int, draws: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927)."""
    share, extent = count / draws, z**2 / draws
    middle = (share + extent / 2) / (1 + extent)
    half = z * np.sqrt(share * (1 - share) / draws + extent / (4 * draws)) / (1 + extent)
    return middle - half, middle + half


def share(epochs: NDArray[np.int_]) -> str:
    """Return the percentage that fired, as `4.4 [3.9, 5.0]`."""
    count = int((epochs >= 0).sum())
    low, high = wilson(count, len(epochs))
    return f"{100 * count / len(epochs):.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def series_of(folder: Path, name: str, steps: int, epochs: int) -> Array:
    return np.asarray(np.load(file_of(folder, name, steps, epochs)), dtype=np.float64)


def null_lines(folder: Path, names: list[str]) -> list[str]:
    """Return a row for each null, over all numbers of steps an epoch, and a list of the cells surely above 5 %."""
    columns = [(epochs, {}) for epochs in EPOCHS]
    columns += [(LONGEST, {"known": False}), (LONGEST, {"rising": True})]
    heads = [f"{epochs} epochs" for epochs in EPOCHS]
    heads += [f"{LONGEST}, length not known", f"{LONGEST}, risen"]
    lines = [f"| layers that do not change | {' | '.join(heads)} |", "| --- " * (len(heads) + 1) + "|"]
    cells, above = 0, []
    for name in tqdm(names):
        pooled: list[list[NDArray[np.int_]]] = [[] for _ in columns]
        for steps in STEPS:
            series = series_of(folder, name, steps, LONGEST)
            for column, (epochs, how) in zip(pooled, columns, strict=True):
                found = fired(pieces(series, epochs, steps), **how)
                column.append(found)
                cells += 1
                if wilson(int((found >= 0).sum()), len(found))[0] > 0.05:
                    what = {"": "", "known": ", length not known", "rising": ", risen"}["".join(how)]
                    above.append(f"{name}, {steps} steps x {epochs} epochs{what}: {share(found)}")
        lines.append(f"| {name} | {' | '.join(share(np.concatenate(column)) for column in pooled)} |")
    return [
        *lines,
        "",
        f"Of the {cells} cells (one for each of {', '.join(map(str, STEPS))} steps an epoch) "
        f"{len(above)} lie above 5 % with all of their interval"
        + (f": {'; '.join(above)}." if above else "."),
    ]


def settling_lines(folder: Path) -> list[str]:
    """Return a row for each way of settling: the percentage that fired and, in brackets, the median epoch of that."""
    columns = [(steps, epochs) for steps in SETTLING_STEPS for epochs in SETTLING_EPOCHS]
    heads = [f"{steps} x {epochs}" for steps, epochs in columns]
    lines = [f"| layers that settle | {' | '.join(heads)} |", "| --- " * (len(heads) + 1) + "|"]
    for name in SETTLING:
        row = []
        for steps, epochs in columns:
            found = fired(series_of(folder, name, steps, epochs))
            hit = found[found >= 0]
            when = f" ({np.median(hit) + first_epoch(steps):.0f})" if len(hit) else ""
            row.append(f"{100 * len(hit) / len(found):.0f}{when}")
        lines.append(f"| {name} | {' | '.join(row)} |")
    return lines


def write_page(lines: list[str], begin: str, end: str) -> None:
    before, rest = PAGE.read_text(encoding="utf-8").split(begin)
    text = "\n".join(lines)
    PAGE.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("nulls", "settling", "page"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=Path, default=ROOT.parent / "shared" / "data" / "cifar10")
    parser.add_argument("--draws", type=int, default=200)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.what == "nulls":
        cells = [(*null, steps, LONGEST) for steps in STEPS for null in nulls(arguments.images).items()]
    elif arguments.what == "settling":
        cells = [(*one, s, e) for s in SETTLING_STEPS for e in SETTLING_EPOCHS for one in SETTLING.items()]
    else:
        names = list(nulls(arguments.images))
        write_page(null_lines(arguments.folder, names), "<!-- nulls -->", "<!-- end of nulls -->")
        write_page(settling_lines(arguments.folder), "<!-- settling -->", "<!-- end of settling -->")
        return
    for name, make, steps, epochs in tqdm(cells):
        kept(arguments.folder, name, make, steps=steps, epochs=epochs, draws=arguments.draws)


if __name__ == "__main__":
    main()
