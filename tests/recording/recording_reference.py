"""An independent account of what should be recorded: outputs captured by replaced forwards, statistics by numpy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

counters = torch._dynamo.utils.counters


def forget_compiled() -> None:
    """Dynamo as it is in a new process: nothing compiled, nothing counted."""
    torch._dynamo.reset()
    counters.clear()


def compiled_and_broken() -> tuple[int, int]:
    """How many graphs dynamo compiled, and how often it broke one."""
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


class Spy:
    """Keeps every output of the named modules, by replacing `forward` on the instances (no hooks involved)."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self.outputs: dict[str, list[np.ndarray]] = defaultdict(list)
        for name in names:
            module = model.get_submodule(name)
            module.forward = self._spied(name, module.forward)  # type: ignore[method-assign]

    def _spied(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            tensor = output[0] if isinstance(output, tuple) else output
            self.outputs[name].append(tensor.detach().double().cpu().clone().numpy())
            return output

        return call

    def take(self, name: str) -> list[np.ndarray]:
        return self.outputs.pop(name, [])


def statistics(parts: list[np.ndarray]) -> tuple[float, float]:
    """Mean and population standard deviation of all parts, parts equally weighted."""
    means = [part.mean() for part in parts]
    seconds = [(part**2).mean() for part in parts]
    mean = float(np.mean(means))
    return mean, float(np.sqrt(max(np.mean(seconds) - mean**2, 0.0)))


def batches(count: int, size: int = 12, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 3, 12, 12, generator=generator), torch.randint(0, 5, (size,), generator=generator))
        for _ in range(count)
    ]


def small_cnn(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 4, 3, stride=2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(64, 5),
    )


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: list[tuple[Tensor, Tensor]],
    *,
    call: Callable[[Tensor], Tensor] | None = None,
) -> list[float]:
    losses = []
    for images, targets in data:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy((model if call is None else call)(images), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
