"""A training of a moment for scripts with habits of their own, and the runs that came of it."""

from __future__ import annotations

import mlflow
import torch
from mlflow.entities import Run
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mlflow_dynamics.tracking import names

STEPS = 10


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def loader(seed: int = 0) -> DataLoader:
    numbers = torch.Generator().manual_seed(seed)
    images = torch.randn(4 * STEPS, 6, generator=numbers)
    return DataLoader(
        TensorDataset(images, torch.randint(0, 3, (4 * STEPS,), generator=numbers)), batch_size=4
    )


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01)


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, targets: torch.Tensor
) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), targets).backward()
    optimizer.step()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, batches: DataLoader, epochs: int) -> None:
    for _ in range(epochs):
        for images, targets in batches:
            step(model, optimizer, images, targets)


def epochs_of(run: Run) -> int:
    return len(mlflow.MlflowClient().get_metric_history(run.info.run_id, names.LEARNING_RATE))


def runs() -> dict[str, Run]:
    found = mlflow.search_runs(search_all_experiments=True, output_format="list")
    return {run.info.run_name if run.info.run_name == "mine" else "ours": run for run in found}
