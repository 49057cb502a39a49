"""The script's own criterion calls on what its models return, and which of them backward is called on.

A call counts only if the criterion's input is the very tensor that the model returned, or that in another shape.
Backward is on a call if it is on its value, or on that times or divided by numbers (gradient accumulation,
GradScaler): where a script adds other terms, its training loss is something else. What the calls come to is in
`losses`.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional
from torch.overrides import has_torch_function

from mlflow_dynamics.recording.boundary import Boundary
from mlflow_dynamics.recording.patching import Patch, places_of

CLASSIFICATION: Final = ("cross_entropy", "nll_loss")
ELEMENTWISE: Final = (
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
)
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

_DIVISION: Final = "DivBackward0"
_BY_NUMBERS: Final = ("MulBackward0", _DIVISION)

_OTHERWISE: Final = ("size_average", "reduce")
"""Arguments with which the value is another mean, in a way that torch has given up."""

_WEIGHTS: Final = ("weight", "pos_weight")

_IGNORED: Final = -100
"""The class that torch's criteria leave out of their mean if no other is named."""

_MARK: Final = "mlflow_dynamics.criterion"
_SCALED: Final = "mlflow_dynamics.scaled"


class Origin(NamedTuple):
    """Where values come from.

    Attributes:
        owner: whose model returned them.
        returned: as which tensor.
        alone: it was all that the model returned.
        evaluating: the model was in evaluation mode.
    """

    owner: object
    returned: Tensor
    alone: bool
    evaluating: bool


@dataclass(frozen=True, eq=False)
class Call:
    """One criterion call on a model's output; it keeps no tensor of the training alive.

    Attributes:
        owner: whose output it is.
        criterion: the function's name, with its weights, and its reduction where that changes the mean over samples.
        total: the criterion's mean over samples, times their number.
        samples: how many.
        ignored: how many of them, or how much in parts, the criterion left out; None where it cannot.
        correct: how many of them were right; None where that is not asked.
        summed: the value is a sum, of several values a sample.
        alone: the output was all that the model returned.
        evaluating: the model was in evaluation mode.
    """

    owner: object
    criterion: str
    total: Tensor
    samples: int
    ignored: Tensor | None
    correct: Tensor | None
    summed: bool
    alone: bool
    evaluating: bool
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

    def origin_of(self, values: Tensor) -> Origin | None:
        """The model that returned these values lately; None if none is known to have."""

    def evaluated(self, call: Call | None) -> None:
        """A criterion was evaluated on a model's output, or (None) on other values, without gradients."""

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
            Patch(GradScaler, "scale", _around_scale),
        ]

    def remove(self) -> None:
        """Give torch its own functions back."""
        for patch in self._patches:
            patch.remove()

    def _around_criterion(self, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def around(original: Callable[..., Any]) -> Callable[..., Any]:
            parameters = tuple(inspect.signature(original).parameters)

            def call(*args: Any, **kwargs: Any) -> Any:
                value = original(*args, **kwargs)
                # Where a subclass of Tensor or a default device takes the call, it comes back as another one.
                if not (torch.compiler.is_compiling() or has_torch_function((*args, *kwargs.values()))):
                    given = dict(zip(parameters, args, strict=False)) | kwargs
                    self._boundary.run(self._called, name, value, given)
                return value

            return call

        return around

    def _around_backward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            if not torch.compiler.is_compiling():
                self._boundary.run(self._backward, tensors)
            return original(tensors, *args, **kwargs)

        return call

    def _called(self, name: str, value: Tensor, given: dict[str, Any]) -> None:
        output, target = given.get("input"), given.get("target")
        reduction = given.get("reduction", "mean")
        plain = reduction in ("mean", "sum") and not any(given.get(key) is not None for key in _OTHERWISE)
        if not plain or value.dim() != 0 or not isinstance(output, Tensor) or not isinstance(target, Tensor):
            return
        # One class for each sample, or for each of its pixels.
        classes = name in CLASSIFICATION and target.shape == output.shape[:1] + output.shape[2:]
        of_samples = classes or target.dim() == 1 or target.shape == output.shape
        origin = self._listener.origin_of(output)
        if origin is None:
            if not torch.is_grad_enabled():
                self._listener.evaluated(None)
            return
        if not of_samples or output.dim() == 0 or len(output) == 0:
            return
        several = output.dim() > 2 if name in CLASSIFICATION else output.numel() != len(output)
        summed = reduction == "sum" and several
        arguments = [key for key in _WEIGHTS if given.get(key) is not None]
        if summed:
            arguments.append("reduction='sum'")
        criterion = f"{name}({', '.join(arguments)})" if arguments else name
        correct = ignored = None
        total = value.detach().float()
        with torch.no_grad():
            if classes and not summed:
                left_out = target == given.get("ignore_index", _IGNORED)
                ignored = left_out.sum() / (target.numel() // len(target))
                if reduction == "mean":  # of nothing it is no number
                    total = torch.where(ignored == len(output), 0, total * (len(output) - ignored))
                if (origin.evaluating or not value.requires_grad) and output.dim() == 2:
                    correct = ((output.argmax(1) == target) & ~left_out).sum()
            elif reduction == "mean":
                total = total * len(output)
        whole = target._base
        part = None
        if whole is not None and whole.shape[1:] == target.shape[1:] and whole.stride() == target.stride():
            part = weakref.ref(whole), int(target.storage_offset())  # some of its rows
        call = Call(
            *(origin.owner, criterion, total, len(output), ignored, correct),
            *(summed, origin.alone, origin.evaluating),
            *(weakref.ref(origin.returned), weakref.ref(target), part),
        )
        if value.grad_fn is not None:
            _notes(value.grad_fn)[_MARK] = call  # lives as long as the graph, and holds none of it
        if origin.evaluating or not torch.is_grad_enabled():
            self._listener.evaluated(call)

    def _backward(self, tensors: Any) -> None:
        self._listener.differentiated(_call_of(tensors))


def _call_of(tensors: Any) -> Call | None:
    """The call on whose value, or a multiple of it, gradients are asked for."""
    roots = [tensors] if isinstance(tensors, Tensor) else tensors
    # Of several only their sum would be the training loss; an iterator must be left to torch.
    node = roots[0].grad_fn if isinstance(roots, Sequence) and len(roots) == 1 else None
    divisor = 1.0
    while node is not None and _MARK not in _notes(node):
        inputs = [entry for entry, _ in node.next_functions if entry is not None]
        if node.name() not in SCALINGS or len(inputs) != 1:
            return None
        if node.name() in _BY_NUMBERS and _SCALED not in _notes(node):
            number = _number_of(node)
            if number is None:
                return None
            divisor *= number if node.name() == _DIVISION else 1
        node = inputs[0]
    if node is None:
        return None
    call: Call = _notes(node)[_MARK]
    # Such a sum may be divided by the samples, but not by the pixels, say: then it is a mean.
    return None if call.summed and divisor not in (1, call.samples) else call


def _number_of(node: Any) -> float | None:
    """The Python number by which this multiplies or divides; None for a tensor, which may depend on the batch.

    Autograd keeps a number as a tensor of the widest type in host memory.
    """
    if node.next_functions[0][0] is None:
        return None  # something divided by the loss: torch puts a number second in a product
    try:
        factor = node._saved_other
    except RuntimeError:  # the graph was freed, which torch is about to say
        return None
    if factor is None:
        return None
    is_number = (
        factor.dim() == 0 and factor.dtype in (torch.float64, torch.int64) and factor.device.type == "cpu"
    )
    return factor.item() if is_number else None


def _around_scale(original: Callable[..., Any]) -> Callable[..., Any]:
    """Note on what a gradient scaler scales that it did."""

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        scaled = original(*args, **kwargs)
        if not torch.compiler.is_compiling() and isinstance(scaled, Tensor) and scaled.grad_fn is not None:
            _notes(scaled.grad_fn)[_SCALED] = True
        return scaled

    return call


def _notes(node: Any) -> dict[str, Any]:
    """What can be noted on a node of the autograd graph."""
    notes: dict[str, Any] = node.metadata
    return notes
