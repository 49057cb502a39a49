"""The training loop: trains one model on one data set, epoch by epoch, reproducibly and resumably."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, RandomSampler

from mlflow_dynamics.errors import ConfigError
from mlflow_dynamics.tracking import names
from mlflow_dynamics.training.checkpoints import TRAINED, read_checkpoint, write_checkpoint
from mlflow_dynamics.training.data import ImageData


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """The results of one epoch of training.

    Attributes:
        number: the epoch's number, from 0.
        train_loss, validation_loss: mean cross-entropy.
        train_accuracy, validation_accuracy: fraction of correct images, 0 to 1.
        learning_rate: the learning rate at the start of the epoch.
        seconds: the duration of the epoch with its validation.
        images_per_second: training images per second, without the validation.
    """

    number: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    seconds: float
    images_per_second: float

    def as_metrics(self) -> dict[str, float]:
        """Return the epoch's metrics by their keys in MLflow."""
        return {
            names.TRAIN_LOSS: self.train_loss,
            names.TRAIN_ACCURACY: self.train_accuracy,
            names.VALIDATION_LOSS: self.validation_loss,
            names.VALIDATION_ACCURACY: self.validation_accuracy,
            names.LEARNING_RATE: self.learning_rate,
            names.EPOCH_SECONDS: self.seconds,
            names.IMAGES_PER_SECOND: self.images_per_second,
        }


def seed_everything(seed: int) -> None:
    """Seed all random numbers, so that weights, order and augmentation depend on `seed` alone."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  # libraries still use the global generator
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def resolve_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is the accelerator, or the CPU if there is none.

    Raises:
        ConfigError: torch does not know the device, or this machine lacks it.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # raises on a device without memory (meta)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"device={name!r} cannot be used on this machine, which has {' and '.join(_devices())}; give auto or one "
            "of these."
        ) from error
    return device


def _devices() -> list[str]:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    kind = None if accelerator is None else accelerator.type
    return ["cpu", *(f"{kind}:{index}" for index in range(torch.accelerator.device_count()))]


class Trainer:
    """A training under way: everything that changes from step to step, and therefore is kept in a checkpoint.

    Args:
        model, optimizer, scheduler: what is trained; the scheduler is stepped after every training step.
        data: the training and test images.
        batch_size: images per training step.
        device: the device of the model.
        precision: "fp32" or "bf16".
        seed: the seed of the order of images.
        workers: the number of processes that load data; 0 loads in this process.
        forward: called in place of the model, such as the compiled model; None calls the model.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler,
        data: ImageData,
        batch_size: int,
        device: torch.device,
        precision: str,
        seed: int,
        workers: int,
        forward: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.device = device
        self.precision = precision
        self.seed = seed
        self.next_epoch = 0
        self._forward = forward if forward is not None else model
        self._data = data
        self._order = torch.Generator()
        common: dict[str, Any] = {
            "batch_size": batch_size,
            "num_workers": workers,
            "pin_memory": device.type == "cuda",
            "persistent_workers": workers > 0,
        }
        # A loader draws the seeds of its workers from its generator, or from the global one if it has none. With a
        # generator of its own, it changes neither the order of images nor the random numbers of training.
        self.train_loader = DataLoader(
            data.train,
            sampler=RandomSampler(data.train, generator=self._order),
            generator=torch.Generator(),
            **common,
        )
        self.test_loader = DataLoader(data.test, shuffle=False, generator=torch.Generator(), **common)

    def epochs(self, last: int, *, after_step: Callable[[], object] = lambda: None) -> Iterator[Epoch]:
        """Train up to epoch `last` (exclusive), one epoch for each item taken; each step calls `after_step`."""
        while self.next_epoch < last:
            number = self.next_epoch
            start = time.perf_counter()
            learning_rate = self.optimizer.param_groups[0]["lr"]
            train_loss, train_accuracy, images = self._train(number, after_step)
            train_seconds = time.perf_counter() - start
            validation_loss, validation_accuracy = self._validate()
            self.next_epoch += 1
            yield Epoch(
                number=number,
                train_loss=train_loss,
                train_accuracy=train_accuracy,
                validation_loss=validation_loss,
                validation_accuracy=validation_accuracy,
                learning_rate=learning_rate,
                seconds=time.perf_counter() - start,
                images_per_second=images / train_seconds,
            )

    def _train(self, number: int, after_step: Callable[[], object]) -> tuple[float, float, int]:
        # The order depends only on seed and epoch, so a resumed training sees the same images as an uninterrupted one.
        self._order.manual_seed(self.seed * 1_000_003 + number)
        self._data.set_epoch(number)
        self.model.train()
        loss_sum = torch.zeros((), device=self.device)
        correct = torch.zeros((), device=self.device)
        images = 0
        for batch, target in self.train_loader:
            batch = batch.to(self.device, non_blocking=True)
            target = target.to(self.device, non_blocking=True)
            with self._autocast():
                output = self._forward(batch)
                loss = functional.cross_entropy(output, target)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            loss_sum += loss.detach() * len(target)
            correct += (output.detach().argmax(1) == target).sum()
            images += len(target)
            after_step()
        return loss_sum.item() / images, correct.item() / images, images

    @torch.no_grad()
    def _validate(self) -> tuple[float, float]:
        self.model.eval()
        loss_sum = torch.zeros((), device=self.device)
        correct = torch.zeros((), device=self.device)
        images = 0
        for batch, target in self.test_loader:
            batch = batch.to(self.device, non_blocking=True)
            target = target.to(self.device, non_blocking=True)
            with self._autocast():
                output = self._forward(batch)
                loss = functional.cross_entropy(output, target, reduction="sum")
            loss_sum += loss
            correct += (output.argmax(1) == target).sum()
            images += len(target)
        return loss_sum.item() / images, correct.item() / images

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def save(self, path: Path, *, trained: Mapping[str, str]) -> None:
        """Write atomically everything that is needed to carry on after the last whole epoch.

        `trained` are the parameters of the training, by which its checkpoint is known again.
        """
        state = {
            TRAINED: dict(trained),
            "next_epoch": self.next_epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "torch_rng": torch.get_rng_state(),
        }
        write_checkpoint(path, state)

    def restore(self, path: Path) -> None:
        """Restore the state that `save` has written.

        Raises:
            ConfigError: the checkpoint is damaged, or belongs to another model or optimizer.
        """
        state = read_checkpoint(path, device=self.device)
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"The checkpoint {str(path)!r} is of another model or optimizer; resume with the parameters that "
                f"the interrupted run had."
            ) from error
        self.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["torch_rng"].cpu())
        self.next_epoch = state["next_epoch"]
