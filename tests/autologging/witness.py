"""What a training loop itself says of its epochs, steps, activations and losses, to compare the record with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

BATCH = 4
STEPS = 6


@dataclass
class Witness:
    """Spies on a model's layers by replacing their `forward` (no hooks) and keeps the loop's own account."""

    model: nn.Module
    steps: dict[int, list[list[tuple[float, float]]]] = field(default_factory=lambda: defaultdict(list))
    train: dict[int, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))
    validation: dict[int, tuple[float, float]] = field(default_factory=dict)
    _last: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = [
            name for name, module in self.model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)
        ]
        for name in self.names:
            module = self.model.get_submodule(name)
            module.forward = self._spied(name, module.forward)

    def _spied(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: Tensor) -> Tensor:
            output = forward(x)
            if torch.is_grad_enabled() and self.model.training:
                self._last[name] = output.detach().double().clone().numpy()
            return output

        return call

    def step(self, epoch: int) -> None:
        """The loop made a training step of this epoch."""
        self.steps[epoch].append(
            [(self._last[name][:8].mean(), self._last[name][:8].std()) for name in self.names]
        )

    def loss(self, epoch: int, value: Tensor, size: int) -> None:
        """The loop's training loss of one batch."""
        self.train[epoch].append((value.item(), size))

    def train_loss(self, epoch: int) -> float:
        """Weighted by batch size."""
        values = self.train[epoch]
        return sum(value * size for value, size in values) / sum(size for _, size in values)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout(0.1), nn.Linear(144, 3)
    )


def data(size: int = BATCH * STEPS, seed: int = 1) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(
        torch.randn(size, 3, 8, 8, generator=generator), torch.randint(0, 3, (size,), generator=generator)
    )


def loader(size: int = BATCH * STEPS, **options: Any) -> DataLoader[Any]:
    return DataLoader(data(size, options.pop("seed", 1)), batch_size=BATCH, **options)


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05)
