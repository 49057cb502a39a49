"""The script's own criterion calls on what its models return, and which of them backward is called on.

A call counts only if the criterion's input is the very tensor that the model returned, or that in another shape.
Backward is on a call if it is on its value, or on that times or divided by numbers (gradient accumulation,
GradScaler): where a script adds other terms, its training loss is something else. What the calls come to is in
`losses`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import has_torch_function

from mlflow_dynamics.recording.boundary import Boundary
from mlflow_dynamics.recording.patching import Patch, places_of

CLASSIFICATION: Final = ("cross_entropy", "nll_loss")
ELEMENTWISE: Final = ("binary_cross_entropy", "binary_cross_entropy_with_logits", "mse_loss")
"""Criteria whose mean is over all elements, where that of the others is over samples."""
CRITERIA: Final = CLASSIFICATION + ELEMENTWISE
SCALINGS: Final = (
    "MulBackward0",
    "DivBackward0",
    "ToCopyBackward0",
    "AliasBackward0",
    "MeanBackward0",
    "SumBackward0",
)
"""Autograd nodes through which a criterion's value, which has no dimension, is only multiplied by a number."""

_OTHERWISE: Final = ("weight", "pos_weight", "size_average", "reduce")
"""Arguments with which the value is another mean."""

_IGNORED: Final = -100
"""A class that torch's criteria leave out of their mean."""

_MARK: Final = "mlflow_dynamics.criterion"


@dataclass(frozen=True, eq=False)
class Call:
    """One criterion call on a model's output; it keeps no tensor of the training alive.

    Attributes:
        owner: whose output it is.
        criterion: the function's name, and its reduction where that changes the mean over samples.
        total: the criterion's mean over samples, times their number.
        samples: how many.
        ignored: how many of them the criterion left out; None where it cannot.
        correct: how many of them were right; None where that is not asked.
    """

    owner: object
    criterion: str
    total: Tensor
    samples: int
    ignored: Tensor | None
    correct: Tensor | None
    _output: weakref.ref[Tensor]
    _target: weakref.ref[Tensor]
    _part: tuple[weakref.ref[Tensor], int] | None

    def on_output_of(self, other: Call) -> bool:
        """Whether both are on one output."""
        output = self._output()
        return output is not None and output is other._output()

    def on_target_of(self, other: Call) -> bool:
        """Whether both are against one target."""
        target = self._target()
        return target is not None and target is other._target()

    def beside(self, other: Call) -> bool:
        """Whether the targets are two parts of one tensor: a batch that is taken in pieces."""
        if self._part is None or other._part is None or self._part[1] == other._part[1]:
            return False
        whole = self._part[0]()
        return whole is not None and whole is other._part[0]()


class Listener(Protocol):
    """Who wants to know of criterion calls."""

    def origin_of(self, values: Tensor) -> tuple[object, Tensor] | None:
        """Whose model returned these values last, and as which tensor."""

    def evaluated(self, call: Call) -> None:
        """A criterion was evaluated without gradients."""

    def differentiated(self, call: Call | None) -> None:
        """Backward was called on a multiple of this call's value, or on something else."""


class CriterionWatch:
    """Watches torch's criteria and `backward`."""

    def __init__(self, listener: Listener, boundary: Boundary) -> None:
        self._listener = listener
        self._boundary = boundary
        criteria = {vars(functional)[name]: name for name in CRITERIA}
        self._patches = [
            *(
                Patch(module, place, self._around_criterion(criteria[function]))
                for module, place, function in places_of(*criteria)
            ),
            Patch(torch.autograd, "backward", self._around_backward),
        ]

    def remove(self) -> None:
        """Give torch its own functions back."""
        for patch in self._patches:
            patch.remove()

    def _around_criterion(self, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def around(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                value = original(*args, **kwargs)
                # Where a subclass of Tensor or a default device takes the call, it comes back as another one.
                if not (torch.compiler.is_compiling() or has_torch_function((*args, *kwargs.values()))):
                    self._boundary.run(self._called, name, value, args, kwargs)
                return value

            return call

        return around

    def _around_backward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            if not torch.compiler.is_compiling():
                self._boundary.run(self._backward, tensors)
            return original(tensors, *args, **kwargs)

        return call

    def _called(self, name: str, value: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        output, target = (*args, None, None)[:2] if len(args) > 1 else (args[0] if args else None, None)
        output, target = kwargs.get("input", output), kwargs.get("target", target)
        reduction = kwargs.get("reduction", "mean")
        plain = len(args) <= 2 and not any(kwargs.get(key) is not None for key in _OTHERWISE)
        plain = plain and kwargs.get("ignore_index", _IGNORED) == _IGNORED and reduction in ("mean", "sum")
        if not plain or value.dim() != 0 or not isinstance(output, Tensor) or not isinstance(target, Tensor):
            return
        # Dense predictions are left out: their mean may be over fewer pixels than there are.
        of_samples = target.dim() == 1 or target.shape == output.shape
        origin = self._listener.origin_of(output)
        if origin is None or not of_samples or output.dim() == 0 or len(output) == 0:
            return
        owner, returned = origin
        correct = None
        criterion = name
        if reduction == "sum" and name in ELEMENTWISE and output.numel() != len(output):
            criterion = f"{name}(reduction='sum')"
        with torch.no_grad():
            classes = name in CLASSIFICATION and target.dim() == 1
            ignored = (target == _IGNORED).sum() if classes else None
            counted = len(output) if ignored is None else len(output) - ignored
            total = value.detach().float() * (1 if reduction == "sum" else counted)
            if not value.requires_grad and classes and output.dim() == 2:
                correct = (output.argmax(1) == target).sum()
        whole = target._base
        part = None if whole is None else (weakref.ref(whole), int(target.storage_offset()))
        call = Call(
            *(owner, criterion, total, len(output), ignored, correct),
            *(weakref.ref(returned), weakref.ref(target), part),
        )
        if value.grad_fn is not None:
            _notes(value.grad_fn)[_MARK] = call  # lives as long as the graph, and holds none of it
        elif not torch.is_grad_enabled():
            self._listener.evaluated(call)

    def _backward(self, tensors: Any) -> None:
        roots = [tensors] if isinstance(tensors, Tensor) else tensors
        # Of several only their sum would be the training loss; an iterator must be left to torch.
        node = roots[0].grad_fn if isinstance(roots, Sequence) and len(roots) == 1 else None
        while node is not None and _MARK not in _notes(node):
            inputs = [entry for entry, _ in node.next_functions if entry is not None]
            node = inputs[0] if node.name() in SCALINGS and len(inputs) == 1 else None
        self._listener.differentiated(None if node is None else _notes(node)[_MARK])


def _notes(node: Any) -> dict[str, Call]:
    """What can be noted on a node of the autograd graph."""
    notes: dict[str, Call] = node.metadata
    return notes
