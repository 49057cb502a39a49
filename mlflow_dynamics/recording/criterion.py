"""The script's own criterion calls on its models' outputs, and which of these calls backward is called on.

A call counts only if the criterion's input is the very tensor that the model returned, perhaps in another shape, or if
the model called the criterion itself and returned the value. Backward is on a call if it is on the call's value, or on
that value multiplied or divided by numbers (gradient accumulation, GradScaler). If a script adds other terms, its
training loss is something else. `losses` says what follows from the calls.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional
from torch.overrides import has_torch_function

from mlflow_dynamics.recording.boundary import Boundary
from mlflow_dynamics.recording.patching import Patch, places_of
from mlflow_dynamics.recording.torch_private import base_of, factor_of

CLASSIFICATION: Final = ("cross_entropy", "nll_loss")
ELEMENTWISE: Final = (
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
)
"""Criteria whose mean is over all elements; the mean of the other criteria is over samples."""
CRITERIA: Final = CLASSIFICATION + ELEMENTWISE
SCALINGS: Final = (
    "MulBackward0",
    "DivBackward0",
    "ToCopyBackward0",
    "AliasBackward0",
    "MeanBackward0",
    "SumBackward0",
)
"""Autograd nodes that only multiply a criterion's value by a number, because the value has no dimension."""

_DIVISION: Final = "DivBackward0"
_BY_NUMBERS: Final = ("MulBackward0", _DIVISION)

_DEPRECATED: Final = ("size_average", "reduce")
"""Arguments that torch has deprecated, with which the value is another mean."""

_WEIGHTS: Final = ("weight", "pos_weight")

_IGNORED: Final = -100
"""The class that torch's criteria leave out of their mean if no other class is named."""

_MARK: Final = "mlflow_dynamics.criterion"
_SCALED: Final = "mlflow_dynamics.scaled"


class Origin(NamedTuple):
    """Where values come from.

    Attributes:
        owner: the training whose model returned the values; None if no model is known to have returned them.
        returned: the tensor that the model returned.
        alone: the tensor was all that the model returned.
        evaluating: the model was in evaluation mode.
    """

    owner: object | None
    returned: Tensor
    alone: bool
    evaluating: bool


@dataclass(frozen=True, eq=False)
class Call:
    """One criterion call; it keeps no tensor of the training alive.

    Attributes:
        owner: the training whose model returned the criterion's input or its value; None while that is not known.
        criterion: the function's name, with the weights given, and the reduction if it changes the mean over samples.
        total: the criterion's mean over samples, times the number of samples.
        samples: the number of samples.
        ignored: the number of samples, with fractions of samples, that the criterion left out; None if it cannot leave
            out any.
        correct: the number of samples predicted rightly; None if that is not asked.
        summed: the value is a sum over several values for each sample.
        alone: the criterion's input was all that the model returned.
        evaluating: the model was in evaluation mode.
    """

    owner: object | None
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
        """Whether both calls are on one output."""
        output = self._output()
        return output is not None and output is other._output()

    def on_target_of(self, other: Call) -> bool:
        """Whether both calls are against one target."""
        target = self._target()
        return target is not None and target is other._target()

    def beside(self, other: Call) -> bool:
        """Whether the calls' targets are two parts of one tensor: a batch that is taken in pieces."""
        if self._part is None or other._part is None or self._part[1] == other._part[1]:
            return False
        whole = self._part[0]()
        return whole is not None and whole is other._part[0]()


class Listener(Protocol):
    """An object that hears of criterion calls."""

    def origin_of(self, values: Tensor) -> Origin | None:
        """Where these values come from; None if criterion calls are not to be heard of at all."""

    def evaluated(self, call: Call) -> None:
        """A criterion was evaluated on a model's output, in evaluation mode or without gradients."""

    def unowned(self, call: Call, value: Tensor) -> None:
        """A criterion had this value on an input that no known model returned."""

    def differentiated(self, call: Call | None) -> None:
        """Backward was called on a multiple of this call's value, or (None) on something else."""


class CriterionWatch:
    """Watches torch's criteria and `backward`."""

    def __init__(self, listener: Listener, boundary: Boundary) -> None:
        self._listener = listener
        self._boundary = boundary
        criteria = {vars(functional)[name]: name for name in CRITERIA}
        self._patches = [
            *(
                Patch(module, place, after=self._after_criterion(criteria[function], function))
                for module, place, function in places_of(*criteria)
            ),
            Patch(torch.autograd, "backward", before=self._before_backward),
            Patch(GradScaler, "scale", after=_after_scale),
        ]

    def remove(self) -> None:
        """Give torch its own functions back."""
        for patch in self._patches:
            patch.remove()

    def _after_criterion(self, name: str, criterion: Callable[..., Any]) -> Callable[..., None]:
        parameters = tuple(inspect.signature(criterion).parameters)

        def after(value: Any, *args: Any, **kwargs: Any) -> None:
            # A call that a subclass of Tensor or a default device overrides comes back as a second call, which counts.
            if not (torch.compiler.is_compiling() or has_torch_function((*args, *kwargs.values()))):
                given = dict(zip(parameters, args, strict=False)) | kwargs
                self._boundary.run(self._called, name, value, given)

        return after

    def _before_backward(self, tensors: Any, *_: Any, **__: Any) -> None:
        if not torch.compiler.is_compiling():
            self._boundary.run(self._backward, tensors)

    def _called(self, name: str, value: Tensor, given: dict[str, Any]) -> None:
        output, target = given.get("input"), given.get("target")
        reduction = given.get("reduction", "mean")
        plain = reduction in ("mean", "sum") and not any(given.get(key) is not None for key in _DEPRECATED)
        if not plain or value.dim() != 0 or not isinstance(output, Tensor) or not isinstance(target, Tensor):
            return
        # One class for each sample, or for each of its pixels.
        classes = name in CLASSIFICATION and target.shape == output.shape[:1] + output.shape[2:]
        of_samples = classes or target.dim() == 1 or target.shape == output.shape
        origin = self._listener.origin_of(output)
        if origin is None or not of_samples or output.dim() == 0 or len(output) == 0:
            return
        several = output.dim() > 2 if name in CLASSIFICATION else output.numel() != len(output)
        summed = reduction == "sum" and several
        arguments = [key for key in _WEIGHTS if given.get(key) is not None]
        if summed:
            arguments.append("reduction='sum'")
        criterion = f"{name}({', '.join(arguments)})" if arguments else name
        correct = ignored = None
        # A sum is copied, because the script may change it in place.
        total = value.detach().to(torch.float32, copy=reduction == "sum")
        with torch.no_grad():
            if classes and not summed:
                left_out = target == given.get("ignore_index", _IGNORED)
                ignored = left_out.sum() / (target.numel() // len(target))
                if reduction == "mean":  # the mean over no samples is NaN
                    total = torch.where(ignored == len(output), 0, total * (len(output) - ignored))
                if (origin.evaluating or not value.requires_grad) and output.dim() == 2:
                    correct = ((output.argmax(1) == target) & ~left_out).sum()
            elif reduction == "mean":
                total = total * len(output)
        whole = base_of(target)
        part = None
        if whole is not None and whole.shape[1:] == target.shape[1:] and whole.stride() == target.stride():
            part = weakref.ref(whole), int(target.storage_offset())  # some of its rows
        call = Call(
            *(origin.owner, criterion, total, len(output), ignored, correct),
            *(summed, origin.alone, origin.evaluating),
            *(weakref.ref(origin.returned), weakref.ref(target), part),
        )
        if value.grad_fn is not None:
            _notes(value.grad_fn)[_MARK] = (
                call  # the call lives as long as the graph, and keeps none of it alive
            )
        if origin.owner is None:
            self._listener.unowned(call, value)
        elif origin.evaluating or not torch.is_grad_enabled():
            self._listener.evaluated(call)

    def _backward(self, tensors: Any) -> None:
        self._listener.differentiated(_call_of(tensors))


def claim(value: Tensor, owner: object, *, evaluating: bool) -> Call | None:
    """The call of the criterion whose value the owner's model has returned, if the call had no owner so far.

    If the model returns a multiple of the value, it is not known what the script takes for the loss: the call is
    forgotten.
    """
    node, _ = _marked(value)
    if node is None:
        return None
    call: Call = _notes(node)[_MARK]
    if _MARK not in _notes(value.grad_fn):
        del _notes(node)[_MARK]
    elif call.owner is None:
        _notes(node)[_MARK] = call = replace(call, owner=owner, evaluating=evaluating)
        return call
    return None


def _call_of(tensors: Any) -> Call | None:
    """The call on whose value, or a multiple of it, gradients are asked for."""
    roots = [tensors] if isinstance(tensors, Tensor) else tensors
    # Of several roots only the sum would be the training loss. An iterator is not read: torch must be able to read it.
    if not isinstance(roots, Sequence) or len(roots) != 1:
        return None
    node, divisor = _marked(roots[0])
    if node is None:
        return None
    call: Call = _notes(node)[_MARK]
    # A sum may be divided by the number of samples, but not by that of pixels, say, which makes it another mean.
    return None if call.summed and divisor not in (1, call.samples) else call


def _marked(value: Tensor) -> tuple[Any, float]:
    """The node of the criterion call whose value this is a multiple of, or None; and the divisor of that value."""
    node = value.grad_fn
    divisor = 1.0
    while node is not None and _MARK not in _notes(node):
        inputs = [entry for entry, _ in node.next_functions if entry is not None]
        if node.name() not in SCALINGS or len(inputs) != 1:
            return None, divisor
        if node.name() in _BY_NUMBERS and _SCALED not in _notes(node):
            number = _number_of(node)
            if number is None:
                return None, divisor
            divisor *= number if node.name() == _DIVISION else 1
        node = inputs[0]
    return node, divisor


def _number_of(node: Any) -> float | None:
    """The Python number that this node multiplies or divides by; None for a tensor, which may depend on the batch.

    Autograd keeps a number as a tensor of the widest type in host memory.
    """
    if node.next_functions[0][0] is None:
        return None  # a number divided by the loss: in a product torch puts the number second
    try:
        factor = factor_of(node)
    except RuntimeError:  # the graph was freed: torch is about to raise an error itself
        return None
    if factor is None:
        return None
    is_number = (
        factor.dim() == 0 and factor.dtype in (torch.float64, torch.int64) and factor.device.type == "cpu"
    )
    return factor.item() if is_number else None


def _after_scale(scaled: Any, *_: Any, **__: Any) -> None:
    """Note on a value that a gradient scaler has scaled it."""
    if not torch.compiler.is_compiling() and isinstance(scaled, Tensor) and scaled.grad_fn is not None:
        _notes(scaled.grad_fn)[_SCALED] = True


def _notes(node: Any) -> dict[str, Any]:
    """The notes on a node of the autograd graph, which torch keeps with the node."""
    notes: dict[str, Any] = node.metadata
    return notes
