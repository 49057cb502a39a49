"""A small training in several processes, for torchrun: `distributed_training.py FOLDER HOW...`.

For every way in which to train it writes `FOLDER/HOW RANK.json`: what the loop itself knows of it.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import mlflow
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import mlflow_dynamics

EPOCHS, STEPS, BATCH, RANKS = 3, 24, 4, 2


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(144, 16),
        nn.ReLU(),
        nn.Linear(16, 3),
    )


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    size = STEPS * BATCH * RANKS
    images = torch.randn(size, 3, 8, 8, generator=generator)
    # The ranks' parts have means far apart: the statistics of one part are not those of the global batch.
    images[1::RANKS] += 2.0
    return TensorDataset(images, torch.randint(0, 3, (size,), generator=generator))


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[list[Tensor]]
) -> Iterator[float]:
    for images, targets in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()
        yield loss.item()


def train(how: str, rank: int) -> dict[str, Any]:
    """Train in one of the ways that the tests ask for; what the loop itself knows of it."""
    model: nn.Module = network()
    if how.endswith("sharded"):
        fully_shard(model[3])
        fully_shard(model)
    elif how == "tensor parallel":
        parallelize_module(
            model,
            init_device_mesh("cpu", (RANKS,)),
            {"3": ColwiseParallel(use_local_output=False), "5": RowwiseParallel()},
        )
    elif how != "not wrapped":
        model = DistributedDataParallel(model)
    if how.startswith("compiled"):
        model = torch.compile(model)
    optimizer = sgd(model)
    part = data()
    loader = DataLoader(part, batch_size=BATCH, sampler=DistributedSampler(part, shuffle=False))
    losses: list[float] = []
    told: dict[str, Any] = {"losses": losses, "run": None, "stops": []}
    with ExitStack() as stack:
        tracker = None
        if how != "bare" and not how.startswith("autolog") and (how != "first rank only" or rank == 0):
            tracker = stack.enter_context(mlflow_dynamics.track(model))
            told["run"] = tracker.run_id
        if how == "uneven":
            stack.enter_context(model.join())  # type: ignore[operator]
        for number in range(EPOCHS):
            batches = list(loader)[:-4] if how == "uneven" and rank == 1 else loader
            for step, loss in enumerate(epoch(model, optimizer, iter(batches))):
                losses.append(loss)
                if how == "dies" and rank == 1 and (number, step) == (2, 5):
                    os._exit(3)
            if tracker is not None:
                tracker.end_epoch()
                if how == "track":
                    told["stops"].append(tracker.should_stop())
        ended = time.monotonic()
    told["closing_s"] = time.monotonic() - ended
    return told


def main(ways: list[str], folder: Path) -> None:
    if ways[0] == "autolog":
        mlflow_dynamics.autolog()
    else:
        logging.basicConfig()
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    for how in ways:
        if rank == 0:
            mlflow.set_experiment(how)
        told = train(how, rank)
        (folder / f"{how} {rank}.json").write_text(json.dumps(told))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[2:], Path(sys.argv[1]))
