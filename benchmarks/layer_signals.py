"""Records the signals of a real network's layers for benchmarks, with our own recorder, in a short training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from mlflow_dynamics.config import RecordingConfig
from mlflow_dynamics.measures.signals import Array
from mlflow_dynamics.recording import Recorder
from mlflow_dynamics.training.data import load_dataset
from mlflow_dynamics.training.models import build_model

WARM_UP = 100
"""The number of first steps that are left out, because most windows do not hold the fall from initialisation."""


def record(dataset: str, *, steps: int, model: str = "resnet20", batch: int = 16) -> tuple[Array, Array]:
    """Train by SGD at a constant rate; return mean and standard deviation, (layers, steps), of every weight layer.

    Args:
        dataset: a data set as in `mlflow run . -P dataset=`: "digits", which needs no download, or "parquet:PATH".
        steps: the number of steps that are returned.
        model: the name of a model.
        batch: the number of images in a batch.
    """
    torch.manual_seed(0)
    data = load_dataset(
        dataset,
        data_dir=Path("data"),
        limit_train=batch * 512,
        limit_test=batch,
        image_size=None,
        augment=True,
        seed=0,
    )
    network = build_model(
        model, num_classes=data.num_classes, image_size=data.image_size, channels=data.channels
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    loader = DataLoader(data.train, batch_size=batch, shuffle=True, drop_last=True)
    taken = 0
    with Recorder(network, RecordingConfig()) as recorder:
        while taken < WARM_UP + steps:
            for images, labels in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(images), labels).backward()
                optimizer.step()
                taken += 1
        found = recorder.end_epoch(0).result()
    last = slice(WARM_UP, WARM_UP + steps)
    return found.mean[:, last].astype(np.float64), found.std[:, last].astype(np.float64)


def layer_signals(dataset: str, *, count: int, steps: int) -> Array:
    """Return (count, steps): root mean square, mean and deviation of the layers, repeated if they are fewer."""
    mean, std = record(dataset, steps=steps)
    signals = np.concatenate([np.hypot(mean, std), mean, std])
    return signals[np.arange(count) % len(signals)]
