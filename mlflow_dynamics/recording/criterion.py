"""Training and validation loss from the script's own criterion calls, where they are known with certainty.

A value counts only if the criterion's input is the very tensor that the model returned. For training,
backward must moreover be called on it, or on it times or divided by numbers (gradient accumulation,
GradScaler): where a script adds other terms, its training loss is something else and none is given. All sums
stay on the device until the epoch ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from mlflow_dynamics.recording.boundary import Boundary
from mlflow_dynamics.recording.patching import Patch

CRITERIA: Final = ("cross_entropy", "nll_loss", "binary_cross_entropy_with_logits", "mse_loss")
CLASSIFICATION: Final = ("cross_entropy", "nll_loss")
SCALINGS: Final = ("MulBackward0", "DivBackward0", "ToCopyBackward0", "AliasBackward0")
"""Autograd nodes through which a criterion's value is only multiplied by a number."""


_MARK: Final = "mlflow_dynamics.criterion"


@dataclass(frozen=True)
class Call:
    """One criterion call on a model's output: its mean value, the number of samples, and how many were right."""

    owner: object
    value: Tensor
    samples: int
    correct: Tensor | None


@dataclass
class Mean:
    """A mean over samples, summed on the device."""

    total: Tensor | None = None
    correct: Tensor | None = None
    samples: int = 0

    def add(self, call: Call) -> None:
        """Add a batch; its right answers too where it is a classification."""
        value = call.value.float() * call.samples
        self.total = value if self.total is None else self.total + value
        self.samples += call.samples
        if call.correct is not None:
            self.correct = call.correct if self.correct is None else self.correct + call.correct

    def join(self, later: Mean) -> None:
        """Add what another one summed."""
        if later.total is not None:
            self.total = later.total if self.total is None else self.total + later.total
        if later.correct is not None:
            self.correct = later.correct if self.correct is None else self.correct + later.correct
        self.samples += later.samples


class Listener(Protocol):
    """Who wants to know of criterion calls."""

    def owner_of(self, output: Tensor) -> object | None:
        """Whose model returned this tensor last."""

    def evaluated(self, call: Call) -> None:
        """A criterion was evaluated without gradients."""

    def differentiated(self, call: Call | None) -> None:
        """Backward was called on a multiple of this call's value, or on something else."""


class CriterionWatch:
    """Watches torch's criteria and `backward`."""

    def __init__(self, listener: Listener, boundary: Boundary) -> None:
        self._listener = listener
        self._boundary = boundary
        self._patches = [
            *(Patch(functional, name, self._around_criterion(name)) for name in CRITERIA),
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
                if not torch.compiler.is_compiling():
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
        plain = len(args) <= 2 and not any(kwargs.get(key) is not None for key in ("weight", "pos_weight"))
        plain = plain and kwargs.get("ignore_index", -100) == -100 and reduction in ("mean", "sum")
        if not plain or value.dim() != 0 or not isinstance(output, Tensor) or not isinstance(target, Tensor):
            return
        # Dense predictions are left out: their mean may be over fewer pixels than there are.
        of_samples = target.dim() == 1 or target.shape == output.shape
        owner = self._listener.owner_of(output)
        if owner is None or not of_samples or output.dim() == 0 or len(output) == 0:
            return
        correct = None
        with torch.no_grad():
            mean = value.detach() / len(output) if reduction == "sum" else value.detach().clone()
            if not value.requires_grad and name in CLASSIFICATION and output.dim() == 2 and target.dim() == 1:
                correct = (output.argmax(1) == target).sum()
        call = Call(owner, mean, len(output), correct)
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


@dataclass
class EpochLosses:
    """What the criterion calls of one epoch come to.

    Attributes:
        known: whether every backward of the epoch was on the criterion's value alone.
        validation: per loader, of its last pass in this epoch: the pass's number and the mean.
    """

    train: Mean = field(default_factory=Mean)
    known: bool = True
    validation: dict[int, tuple[int, Mean]] = field(default_factory=dict)

    def validate(self, loader: int, serial: int, call: Call) -> None:
        """Add a batch of a pass over a loader without steps; a new pass replaces an earlier one."""
        number, mean = self.validation.get(loader, (serial, Mean()))
        if number != serial:
            mean = Mean()
        mean.add(call)
        self.validation[loader] = (serial, mean)

    def join(self, later: EpochLosses) -> None:
        """The epoch goes on with what was taken for another one's."""
        self.train.join(later.train)
        self.known &= later.known
        for loader, (serial, mean) in later.validation.items():
            number, earlier = self.validation.get(loader, (serial, Mean()))
            if number == serial:
                earlier.join(mean)
                mean = earlier
            self.validation[loader] = (serial, mean)
