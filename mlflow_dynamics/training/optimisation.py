"""Builds optimizers and learning-rate schedules by name."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR

MOMENTUM = 0.9
STEP_MILESTONES = (0.5, 0.75)
"""The fractions of the training at which the `step` schedule divides the rate by ten (He et al. 2016)."""


def drop_epochs(epochs: int) -> tuple[int, ...]:
    """Return the epochs at whose start the `step` schedule lowers the learning rate."""
    return tuple(int(epochs * fraction) for fraction in STEP_MILESTONES)


def build_optimizer(
    name: str, parameters: Iterable[torch.nn.Parameter], *, learning_rate: float, weight_decay: float
) -> Optimizer:
    """Build the optimizer called `name`: "sgd" (with Nesterov momentum), "adam" or "adamw"."""
    match name:
        case "sgd":
            return SGD(
                parameters, lr=learning_rate, momentum=MOMENTUM, nesterov=True, weight_decay=weight_decay
            )
        case "adam":
            return Adam(parameters, lr=learning_rate, weight_decay=weight_decay)
        case _:
            return AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)


def build_schedule(
    name: str, optimizer: Optimizer, *, learning_rate: float, epochs: int, steps_per_epoch: int
) -> LRScheduler:
    """Build the schedule called `name`, which is to be stepped after every training step."""
    total = epochs * steps_per_epoch
    match name:
        case "onecycle":
            return OneCycleLR(optimizer, max_lr=learning_rate, total_steps=total)
        case "cosine":
            return CosineAnnealingLR(optimizer, T_max=total)
        case "step":
            return MultiStepLR(optimizer, milestones=[e * steps_per_epoch for e in drop_epochs(epochs)])
        case _:
            return ConstantLR(optimizer, factor=1.0, total_iters=0)
