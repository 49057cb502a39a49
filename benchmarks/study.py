"""The protocol's study: trains its cells, says which are missing, and takes their steps into one Parquet file.

    python benchmarks/study.py train
    python benchmarks/study.py missing
    python benchmarks/study.py export records.parquet --only model=resnet20 schedule=constant
    python benchmarks/study.py missing records.parquet

In the repository's folder, as the protocol (docs/protocol.md, which holds the cells) names its data sets from there;
in the MLflow store and experiment that the environment names. `train` goes on where it was interrupted.

8 MB do not hold all cells. A number takes 9.6 to 10.4 bits in the file: most of float16's 16 are the noise of batches,
which nothing compresses. That is 154 kB for a run of ResNet-20 (20 layers, 3,160 steps), so 8 MB hold 51 of them; the
25 at a constant rate and 40 epochs, which the protocol keeps, take 3.9 MB, and all 175 cells (18.9 million numbers)
would take 23 to 25 MB. (`write` of 474 steps of ResNet-20 and 1,185 of small_vgg_plain, CIFAR-10, scaled up without
the 2.4 kB of each run's names; 2-core x86-64 cloud VM, no GPU, 2026-11-29.) Rounded to a quarter of each layer's
deviation from step to step, numbers would have an entropy of 4.0 bits: 9.5 MB for all.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mlflow_dynamics import load_activations
from mlflow_dynamics.errors import DataError
from mlflow_dynamics.tracking.activations import load_layers
from mlflow_dynamics.training.grid import TAG_CELL, train_grid
from mlflow_dynamics.training.parameters import TrainingConfig, short_name

PROTOCOL: Final = Path(__file__).parents[1] / "docs" / "protocol.md"
VARIED: Final = ("model", "dataset", "labels", "optimizer", "schedule", "epochs", "seed")
"""What tells the protocol's cells apart, and the columns of the file."""

Array = NDArray[np.float32]
SERIES: Final = pa.list_(pa.float16())
SCHEMA: Final = pa.schema(
    [
        ("cell", pa.string()),
        *((name, pa.int16() if name in ("epochs", "seed") else pa.string()) for name in VARIED),
        ("layer", pa.string()),
        ("rms", SERIES),
        ("mean", SERIES),
    ]
)
"""A row is a layer of a run, in forward order; its series hold all training steps from the first."""


@dataclass(frozen=True)
class Steps:
    """What one run recorded.

    Attributes:
        cell: the digest of its cell, `TrainingConfig.digest`.
        layers: (layers,) their names in forward order.
        rms, mean: (layers, steps) of each layer's output.
    """

    cell: str
    layers: tuple[str, ...]
    rms: Array
    mean: Array


def cells() -> list[TrainingConfig]:
    """The trainings that the protocol declares, by the code in its page."""
    block = re.search(r"```python\n(.*?)```", PROTOCOL.read_text(encoding="utf-8"), re.DOTALL)
    if block is None:
        raise DataError(f"{PROTOCOL} holds no block of Python that declares the cells.")
    written: dict[str, Any] = {}
    exec(block[1], written)
    return list(written["cells"])


def trained() -> dict[str, str]:
    """The id of the finished run of each cell's digest in the active experiment, the newest if there are several."""
    runs = mlflow.search_runs(
        filter_string="attributes.status = 'FINISHED'",
        order_by=["attributes.start_time ASC"],
        output_format="list",
    )
    return {run.data.tags[TAG_CELL]: run.info.run_id for run in runs if TAG_CELL in run.data.tags}


def recorded(cell: str, run_id: str) -> Steps:
    """The steps that a run of a cell holds in MLflow."""
    layers = load_layers(run_id)
    table = load_activations(run_id).sort_by([("layer", "ascending"), ("step", "ascending")])
    mean, std = (table[name].to_numpy().reshape(len(layers), -1) for name in ("mean", "std"))
    return Steps(cell, tuple(layer.name for layer in layers), np.hypot(mean, std), mean)


def write(runs: Iterator[Steps], path: Path) -> None:
    """Write runs of the protocol's cells to one file, each as it comes."""
    of = {cell.digest(): cell for cell in cells()}
    split = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in ("rms", "mean")}
    with pq.ParquetWriter(
        path,
        SCHEMA,
        compression="zstd",
        compression_level=19,
        write_statistics=False,
        use_dictionary=["cell", *VARIED, "layer"],
        column_encoding=split,
    ) as file:
        for run in runs:
            cell = of[run.cell]
            same = {name: getattr(cell, name) for name in VARIED} | {"cell": run.cell}
            same["dataset"] = short_name(cell.dataset)
            rows = {name: [value] * len(run.layers) for name, value in same.items()}
            rows |= {"layer": list(run.layers), "rms": _half(run.rms), "mean": _half(run.mean)}
            file.write_table(pa.table(rows, schema=SCHEMA))


def read(path: Path) -> Iterator[Steps]:
    """The runs of a file that `write` has written, with what float16 has left of each number.

    That is 11 binary digits: a relative error of at most 2^-11 = 0.0005 from 6e-5 to 65,504, in absolute terms at most
    3e-8 below, and infinity above.
    """
    file = pq.ParquetFile(path)
    for group in range(file.num_row_groups):
        table = file.read_row_group(group)
        rms, mean = (
            table[name].combine_chunks().flatten().to_numpy().astype(np.float32).reshape(table.num_rows, -1)
            for name in ("rms", "mean")
        )
        yield Steps(table["cell"][0].as_py(), tuple(table["layer"].to_pylist()), rms, mean)


def missing(found: set[str]) -> list[str]:
    """A line for each kind of cell of which some digests are not among those found, with the seeds that lack."""
    seeds = defaultdict(list)
    for cell in cells():
        if cell.digest() not in found:
            kind = f"{cell.model} on {short_name(cell.dataset)}, labels {cell.labels}"
            seeds[f"{kind}, {cell.optimizer} {cell.schedule}, {cell.epochs} epochs"].append(cell.seed)
    return [f"{kind}: seeds {' '.join(map(str, of))}" for kind, of in seeds.items()]


def _half(series: Array) -> pa.Array:
    with np.errstate(over="ignore"):
        rows = series.astype(np.float16)
    return pa.array(list(rows), SERIES)


def export(path: Path, only: Sequence[tuple[str, str]]) -> None:
    """Write what is trained of the chosen cells, and print how large and how exact it is."""
    runs = trained()
    chosen = [
        cell.digest()
        for cell in cells()
        if all(short_name(str(getattr(cell, name))) == value for name, value in only)
    ]
    digests = [digest for digest in chosen if digest in runs]
    if not digests:
        raise DataError(
            f"None of the {len(chosen)} chosen cells has a finished run in this store and experiment; set "
            "MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME as for `train`."
        )
    write((recorded(digest, runs[digest]) for digest in digests), path)
    size = path.stat().st_size
    print(
        f"{len(digests)} of {len(chosen)} runs, {size / 1e6:.2f} MB, {size / len(digests) / 1e3:.0f} kB each"
    )
    worst = 0.0
    for kept in read(path):
        run = recorded(kept.cell, runs[kept.cell])
        for ours, theirs in ((kept.rms, run.rms), (kept.mean, run.mean)):
            finite = np.isfinite(theirs) & (np.abs(theirs) > np.finfo(np.float16).tiny)
            worst = max(worst, float(np.max(np.abs(ours / theirs - 1), where=finite, initial=0)))
    print(f"largest relative error of a number above 6e-5: {worst:.1e}")


def _condition(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if name not in VARIED or not value:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be NAME=VALUE with a name among {', '.join(VARIED)}."
        )
    return name, value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("train", help="train the cells that are not trained yet")
    lacking = commands.add_parser("missing", help="what is not trained yet, or not in a file")
    lacking.add_argument("file", type=Path, nargs="?")
    exporting = commands.add_parser("export", help="write the steps of what is trained to a file")
    exporting.add_argument("file", type=Path)
    exporting.add_argument("--only", type=_condition, nargs="+", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    if arguments.command == "train":
        train_grid(cells())
    elif arguments.command == "export":
        try:
            export(arguments.file, arguments.only)
        except DataError as error:
            parser.exit(2, f"{error}\n")
    elif arguments.file is not None and not arguments.file.is_file():
        parser.error(f"{arguments.file} is no file; give one that `export` has written.")
    else:
        found = set(trained()) if arguments.file is None else {run.cell for run in read(arguments.file)}
        print("\n".join(missing(found)) or "nothing is missing")


if __name__ == "__main__":
    main()
