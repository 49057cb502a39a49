"""The learning-rate schedule of a training, in epochs, read from the scheduler, which is found among live objects."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler

from mlflow_dynamics.convergence.schedule import Schedule
from mlflow_dynamics.recording.rates import outlook, step_epochs
from mlflow_dynamics.recording.torch_private import parts_of

SKIPPED_STEPS: Final = 5
"""The most steps of an epoch that GradScaler may skip and the scheduler still counts."""

EPOCHS_AHEAD: Final = 1000
"""The number of epochs in which steps of the rate are looked for if the length of the training is not known."""

_TIMM: Final = "timm.scheduler.scheduler"


class ScheduleReader:
    """Reads a training's schedule when its epochs end: from the scheduler at the first end, or else from the rates.

    Every scheduler but torch's ReduceLROnPlateau leaves a mark on the optimizer. A scheduler is looked for only if the
    mark is there or the rate moves, so a training without a scheduler does not wait for a search. Only at the end of
    the training is it known that the rate is constant.
    """

    def __init__(self) -> None:
        self._rates: list[object] | None = None
        self._searched = False
        self._steady = False
        self._settled = False

    def read(
        self, optimizers: Sequence[Optimizer], *, epoch: int, steps: int, trained_with: object = None
    ) -> Schedule | None:
        """The schedule, if the end of this epoch tells it; arguments as for `read_schedule`.

        A script may tell the end of an epoch when the next epoch's rate is in force already. So the rate that the epoch
        was `trained_with` counts too.
        """
        if self._settled:
            return None
        before, self._rates = self._rates, _rates_of(optimizers)
        if self._rates is not None and isinstance(trained_with, float):
            self._rates.append(trained_with)
        self._steady = before is not None and before == self._rates
        moves = self._rates is None or not (before is None or self._steady)
        found = None
        if moves or (_marked(optimizers) and not self._searched):
            self._searched = True
            found = read_schedule(optimizers, epoch=epoch, steps=steps)
        self._settled = moves or found is not None
        return found or (Schedule(name="unknown") if moves else None)

    def ended(self) -> Schedule | None:
        """The schedule of a training that has ended: constant if the rate never moved in two epochs or more. None if
        the schedule was returned before, or if nothing tells it."""
        return Schedule() if self._steady and not self._settled else None


def _marked(optimizers: Iterable[Optimizer]) -> bool:
    """Whether a scheduler of torch or timm has noted its initial rates in an optimizer."""
    return any("initial_lr" in group for optimizer in optimizers for group in optimizer.param_groups)


def _rates_of(optimizers: Iterable[Optimizer]) -> list[object] | None:
    """The current learning rates; None if a rate is on a device, for which training would have to wait."""
    rates = [group.get("lr") for optimizer in optimizers for group in optimizer.param_groups]
    if any(isinstance(rate, Tensor) and rate.device.type != "cpu" for rate in rates):
        return None
    return [rate.tolist() if isinstance(rate, Tensor) else rate for rate in rates]


def read_schedule(optimizers: Iterable[Optimizer], *, epoch: int, steps: int) -> Schedule | None:
    """The schedule of a training, read when an early epoch ends; None if there is no scheduler.

    Nothing is certain if there are several schedulers that nothing joins. A scheduler is stepped once an epoch or once
    a training step; its count says which, if it began together with the epochs.

    Args:
        optimizers: the training's optimizers.
        epoch: the number of the epoch that ends, from 0.
        steps: the number of training steps in that epoch.
    """
    schedulers = schedulers_of(optimizers)
    if not schedulers:
        return None
    if len(schedulers) > 1:
        return Schedule(name="unknown")
    (scheduler,) = schedulers
    return schedule_from(scheduler, ticks_per_epoch=_ticks_per_epoch(scheduler, epoch=epoch, steps=steps))


def schedule_from(
    scheduler: object, *, ticks_per_epoch: float | None, planned_epochs: int | None = None
) -> Schedule:
    """What a scheduler will do.

    Args:
        scheduler: the scheduler, which is left as it is.
        ticks_per_epoch: how often the scheduler is stepped in an epoch. If None (not known), the epochs of its steps
            and of its end are not known either.
        planned_epochs: the length of the training, if it is known from elsewhere.
    """
    try:
        plan = outlook(scheduler)
        if ticks_per_epoch is None:
            return Schedule(name=plan.name, planned_epochs=planned_epochs)
        if planned_epochs is None and plan.length is not None:
            planned_epochs = max(round(plan.length / ticks_per_epoch), 1)
        steps: tuple[int, ...] = ()
        if plan.name not in ("unknown", "plateau"):
            epochs = min(planned_epochs or EPOCHS_AHEAD, EPOCHS_AHEAD)
            steps = step_epochs(scheduler, ticks_per_epoch=ticks_per_epoch, epochs=epochs)
        return Schedule(name=plan.name, planned_epochs=planned_epochs, drop_epochs=steps)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        # The scheduler is half made (its constructor raised), or was made with values that its class cannot compute.
        return Schedule(name="unknown", planned_epochs=planned_epochs)


def schedulers_of(optimizers: Iterable[Optimizer]) -> list[Any]:
    """The schedulers that set these optimizers' learning rates: those of torch and timm, and of their subclasses.

    Parts of composed schedulers are left out. Schedulers are looked for among all live objects that refer to an
    optimizer, so it does not matter when a scheduler's module was imported. The search takes 50 ms for half a million
    objects, and as much again if Python keeps an object's attributes in a dictionary, or if the optimizer is wrapped
    (by Accelerate).
    """
    asked: list[Any] = list(optimizers)
    ours, found = set(map(id, asked)), dict[int, Any]()
    while asked:
        referrers = gc.get_referrers(*asked)
        asked = []
        for one in referrers:
            held = _attributes(one)
            if id(held.get("optimizer")) not in ours or "__builtins__" in held or id(one) in ours:
                continue
            if issubclass(
                type(one), dict | Optimizer
            ):  # an object's attributes, or a wrapper of the optimizer
                ours.add(id(one))
                asked.append(one)
            else:
                found[id(one)] = one
    held_by_others = [part for one in found.values() for part in (*vars(one).values(), *parts_of(one))]
    parts = set(map(id, held_by_others))
    return [scheduler for key, scheduler in found.items() if key not in parts]


def _attributes(thing: Any) -> dict[str, Any]:
    """The attributes of an optimizer or scheduler; none of other objects, because asking these may run any code."""
    if type(thing) is dict:
        return thing
    timms = [vars(sys.modules[_TIMM])["Scheduler"]] if _TIMM in sys.modules else []
    known = any(base in type(thing).__mro__ for base in (Optimizer, LRScheduler, *timms))
    return vars(thing) if known else {}


def _ticks_per_epoch(scheduler: Any, *, epoch: int, steps: int) -> float | None:
    """How often a scheduler is stepped in an epoch; None if its count does not fit the end of epoch `epoch`."""
    if (
        in_epochs := vars(scheduler).get("t_in_epochs")
    ) is not None:  # timm's schedulers are given their position
        return 1.0 if in_epochs else float(steps) or None
    while isinstance(scheduler, ChainedScheduler) and parts_of(scheduler):
        scheduler = parts_of(scheduler)[-1]
    ticks = vars(scheduler).get("last_epoch")
    if not isinstance(ticks, int) or steps == 0:
        return None
    # A script may step the scheduler before or after it tells the end of the epoch.
    if ticks in (epoch, epoch + 1):
        return 1.0
    if 0 <= ticks - (epoch + 1) * steps <= SKIPPED_STEPS:
        return ticks / (epoch + 1)
    return None
