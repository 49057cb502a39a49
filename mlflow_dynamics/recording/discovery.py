"""Which model an optimizer trains."""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from torch import nn
from torch.optim import Optimizer

from mlflow_dynamics.recording.hooks import ForwardPass
from mlflow_dynamics.recording.instances import instances_of
from mlflow_dynamics.recording.layers import unwrap
from mlflow_dynamics.recording.recorder import Recorder
from mlflow_dynamics.recording.torch_private import pre_hooks

logger = logging.getLogger(__name__)

SEARCH_S: Final = 10.0
SEARCH_SHARE: Final = 0.02
"""The search for models may take so many seconds of processor time, and in addition this share of the time passed."""


class SearchTime:
    """The time spent in searches for models, each within `with`; too long if every step makes an optimizer, say."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._spent = 0.0
        self._entered = 0.0
        self._told = False

    def allowed(self) -> bool:
        """Whether there is time for another search; if not, one log line says so."""
        if self._spent <= SEARCH_S + SEARCH_SHARE * (time.monotonic() - self._began):
            return True
        if not self._told:
            self._told = True
            logger.warning(
                "The script makes optimizers for new models all the time, and looking for their models takes too long: "
                "models made from here on may go unrecorded; use mlflow_dynamics.track(model) for those that matter."
            )
        return False

    def __enter__(self) -> None:
        # Processor time, not clock time: on a machine with other work a few searches would look like too many.
        self._entered = time.thread_time()

    def __exit__(self, *error: Any) -> None:
        self._spent += time.thread_time() - self._entered


def models_of(optimizer: Optimizer) -> list[nn.Module]:
    """The outermost living modules that own parameters of `optimizer`, the one that owns most of them first.

    Each module owns some parameters that the modules before it do not. A wrapper (torch.compile, DataParallel,
    DistributedDataParallel) counts as the module inside. The modules are found among all live objects, and not by a
    hook on every module's forward pass, which compiled code would contain.
    """
    models: list[nn.Module] = []
    wanted = _parameters_of(optimizer)
    for model in _outermost(wanted):
        owned = _owned(model, wanted)
        if owned:
            models.append(model)
            wanted -= owned
    return models


def in_place_of(model: nn.Module, optimizer: Optimizer, *, parts_alone: bool) -> tuple[str, nn.Module] | None:
    """A module that may be trained in place of `model`, which is never called, and words for it; None if there is none.

    The module owns the same of the optimizer's parameters as `model`. It is another outermost module (unless
    `parts_alone`) or a part of `model`.
    """
    wanted = _parameters_of(optimizer)
    needed = _owned(model, wanted)
    for other in [] if parts_alone else _outermost(wanted):
        if other is not model and _owned(other, wanted) == needed and _can_be_called(other):
            return f"a {type(other).__name__} with the same parameters", other
    for name, part in model.named_children():
        if _owned(part, wanted) == needed and _can_be_called(part):
            return f"its part {name}, a {type(part).__name__},", part
    return None


def _can_be_called(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward


def _parameters_of(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _outermost(wanted: set[int]) -> list[nn.Module]:
    modules: list[nn.Module] = instances_of(nn.Module)
    parents: dict[int, list[nn.Module]] = {}
    for module in modules:
        for child in module.__dict__.get("_modules", {}).values():
            parents.setdefault(id(child), []).append(module)
    owners = {
        id(module): module
        for module in modules
        if any(id(parameter) in wanted for parameter in module.__dict__.get("_parameters", {}).values())
    }
    frontier = list(owners.values())
    outermost: dict[int, nn.Module] = {}
    seen: set[int] = set()
    while frontier:
        module = frontier.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        above = parents.get(id(module), [])
        frontier.extend(above)
        if not above:
            inner = unwrap(module)
            outermost[id(inner)] = inner
    return sorted(outermost.values(), key=lambda module: -len(_owned(module, wanted)))


def _owned(module: nn.Module, wanted: set[int]) -> set[int]:
    return wanted & {id(parameter) for parameter in module.parameters()}


def is_recorded(model: nn.Module, *, besides: Recorder | None = None) -> bool:
    """Whether some other recorder is attached to the model."""
    hooks = [hook for hook in pre_hooks(model) if isinstance(hook, ForwardPass)]
    return any(besides is None or not besides.attached_by(hook) for hook in hooks)
