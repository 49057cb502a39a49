"""Trains the grid on which the early warning is judged, and keeps each run's epochs as one row each in a CSV file.

    python benchmarks/warning_grid.py ../shared/data tests/data/warning_grid.csv

The grid has 54 runs: a ResNet-20, a small VGG and a small ViT on an easy and a hard set of images, under constant, step
and cosine schedules, with three seeds each. Runs that are in the file already are skipped, so the script can be
interrupted. The order of the runs keeps an unfinished grid balanced. `mlflow-dynamics evaluate` reads the file.
"""

from __future__ import annotations

import argparse
import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import mlflow
import pandas as pd
import torch
from tqdm import tqdm

import mlflow_dynamics
from mlflow_dynamics.config import MeasureConfig
from mlflow_dynamics.convergence import WarningConfig
from mlflow_dynamics.training.data import ImageData, load_dataset
from mlflow_dynamics.training.loop import Trainer, seed_everything
from mlflow_dynamics.training.models import build_model
from mlflow_dynamics.training.optimisation import build_optimizer, build_schedule

EPOCHS: Final = 30
BATCH_SIZE: Final = 64
WINDOW: Final = 512
"""Steps of the window, the default when the kept runs were trained. With it, their first 7 epochs are start-up."""

TRAIN_IMAGES: Final = 5056
"""79 whole batches. For a batch of another size the network would be compiled again, for any size, and be slower."""

VALIDATION_IMAGES: Final = 1024
DATASETS: Final = ("cifar10", "tinyimagenet100")
SCHEDULES: Final = ("cosine", "constant", "step")
SEEDS: Final = (0, 1, 2)


@dataclass(frozen=True)
class Recipe:
    """The optimizer that suits a network, and the precision in which a CPU trains it faster."""

    optimizer: str
    learning_rate: float
    precision: str


MODELS: Final = {
    "small_vgg": Recipe("sgd", 0.03, "bf16"),
    "small_vit": Recipe("adamw", 1e-3, "fp32"),
    "resnet20": Recipe("sgd", 0.05, "bf16"),
}


def train(model: str, schedule: str, seed: int, data: ImageData) -> str:
    """Train one cell of the grid in an MLflow run, and return the run's id."""
    chosen = MODELS[model]
    torch.compiler.reset()  # otherwise the ninth network of a kind would run uncompiled
    seed_everything(seed)
    network = build_model(
        model, num_classes=data.num_classes, image_size=data.image_size, channels=data.channels
    )
    optimizer = build_optimizer(
        chosen.optimizer, network.parameters(), learning_rate=chosen.learning_rate, weight_decay=5e-4
    )
    scheduler = build_schedule(
        schedule,
        optimizer,
        learning_rate=chosen.learning_rate,
        epochs=EPOCHS,
        steps_per_epoch=-(-len(data.train) // BATCH_SIZE),
    )
    trainer = Trainer(
        model=network,
        optimizer=optimizer,
        scheduler=scheduler,
        data=data,
        batch_size=BATCH_SIZE,
        device=torch.device("cpu"),
        precision=chosen.precision,
        seed=seed,
        workers=0,
        forward=torch.compile(network),
    )
    with (
        mlflow.start_run() as run,
        mlflow_dynamics.track(
            network,
            optimizer=optimizer,
            measures=MeasureConfig(window=WINDOW),
            warning=WarningConfig(mode="off"),
        ) as tracker,
    ):
        for epoch in trainer.epochs(EPOCHS):
            tracker.end_epoch(epoch.as_metrics())
    return str(run.info.run_id)


def epochs_of(run_id: str) -> pd.DataFrame:
    """Return the metrics, with a row for each epoch and a column for each metric, without those of the machine."""
    frame = mlflow_dynamics.load_metrics([run_id])
    return frame.drop(columns=["run_id", "train/epoch_seconds", "train/images_per_second"])


def cells() -> Iterator[tuple[int, str, str, str]]:
    """Return (seed, schedule, dataset, model) of every run."""
    return itertools.product(SEEDS, SCHEDULES, DATASETS, MODELS)


def main() -> None:
    """Train the runs that the file lacks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, help="the folder with the data sets")
    parser.add_argument("traces", type=Path, help="the CSV file to complete")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="only these")
    arguments = parser.parse_args()
    logging.getLogger("mlflow_dynamics").setLevel(logging.WARNING)
    keys = ["seed", "schedule", "dataset", "model"]
    done = set()
    if arguments.traces.exists():
        done = set(pd.read_csv(arguments.traces)[keys].itertuples(index=False, name=None))
    data = {
        name: load_dataset(
            f"parquet:{arguments.images / name}",
            data_dir=Path(),
            limit_train=TRAIN_IMAGES,
            limit_test=VALIDATION_IMAGES,
            image_size=32,
            augment=True,
            seed=0,
        )
        for name in DATASETS
    }
    missing = [cell for cell in cells() if cell not in done and cell[-1] in arguments.models]
    for cell in tqdm(missing, unit="run"):
        seed, schedule, dataset, model = cell
        frame = epochs_of(train(model, schedule, seed, data[dataset]))
        for position, (key, value) in enumerate(zip(keys, cell, strict=True)):
            frame.insert(position, key, value)
        frame.insert(len(keys), "classes", data[dataset].num_classes)
        arguments.traces.parent.mkdir(parents=True, exist_ok=True)
        frame.to_csv(
            arguments.traces, mode="a", index=False, header=not arguments.traces.exists(), float_format="%.6g"
        )


if __name__ == "__main__":
    main()
