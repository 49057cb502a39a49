"""How surely a training's layers tell that its data come in the same order each epoch.

    python benchmarks/same_order.py ../shared/data --runs 160

Small real trainings, each with a network, data set, optimizer, rate, schedule, batch size and augmentation of its own.
Of four, one has its images in the same order each epoch (as they are, or sorted by class), two are shuffled, and one is
shuffled and has random labels. What is printed stands in docs/report.md.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler
from tqdm import tqdm

from mlflow_dynamics.config import RecordingConfig
from mlflow_dynamics.evaluation.statistics import wilson
from mlflow_dynamics.measures.repetition import Repetition
from mlflow_dynamics.recording import Recorder
from mlflow_dynamics.training.data import load_dataset
from mlflow_dynamics.training.models import build_model
from mlflow_dynamics.training.optimisation import build_optimizer, build_schedule

EPOCHS: Final = 6
KINDS: Final = ("shuffled", "shuffled", "same order", "random labels")
NETWORKS: Final = ("resnet20", "small_vgg", "small_vgg_plain", "small_vit", "resnet20_plain")
SETS: Final = ("digits", "cifar10", "tinyimagenet100")


@dataclass(frozen=True)
class Outcome:
    """One training: its kind, steps an epoch, and each epoch's score and answer."""

    kind: str
    steps: int
    scores: tuple[float, ...]
    found: tuple[bool, ...]


def train(number: int, images: Path) -> Outcome:
    """Train the setting of this number; what is drawn depends on the number alone."""
    rng = np.random.default_rng(1000 + number)
    kind = KINDS[number % len(KINDS)]
    chosen, network = str(rng.choice(SETS)), str(rng.choice(NETWORKS))
    optimizer = "adamw" if network == "small_vit" or rng.random() < 0.3 else "sgd"
    rate = float((1e-3 if optimizer == "adamw" else 0.03) * 10 ** rng.uniform(-0.7, 0.5))
    schedule = str(rng.choice(["constant", "step", "cosine", "onecycle"]))
    batch = int(rng.choice([16, 32, 64]))
    augment = bool(rng.random() < 0.6)
    labels = "given"
    if kind == "random labels":
        labels = "random"
    elif chosen == "tinyimagenet100" and rng.random() >= 0.5:
        labels = "merged:10"
    count = int(rng.choice([640, 600, 777]))
    by_class = bool(rng.random() < 0.3)
    torch.manual_seed(number)
    data = load_dataset(
        chosen if chosen == "digits" else f"parquet:{images / chosen}",
        data_dir=Path(),
        limit_train=count,
        limit_test=32,
        image_size=None if chosen == "digits" else 12 if "resnet" in network else 16,
        augment=augment,
        seed=number,
        labels=labels,
    )
    model = build_model(
        network, num_classes=data.num_classes, image_size=data.image_size, channels=data.channels
    )
    steps = -(-len(data.train) // batch)
    optim = build_optimizer(optimizer, model.parameters(), learning_rate=rate, weight_decay=5e-4)
    scheduler = build_schedule(schedule, optim, learning_rate=rate, epochs=EPOCHS, steps_per_epoch=steps)
    order: RandomSampler | list[int]
    if kind != "same order":
        order = RandomSampler(data.train, generator=torch.Generator().manual_seed(number))
    elif by_class:
        order = torch.argsort(data.train.labels, stable=True).tolist()
    else:
        order = list(range(len(data.train)))
    loader = DataLoader(data.train, sampler=order, batch_size=batch)
    repetition = Repetition()
    scores, found = [], []
    with Recorder(model, RecordingConfig()) as recorder:
        for epoch in range(EPOCHS):
            data.set_epoch(epoch)
            for batch_images, targets in loader:
                optim.zero_grad()
                nn.functional.cross_entropy(model(batch_images), targets).backward()
                optim.step()
                scheduler.step()
            repetition.append(recorder.end_epoch(epoch).result())
            scores.append(repetition.score)
            found.append(repetition.same_order)
    return Outcome(kind, steps, tuple(scores), tuple(found))


def share(happened: list[bool]) -> str:
    low, high = wilson(float(np.mean(happened)), len(happened))
    return f"{100 * np.mean(happened):.0f} % [{100 * low:.1f}, {100 * high:.1f}] ({sum(happened)} of {len(happened)})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, help="the folder with the data sets")
    parser.add_argument("--runs", type=int, default=160)
    arguments = parser.parse_args()
    outcomes = [train(number, arguments.images) for number in tqdm(range(arguments.runs), unit="run")]
    for least in (10, 20):
        same, other = (
            [o for o in outcomes if o.steps >= least and (o.kind == "same order") is wanted]
            for wanted in (True, False)
        )
        print(f"epochs of {least} and more steps:")
        for epoch in range(2, EPOCHS):
            print(f"  after {epoch + 1} epochs found in {share([o.found[epoch] for o in same])}")
        largest = max(max(o.scores[1:]) for o in other)
        print(f"  false alarms {share([any(o.found) for o in other])}, largest score {largest:.1f}")


if __name__ == "__main__":
    main()
