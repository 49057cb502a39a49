"""What a scheduler of torch, timm or Hugging Face will do: its name, its length, and the steps of its rate."""

from __future__ import annotations

import copy
import functools
import math
from bisect import bisect_right
from collections.abc import Iterator
from types import FunctionType, SimpleNamespace
from typing import Any, Final, NamedTuple

from torch import Tensor
from torch.optim import lr_scheduler

from mlflow_dynamics.convergence.schedule import MIN_RATE, SMOOTH, is_step
from mlflow_dynamics.recording.torch_private import PARTS, parts_of, rate_now, starts_of

LOOKS: Final = 4
"""The number of times in each epoch that a rate is looked up."""

MOST_STEPS: Final = 20
"""The most steps that are told of a schedule, which may make steps for ever."""

_JUMP: Final = 1e-6
"""A rate that makes a step within so small a part of a tick (one step of the scheduler) jumps; a curve does not."""

_LIBRARIES: Final = ("torch.optim.lr_scheduler", "timm.scheduler.", "transformers.optimization")

_KNOWN: Final = {
    "constant": ("ConstantLR", "_get_constant_lambda", "_get_constant_schedule_with_warmup_lr_lambda"),
    "cosine": (
        *("CosineAnnealingLR", "CosineLRScheduler", "_get_cosine_schedule_with_warmup_lr_lambda"),
        "_get_cosine_with_min_lr_schedule_with_warmup_lr_rate_lambda",
    ),
    "cosine_restarts": (
        *("CosineAnnealingWarmRestarts", "_get_cosine_with_hard_restarts_schedule_with_warmup_lr_lambda"),
    ),
    "exponential": ("ExponentialLR",),
    "linear": ("LinearLR", "_get_linear_schedule_with_warmup_lr_lambda"),
    "onecycle": ("OneCycleLR",),
    "plateau": ("PlateauLRScheduler",),
    "polynomial": ("PolynomialLR", "PolyLRScheduler", "_get_polynomial_decay_schedule_with_warmup_lr_lambda"),
    "step": ("StepLR", "MultiStepLR", "StepLRScheduler", "MultiStepLRScheduler"),
    "wsd": ("WSDLRScheduler", "_get_wsd_scheduler_lambda"),
}
"""Name -> classes of these libraries, and functions that Hugging Face gives to LambdaLR."""

_NAMES: Final = {known: name for name, all_known in _KNOWN.items() for known in all_known}


class Outlook(NamedTuple):
    """A schedule's name, and its length: how often the scheduler is stepped until its end; None if not known."""

    name: str
    length: float | None = None


UNKNOWN: Final = Outlook("unknown")


def outlook(scheduler: Any) -> Outlook:
    """What is known of a scheduler: nothing if its class, a method or a function is the script's own."""
    kind, held = type(scheduler), vars(scheduler)
    if issubclass(kind, lr_scheduler.ReduceLROnPlateau):
        return Outlook("plateau")
    if any(callable(value) and hasattr(kind, name) for name, value in held.items()):
        return UNKNOWN
    parts = [outlook(part) for part in parts_of(scheduler)]
    if kind is lr_scheduler.SequentialLR:  # known if all parts before the last are warm-ups or constant
        last, begins = parts[-1], starts_of(scheduler)[-1]
        length = None if last.length is None else begins + last.length
        return (
            UNKNOWN if any(part.name != "constant" for part in parts[:-1]) else last._replace(length=length)
        )
    if kind is lr_scheduler.ChainedScheduler:  # known if all parts but one are constant between their steps
        shaping = [part for part in parts if part.name != "constant"] or parts[:1]
        return shaping[0] if len(shaping) == 1 else UNKNOWN
    if kind is lr_scheduler.LambdaLR:
        functions = {_outlook_of_function(function) for function in held["lr_lambdas"]}
        return functions.pop() if len(functions) == 1 else UNKNOWN
    name = _name_of(kind)
    if (
        held.get("noise_range_t") is not None or held.get("cycle_limit", 1) != 1
    ):  # attributes of timm's schedulers
        return UNKNOWN
    if kind is lr_scheduler.LinearLR and held["end_factor"] >= held["start_factor"]:
        return Outlook("constant")  # a warm-up, after which the rate stays the same
    if name not in SMOOTH or held.get("end_factor", 0.0) > MIN_RATE * held.get("start_factor", 1.0):
        return Outlook(name)
    told = [held[key] for key in ("total_iters", "T_max", "total_steps", "t_initial") if key in held]
    before = held["warmup_t"] if "warmup_t" in held and held.get("warmup_prefix", True) else 0
    return Outlook(name, before + told[0] if told else None)


def _outlook_of_function(function: Any) -> Outlook:
    made_with: dict[str, Any] = {}
    if type(function) is functools.partial:
        function, made_with = function.func, function.keywords
    name = _name_of(function) if type(function) is FunctionType else UNKNOWN.name
    if name == "unknown" or (
        name == "cosine" and made_with.get("num_cycles") != 0.5
    ):  # another cosine would rise again
        return UNKNOWN
    if name == "wsd":
        return Outlook(name, sum(made_with[f"num_{phase}_steps"] for phase in ("warmup", "stable", "decay")))
    return Outlook(name, made_with.get("num_training_steps"))


def _name_of(defined: type | FunctionType) -> str:
    return _NAMES.get(defined.__name__, "unknown") if defined.__module__.startswith(_LIBRARIES) else "unknown"


def step_epochs(scheduler: Any, *, ticks_per_epoch: float, epochs: int) -> tuple[int, ...]:
    """The epochs in which a scheduler, whose name is known, makes a step that is not too small to matter.

    Args:
        scheduler: the scheduler, which is left as it is.
        ticks_per_epoch: how often the scheduler is stepped in an epoch.
        epochs: the number of epochs to look ahead.
    """
    asked = _copied(scheduler)
    looks = min(LOOKS, math.ceil(ticks_per_epoch))
    ticks = [math.ceil(look * ticks_per_epoch / looks - 1e-9) for look in range(epochs * looks + 1)]
    rates = [_rate_at(asked, tick) for tick in ticks]
    least = MIN_RATE * max(map(abs, rates)) * (1 + 1e-6)

    def jumps(low: float, high: float, before: float, after: float) -> Iterator[int]:
        if not is_step(before, after) or max(before, after) <= least:
            return
        if high - low <= _JUMP:
            yield math.floor(
                math.ceil(low) / ticks_per_epoch + 1e-9
            )  # a jump within an epoch counts for that epoch
            return
        middle = (low + high) / 2
        between = _rate_at(asked, middle)
        yield from jumps(low, middle, before, between)
        yield from jumps(middle, high, between, after)

    found: set[int] = set()
    for interval in zip(ticks, ticks[1:], rates, rates[1:], strict=False):
        found.update(jumps(*interval))
        if len(found) > MOST_STEPS:
            break
    return tuple(sorted(epoch for epoch in found if 0 < epoch < epochs)[:MOST_STEPS])


def _copied(scheduler: Any, stand_in: Any = None) -> Any:
    """A copy of the scheduler that may be asked for rates: plain numbers stand in for its optimizer's."""
    if stand_in is None:
        held = vars(scheduler.optimizer)
        while "param_groups" not in held:  # the optimizer is wrapped, by Accelerate, say
            held = vars(held["optimizer"])
        groups = [
            {key: _number(group[key]) for key in group if key != "params"} for group in held["param_groups"]
        ]
        stand_in = SimpleNamespace(param_groups=groups)
    copied = copy.copy(scheduler)
    copied.optimizer = stand_in
    if parts := parts_of(scheduler):
        vars(copied)[PARTS] = [_copied(part, stand_in) for part in parts]
    if "base_lrs" in vars(copied):
        copied.base_lrs = [_number(rate) for rate in copied.base_lrs]
    return copied


def _number(value: Any) -> Any:
    """The value as a number; 1 for a rate on a device, for which training would have to wait: steps are relative."""
    if not isinstance(value, Tensor):
        return value
    return float(value) if value.device.type == "cpu" and value.numel() == 1 else 1.0


def _rate_at(copied: Any, tick: float) -> float:
    """The first parameter group's rate after the scheduler was stepped `tick` times, which may be a fraction."""
    kind, group = type(copied), copied.optimizer.param_groups[0]
    if kind is lr_scheduler.SequentialLR:
        starts = starts_of(copied)
        at = bisect_right(starts, tick) - 1
        return _rate_at(parts_of(copied)[at], tick - starts[at])
    if kind is lr_scheduler.ChainedScheduler:
        first = group["initial_lr"]
        return first * math.prod(_rate_at(part, tick) / first for part in parts_of(copied))
    if kind is lr_scheduler.LambdaLR:
        return float(copied.base_lrs[0] * copied.lr_lambdas[0](tick))
    if kind is lr_scheduler.CosineAnnealingWarmRestarts or not issubclass(kind, lr_scheduler.LRScheduler):
        (copied.step if getattr(copied, "t_in_epochs", True) else copied.step_update)(tick)
        return float(group["lr"])
    copied.last_epoch = min(tick, copied.total_steps) if kind is lr_scheduler.OneCycleLR else tick
    return float(rate_now(copied))
