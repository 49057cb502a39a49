"""Which model an optimizer trains."""

from __future__ import annotations

import gc

from torch import nn
from torch.optim import Optimizer

from mlflow_dynamics.recording.hooks import ForwardPass
from mlflow_dynamics.recording.layers import unwrap
from mlflow_dynamics.recording.recorder import Recorder


def optimizers_alive() -> list[Optimizer]:
    """The optimizers that exist already."""
    return [thing for thing in gc.get_objects() if issubclass(type(thing), Optimizer)]


def models_of(optimizer: Optimizer) -> list[nn.Module]:
    """The outermost modules alive that own parameters of `optimizer`, the one that owns most of them first.

    A wrapper (torch.compile, DataParallel, DistributedDataParallel) counts as what it wraps. Found among the
    live objects rather than by a hook on every module's forward pass, which compiled code would contain.
    """
    wanted = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    modules = [thing for thing in gc.get_objects() if issubclass(type(thing), nn.Module)]
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
    return sorted(outermost.values(), key=lambda module: -_owned(module, wanted))


def _owned(module: nn.Module, wanted: set[int]) -> int:
    return sum(id(parameter) in wanted for parameter in module.parameters())


def is_recorded(model: nn.Module, *, besides: Recorder | None = None) -> bool:
    """Whether some other recorder is attached to the model."""
    hooks = [hook for hook in model._forward_pre_hooks.values() if isinstance(hook, ForwardPass)]
    return any(besides is None or not besides.attached_by(hook) for hook in hooks)
