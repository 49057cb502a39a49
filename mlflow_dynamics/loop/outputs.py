"""The latest outputs of a model, by which a criterion's input is recognised as the model's output."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from mlflow_dynamics.recording.boundary import Boundary
from mlflow_dynamics.recording.hooks import Traceless, never_compile_alone
from mlflow_dynamics.recording.torch_private import not_computing

_OUTPUTS: Final = 8
"""The number of outputs that are remembered of a model, which may be called on several views of a batch, say."""


class _Output(NamedTuple):
    """What a model returned.

    Attributes:
        tensor: a reference to the output's first tensor that is not a single number.
        alone: the model returned nothing but this tensor.
        evaluating: the model was in evaluation mode.
    """

    tensor: weakref.ref[Tensor]
    alone: bool
    evaluating: bool


class LastOutputs(Traceless):
    """A forward hook that remembers the latest outputs of the model.

    The hook is also attached to the model's parts that hold all of the weights, because a script may call such a part.

    Attributes:
        outputs: the latest outputs, the last one first.
        evaluated: the model was called in evaluation mode since this was last set to False.

    Args:
        modules: the model and those parts.
        on_value: called with each single number that the model returned, and whether the model was in evaluation mode.
        boundary: keeps the hook's failures out of the training.
    """

    def __init__(
        self, modules: list[nn.Module], on_value: Callable[[Tensor, bool], None], boundary: Boundary
    ) -> None:
        self.boundary = boundary
        self.outputs: deque[_Output] = deque(maxlen=_OUTPUTS * len(modules))
        self.evaluated = False
        self._on_value = on_value
        self.handles = [module.register_forward_hook(self) for module in modules]

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            self.boundary.run(self._remember, module, output)

    def _remember(self, module: nn.Module, output: Any) -> None:
        evaluating = not module.training
        self.evaluated |= evaluating
        tensors = tensors_of(output)
        for value in tensors:
            if value.dim() == 0:
                self._on_value(value, evaluating)
        found = next((tensor for tensor in tensors if tensor.dim() > 0), None)
        if found is not None:
            self.outputs.appendleft(_Output(weakref.ref(found), found is output, evaluating))


def tensors_of(output: Any) -> list[Tensor]:
    """All tensors that a module returned, in tuples, lists or mappings."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = tuple(output.values())
    items = output if isinstance(output, tuple | list) else ()
    return [tensor for item in items for tensor in tensors_of(item)]


never_compile_alone(LastOutputs, tensors_of)


def holders(model: nn.Module) -> list[nn.Module]:
    """The model, and each part that holds all of the model's trained weights, such as a module that the model wraps."""
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    found = [model]
    for part in model.children():
        if trained and trained <= {id(parameter) for parameter in part.parameters()}:
            found += [one for one in holders(part) if one not in found]
    return found


def reshapes(values: Tensor, output: Tensor) -> bool:
    """Whether the values are all of the output's elements, in the same memory and order and for the same samples."""
    if values.shape[:1] != output.shape[:1] or values.numel() != output.numel():
        return False
    if values.dtype != output.dtype or values.is_sparse or not_computing(values) or not_computing(output):
        return False
    return values.is_contiguous() and output.is_contiguous() and values.data_ptr() == output.data_ptr()
