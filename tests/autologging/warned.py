"""Torch's warnings and a script's own, of many kinds and stacklevels, in what is heard of a training: one a line."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset


def tell(message: Warning | str, category: type, filename: str, lineno: int, *_: Any, **__: Any) -> None:
    print(filename, lineno, category.__name__, " ".join(str(message).split()))


def warn(level: int) -> None:
    for stacklevel in range(1, level + 1):
        warnings.warn(f"level {stacklevel}", stacklevel=stacklevel)


class Warns(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        warn(9)  # to beyond the script
        return torch.zeros(1)


class Longer(IterableDataset[int]):
    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Any:
        yield from range(3)


class Optimizer(torch.optim.SGD):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        warn(4)
        super().__init__(*args, **kwargs)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        warn(6)
        super().add_param_group(param_group)

    def step(self, closure: Any = None) -> Any:
        warn(4)
        return super().step(closure)


class Schedule(lr_scheduler.LRScheduler):
    def get_lr(self) -> list[float]:
        warn(6)
        return [0.1 for _ in self.base_lrs]


def main() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    pinned: DataLoader[Any] = DataLoader(TensorDataset(torch.zeros(4, 3)), pin_memory=True)
    for loader in (pinned, DataLoader(Warns()), DataLoader(Longer())):
        list(loader)
    list(DataLoader(Warns(), collate_fn=lambda batch: warn(7)))
    weight = nn.Parameter(torch.ones(1))
    torch.optim.SGD([{"params": [weight, weight]}], lr=0.1)
    optimizer = Optimizer(model.parameters(), lr=0.1)
    scheduler = lr_scheduler.StepLR(optimizer, 1)
    scheduler.step()
    scheduler.step(3)
    Schedule(optimizer).step()
    output = model(torch.zeros(5, 3))
    target = torch.zeros(5, dtype=torch.long)
    for criterion in (
        functional.mse_loss,
        functional.l1_loss,
        functional.smooth_l1_loss,
        functional.huber_loss,
    ):
        criterion(output, torch.zeros(5, 1))
    nn.MSELoss()(output, torch.zeros(5, 1))
    functional.cross_entropy(output, target, size_average=True, reduce=True)
    functional.nll_loss(output, target, reduce=True)
    functional.binary_cross_entropy_with_logits(output, torch.ones_like(output), reduce=True)
    functional.cross_entropy(output, target).backward(create_graph=True)
    torch.autograd.backward([output.sum()], create_graph=True)
    output.register_hook(lambda gradient: warn(5))
    output.sum().backward()
    optimizer.step()
    torch.amp.GradScaler("cuda").scale(output.sum())
    torch.jit.script(nn.Linear(1, 1))


warnings.simplefilter("always")
warnings.showwarning = tell  # type: ignore[assignment]
main()
