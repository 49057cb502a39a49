"""What a learning-rate scheduler that is alive plans: read from torch's, timm's and Hugging Face's, else unknown."""

from __future__ import annotations

import functools
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakSet

from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from mlflow_dynamics.convergence.schedule import MIN_RATE, RATE_STEP, Schedule
from mlflow_dynamics.recording.alive import alive
from mlflow_dynamics.recording.boundary import Boundary
from mlflow_dynamics.recording.patching import Patch

SKIPPED_STEPS: Final = 5
"""So many steps of an epoch may be ones that GradScaler skips and the scheduler counts."""

RESTARTS: Final = 20
"""So many restarts ahead are known of a schedule that restarts for ever."""

_TIMM: Final = "timm.scheduler.scheduler"

_WITHOUT_SUPER: Final = (
    lr_scheduler.SequentialLR,
    lr_scheduler.ChainedScheduler,
    lr_scheduler.ReduceLROnPlateau,
)
"""Schedulers that do not call the constructor of `LRScheduler`."""

_HUGGING_FACE: Final = {
    "_get_constant_lambda": "constant",
    "_get_constant_schedule_with_warmup_lr_lambda": "constant",
    "_get_linear_schedule_with_warmup_lr_lambda": "linear",
    "_get_cosine_schedule_with_warmup_lr_lambda": "cosine",
    "_get_cosine_with_min_lr_schedule_with_warmup_lr_rate_lambda": "cosine",
    "_get_cosine_with_hard_restarts_schedule_with_warmup_lr_lambda": "cosine_restarts",
    "_get_polynomial_decay_schedule_with_warmup_lr_lambda": "polynomial",
    "_get_wsd_scheduler_lambda": "wsd",
}
"""The functions that Hugging Face gives to LambdaLR, with their parameters in a `functools.partial`."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a scheduler will do, in its own ticks: how often its `step` has been called.

    Attributes:
        name: as in `Schedule`; "unknown" where nothing is certain.
        length: ticks until it is through, None if it does not say.
        steps: the ticks from which on the rate is another one by `RATE_STEP` or more.
    """

    name: str = "unknown"
    length: int | None = None
    steps: tuple[int, ...] = ()

    def schedule(self, *, ticks_per_epoch: float | None, planned_epochs: int | None = None) -> Schedule:
        """The plan in epochs.

        Args:
            ticks_per_epoch: None where it is not known; then neither are the epochs of steps and end.
            planned_epochs: the length of the training where it is known from elsewhere.
        """
        if ticks_per_epoch is None:
            return Schedule(name=self.name, planned_epochs=planned_epochs)
        if planned_epochs is None and self.length is not None:
            planned_epochs = max(round(self.length / ticks_per_epoch), 1)
        # A step in the middle of an epoch is that epoch's.
        epochs = sorted({math.floor(tick / ticks_per_epoch + 1e-9) for tick in self.steps} - {0})
        return Schedule(
            name=self.name,
            planned_epochs=planned_epochs,
            drop_epochs=tuple(e for e in epochs if planned_epochs is None or e < planned_epochs),
        )


CONSTANT: Final = Plan(name="constant")
UNKNOWN: Final = Plan()


def read_schedule(schedulers: Sequence[object], *, epoch: int, steps: int) -> Schedule:
    """The schedule of a training under these schedulers, read where an early epoch ends.

    Without a scheduler the rate is constant; with several that nothing joins, nothing is certain. A scheduler is
    stepped once an epoch or once a training step: its count says which, where it began together with the epochs.

    Args:
        schedulers: all that there are (`SchedulerWatch.of`).
        epoch: the number of the epoch that ends, from 0.
        steps: how many training steps it had.
    """
    if not schedulers:
        return CONSTANT.schedule(ticks_per_epoch=None)
    if len(schedulers) > 1:
        return UNKNOWN.schedule(ticks_per_epoch=None)
    (scheduler,) = schedulers
    return plan_of(scheduler).schedule(ticks_per_epoch=_ticks_per_epoch(scheduler, epoch=epoch, steps=steps))


class SchedulerWatch:
    """The schedulers there are: those alive when it is made, and each that is made from then on.

    Looks through all live objects, which takes tenths of a second: before a training, not in one of its steps.
    timm's are known where timm was imported before.

    Args:
        boundary: of what happens in the training.
        first: nothing of the training is there yet, so that there is nothing to look for.
    """

    def __init__(self, boundary: Boundary, *, first: bool = False) -> None:
        self._boundary = boundary
        self._known: WeakSet[Any] = WeakSet()
        kinds: tuple[type, ...] = (LRScheduler,)
        if _TIMM in sys.modules:
            kinds += (sys.modules[_TIMM].Scheduler,)
        for kind in () if first else kinds:
            self._known.update(alive(kind))
        self._patches = [Patch(kind, "__init__", self._around) for kind in (*kinds, *_WITHOUT_SUPER)]

    def of(self, optimizers: Iterable[Optimizer]) -> list[object]:
        """Those that set these optimizers' learning rates, without the parts of composed ones."""
        ours = {id(optimizer) for optimizer in optimizers}
        found = [one for one in self._known if id(_innermost(vars(one).get("optimizer"))) in ours]
        parts = {id(part) for scheduler in found for part in _parts(scheduler)}
        return [scheduler for scheduler in found if id(scheduler) not in parts]

    def remove(self) -> None:
        """Give the classes their own constructors back."""
        for patch in self._patches:
            patch.remove()

    def _around(self, original: Callable[..., None]) -> Callable[..., None]:
        def construct(scheduler: Any, *args: Any, **kwargs: Any) -> None:
            original(scheduler, *args, **kwargs)
            self._boundary.run(self._known.add, scheduler)

        return construct


def plan_of(scheduler: object) -> Plan:
    """What is certain of the plan of this scheduler; of a class not known here, and of a subclass, nothing."""
    kind = type(scheduler)
    if kind.__module__.startswith("timm.scheduler."):
        return _plan_of_timm(scheduler)
    match scheduler:
        case lr_scheduler.StepLR() if kind is lr_scheduler.StepLR:
            return Plan(name="step", steps=_regular(scheduler.step_size, scheduler.gamma))
        case lr_scheduler.MultiStepLR() if kind is lr_scheduler.MultiStepLR:
            return Plan(name="step", steps=_listed(scheduler.milestones, scheduler.gamma))
        case lr_scheduler.ConstantLR() if kind is lr_scheduler.ConstantLR:
            return Plan(name="constant", steps=_listed([scheduler.total_iters], scheduler.factor))
        case lr_scheduler.LinearLR() if kind is lr_scheduler.LinearLR:
            if scheduler.end_factor >= scheduler.start_factor:  # a warm-up, after which the rate stays
                return CONSTANT
            ends = scheduler.end_factor <= MIN_RATE * scheduler.start_factor
            return Plan(name="linear", length=scheduler.total_iters if ends else None)
        case lr_scheduler.PolynomialLR() if kind is lr_scheduler.PolynomialLR:
            return Plan(name="polynomial", length=scheduler.total_iters)
        case lr_scheduler.ExponentialLR() if kind is lr_scheduler.ExponentialLR:
            return CONSTANT if scheduler.gamma == 1.0 else Plan(name="exponential")
        case lr_scheduler.CosineAnnealingLR() if kind is lr_scheduler.CosineAnnealingLR:
            return Plan(name="cosine", length=scheduler.T_max)
        case lr_scheduler.CosineAnnealingWarmRestarts() if kind is lr_scheduler.CosineAnnealingWarmRestarts:
            return Plan(name="cosine_restarts", steps=_restarts(scheduler.T_0, scheduler.T_mult))
        case lr_scheduler.OneCycleLR() if kind is lr_scheduler.OneCycleLR:
            return Plan(name="onecycle", length=scheduler.total_steps)
        case lr_scheduler.ReduceLROnPlateau():
            return Plan(name="plateau")
        case lr_scheduler.SequentialLR() if kind is lr_scheduler.SequentialLR:
            return _in_sequence([plan_of(part) for part in scheduler._schedulers], scheduler._milestones)
        case lr_scheduler.ChainedScheduler() if kind is lr_scheduler.ChainedScheduler:
            return _at_once([plan_of(part) for part in scheduler._schedulers])
        case lr_scheduler.LambdaLR() if kind is lr_scheduler.LambdaLR:
            return _plan_of_functions(scheduler.lr_lambdas)
    return UNKNOWN


def _regular(every: int, factor: float) -> tuple[int, ...]:
    """Steps every so many ticks, until the rate is too small to matter."""
    if not _is_step(factor) or not 0 < factor < 1:
        return ()
    count = math.floor(math.log(MIN_RATE) / math.log(factor) + 1e-9)
    return tuple(every * k for k in range(1, count + 1))


def _listed(milestones: Iterable[int], factor: float) -> tuple[int, ...]:
    """Steps at these ticks; a tick named twice counts twice."""
    counted = Counter(milestones)
    return tuple(tick for tick in sorted(counted) if tick > 0 and _is_step(factor ** counted[tick]))


def _restarts(first: int, growth: int) -> tuple[int, ...]:
    ends = []
    end, period = 0, first
    for _ in range(RESTARTS):
        end += period
        period *= growth
        ends.append(end)
    return tuple(ends)


def _is_step(factor: float) -> bool:
    return factor > 0 and max(factor, 1 / factor) >= RATE_STEP


def _in_sequence(plans: Sequence[Plan], milestones: Sequence[int]) -> Plan:
    """One after the other: known where all before the last are warm-ups or constant, as in warm-up and cosine."""
    starts = [0, *milestones]
    last = plans[-1]
    if any(plan.name != "constant" for plan in plans[:-1]) or last.name == "unknown":
        return UNKNOWN
    steps: set[int] = set()
    for plan, start, end in zip(plans, starts, [*milestones, math.inf], strict=True):
        steps |= {start + tick for tick in plan.steps if start + tick <= end}
    return Plan(
        name=last.name,
        length=None if last.length is None else starts[-1] + last.length,
        steps=tuple(sorted(steps)),
    )


def _at_once(plans: Sequence[Plan]) -> Plan:
    """All multiplied: known where all but one are constant in between their steps."""
    shaping = [plan for plan in plans if plan.name != "constant"]
    if len(shaping) > 1 or any(plan.name == "unknown" for plan in shaping):
        return UNKNOWN
    shape = shaping[0] if shaping else CONSTANT
    steps = sorted({tick for plan in plans for tick in plan.steps})
    return Plan(name=shape.name, length=shape.length, steps=tuple(steps))


def _plan_of_functions(functions: Sequence[Any]) -> Plan:
    """Of a rate that functions of the user's own set nothing is known; of Hugging Face's, what they were made with."""
    plans = {_plan_of_function(function) for function in functions}
    return plans.pop() if len(plans) == 1 else UNKNOWN


def _plan_of_function(function: Any) -> Plan:
    made_with: dict[str, Any] = {}
    if isinstance(function, functools.partial):
        function, made_with = function.func, function.keywords
    if getattr(function, "__module__", "") != "transformers.optimization":
        return UNKNOWN
    name = _HUGGING_FACE.get(getattr(function, "__name__", ""), "unknown")
    length = made_with.get("num_training_steps")
    match name:
        case "unknown":
            return UNKNOWN
        case "cosine" if made_with.get("num_cycles") != 0.5:  # it would rise again
            return UNKNOWN
        case "cosine_restarts":
            cycles, warmup = int(made_with.get("num_cycles", 1)), made_with.get("num_warmup_steps", 0)
            if length is None:
                return UNKNOWN
            steps = [warmup + math.ceil(k * (length - warmup) / cycles) for k in range(1, cycles)]
            return Plan(name=name, length=length, steps=tuple(steps))
        case "wsd":
            length = sum(made_with[f"num_{phase}_steps"] for phase in ("warmup", "stable", "decay"))
    return Plan(name=name, length=length)


def _plan_of_timm(scheduler: Any) -> Plan:
    if scheduler.noise_range_t is not None:
        return UNKNOWN
    warmup = scheduler.warmup_t if getattr(scheduler, "warmup_prefix", False) else 0
    match type(scheduler).__name__:
        case "StepLRScheduler":
            steps = _regular(scheduler.decay_t, scheduler.decay_rate)
            return Plan(name="step", steps=tuple(warmup + tick for tick in steps))
        case "MultiStepLRScheduler":
            # It lowers the rate one tick before the one it is given (bisect over t + 1).
            steps = _listed([tick - 1 for tick in scheduler.decay_t], scheduler.decay_rate)
            return Plan(name="step", steps=tuple(warmup + tick for tick in steps))
        case "CosineLRScheduler" if scheduler.cycle_limit == 1:
            return Plan(name="cosine", length=warmup + scheduler.t_initial)
        case "PolyLRScheduler" if scheduler.cycle_limit == 1:
            return Plan(name="polynomial", length=warmup + scheduler.t_initial)
        case "WSDLRScheduler":
            return Plan(name="wsd", length=scheduler.warmup_t + scheduler.t_initial)
        case "PlateauLRScheduler":
            return Plan(name="plateau")
    return UNKNOWN


def _ticks_per_epoch(scheduler: Any, *, epoch: int, steps: int) -> float | None:
    """How often it is stepped in an epoch; None where its count does not fit an epoch that is the `epoch`-th."""
    in_epochs = getattr(scheduler, "t_in_epochs", None)  # timm's are told where they are
    if in_epochs is not None:
        return 1.0 if in_epochs else float(steps) or None
    while isinstance(scheduler, lr_scheduler.ChainedScheduler):
        scheduler = scheduler._schedulers[-1]
    ticks = getattr(scheduler, "last_epoch", None)
    if not isinstance(ticks, int) or steps == 0:
        return None
    # It may be stepped before or after the end of the epoch is told.
    if ticks in (epoch, epoch + 1):
        return 1.0
    if 0 <= ticks - (epoch + 1) * steps <= SKIPPED_STEPS:
        return ticks / (epoch + 1)
    return None


def _parts(scheduler: Any) -> Iterable[object]:
    """What a composed scheduler holds of others."""
    for value in scheduler.__dict__.values():
        yield from value if isinstance(value, list | tuple) else (value,)


def _innermost(optimizer: Any) -> Any:
    """The torch optimizer inside a wrapper (Accelerate's, Lightning's)."""
    while isinstance(optimizer, Optimizer) and isinstance(vars(optimizer).get("optimizer"), Optimizer):
        optimizer = vars(optimizer)["optimizer"]
    return optimizer
