"""Which modules of a model are recorded."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final

import torch
from torch import nn

from mlflow_dynamics.config import RecordingConfig
from mlflow_dynamics.errors import ConfigError, RecordingError
from mlflow_dynamics.recording.torch_private import ConvNd, compiled_original, sharding_kinds
from mlflow_dynamics.records import Layer

logger = logging.getLogger(__name__)

WEIGHT_LAYERS: Final = (
    ConvNd,
    nn.Linear,
    nn.Bilinear,
    nn.MultiheadAttention,
    nn.RNNBase,
)


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own model inside torch.compile's, DataParallel's or DistributedDataParallel's wrapper."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
            continue
        original = compiled_original(model)
        if original is None:
            return model
        model = original


def type_name(module: nn.Module) -> str:
    """The name of the module's class as the user wrote it: fully_shard puts a class of its own before that one."""
    kinds = list(type(module).__mro__)
    return str(next(kind.__name__ for kind in kinds if not issubclass(kind, sharding_kinds())))


def choose_layers(model: nn.Module, config: RecordingConfig) -> list[tuple[str, nn.Module]]:
    """The modules to record as (name, module), in the order in which the model registers them.

    Without `include` these are the weight layers: convolutions, linear layers, attention and recurrent modules, and
    every other leaf module that has a weight of two or more dimensions itself and is no norm and no embedding. A shared
    module appears once. If there are more than `max_layers`, they are thinned evenly; the first and the last stay.

    Raises:
        ConfigError: a pattern matches nothing, or nothing is left.
        RecordingError: the model has no weight layer at all, or is TorchScript, which takes no hooks.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise RecordingError(
            "The model is TorchScript, which takes no hooks: record it as a plain module, before torch.jit.script or "
            "torch.jit.trace, or compile it with torch.compile instead."
        )
    modules = [(_clean(name), module) for name, module in model.named_modules() if name]
    modules = [
        (name, module) for name, module in modules if name and "parametrizations" not in name.split(".")
    ]
    # A bare nn.Linear, or a kind of it, may be the whole model.
    if not modules or isinstance(model, WEIGHT_LAYERS):
        modules = [(type_name(model), model), *modules]
    for pattern in (*config.include, *config.exclude):
        if not any(_matches(name, module, (pattern,)) for name, module in modules):
            raise ConfigError(
                f"The layer pattern {pattern!r} matches no module name or type of {type(model).__name__}; "
                f"its modules are for example {', '.join(name for name, _ in modules[:3])}."
            )
    if config.include:
        chosen = [(name, module) for name, module in modules if _matches(name, module, config.include)]
    else:
        inner = _inner_projections(model)
        chosen = [
            (name, module) for name, module in modules if _is_weight_layer(module) and id(module) not in inner
        ]
        if not chosen:
            raise RecordingError(
                f"{type(model).__name__} has no convolution, linear, attention or recurrent layer to record; "
                f"name the modules to record with include=(...)."
            )
    chosen = [(name, module) for name, module in chosen if not _matches(name, module, config.exclude)]
    if not chosen:
        raise ConfigError(
            f"exclude={config.exclude!r} leaves no layer of {type(model).__name__} to record; exclude fewer."
        )
    return _thin(chosen, config.max_layers)


def _clean(name: str) -> str:
    """The name without the parts that torch.compile adds, so that a layer has the same name compiled or not."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _matches(name: str, module: nn.Module, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) or fnmatchcase(type_name(module), pattern) for pattern in patterns)


def _is_weight_layer(module: nn.Module) -> bool:
    if isinstance(module, WEIGHT_LAYERS):
        return True
    if any(name != "parametrizations" for name, _ in module.named_children()):
        return False
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) or "Norm" in type(module).__name__:
        return False
    return any(parameter.dim() >= 2 for parameter in module.parameters(recurse=False))


def _inner_projections(model: nn.Module) -> set[int]:
    """Modules inside nn.MultiheadAttention, which uses their weights without ever calling them."""
    return {
        id(child)
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention)
        for child in module.modules()
        if child is not module
    }


def _thin(chosen: list[tuple[str, nn.Module]], most: int) -> list[tuple[str, nn.Module]]:
    count = len(chosen)
    if count <= most:
        return chosen
    logger.info("Recording %d of %d layers, evenly spaced (max_layers=%d).", most, count, most)
    if most == 1:
        return [chosen[count // 2]]
    return [chosen[round(k * (count - 1) / (most - 1))] for k in range(most)]


def other_layer(chosen: Iterable[Layer], recorded: Iterable[Layer]) -> str | None:
    """A layer by which two models differ, and how, in words; None if the models have the same layers."""
    here, there = ({layer.name: layer for layer in layers} for layers in (chosen, recorded))
    for name in sorted(here.keys() | there.keys()):
        mine, other = here.get(name), there.get(name)
        if mine is None or other is None:
            return f"{name!r} ({'not in this model' if mine is None else 'not in the run'})"
        # A lazy layer has neither its final type nor its parameters before the first forward pass.
        unlike = mine.parameters > 0 and mine.parameters != other.parameters
        if unlike or mine.type.removeprefix("Lazy") != other.type:
            return f"{name!r} ({_kind_of(mine)} in this model, {_kind_of(other)} in the run)"
    return None


def _kind_of(layer: Layer) -> str:
    return f"{layer.type} with {layer.parameters:,} parameters"
