"""Where the moments of a layer's output in host memory are had from: a norm that it goes into, or the output itself.

A norm that is given the output as it is computes mean and variance of its channels, rows or groups, all of one size,
and autograd keeps them for the backward pass. The moments of the whole follow from these.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, prod
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from mlflow_dynamics.recording.reduction import OFFSET, host_moments
from mlflow_dynamics.recording.torch_private import (
    NORMS_TELL,
    BatchNorm,
    data_address,
    kept_statistics,
    lazy_copy,
    not_computing,
    times_written,
)

NORMS: Final = (BatchNorm, nn.LayerNorm, nn.GroupNorm)
_FORWARDS: Final = tuple(norm.forward for norm in NORMS)

SINGLE_SUM: Final = 4096
"""One float32 sum over so many values costs a deviation 1e-7, its last digit; over more it costs more."""

FEW: Final = 256
"""So many numbers are added up in Python before the first operation of torch is done."""

Add = Callable[[float, float], None]
Place = tuple[int, torch.dtype, list[tuple[int, int]]]


class _Read(NamedTuple):
    """Moments of an output that has been read, in case no norm tells them: which layer's, where it lay, how often it
    had been written to, and the node of autograd that made it (its memory may be another tensor's by then)."""

    layer: int
    place: Place
    written: int
    made_by: object
    moments: tuple[float, float]
    add: Add


class _Waiting(NamedTuple):
    """An output that waits for a norm, and a lazy copy of it."""

    layer: int
    output: Tensor
    copy: Tensor
    add: Add


class Readings:
    """Reads the outputs of layers, or takes their moments from the norm that follows.

    The outputs of a layer are read until a norm was given one unchanged; its moments are the norm's then, too. From
    then on they wait for the norm as lazy copies, which share the output's memory: it is copied if anything writes to
    the output meanwhile, so the values can still be read. They are read if another norm, layer or step comes first,
    or if the norm was given something else; after that this layer's outputs are read at once for good.

    Args:
        samples: at most so many of a batch are read.
    """

    def __init__(self, samples: int | None) -> None:
        self._samples = samples
        self._waits: dict[int, bool] = {}
        self._read: _Read | None = None
        self._waiting: _Waiting | None = None

    def take(self, layer: int, output: Tensor, add: Add) -> None:
        """Have `add` called with mean and variance of a layer's output: at once, or when the norm has been called.

        An output before it that still waits has to be settled.
        """
        values = output.detach()
        if self._samples is not None and values.dim() > 0 and len(values) > self._samples:
            add(*host_moments(values[: self._samples]))
            return
        # Without gradients autograd keeps nothing.
        waits = self._waits.get(layer) if NORMS_TELL and torch.is_grad_enabled() else False
        copy = lazy_copy(values) if waits else None
        if copy is not None:
            self._waiting = _Waiting(layer, output, copy, add)
            return
        moments = host_moments(values)
        if waits is None and type(values) is Tensor and not values.is_inference():
            self._read = _Read(layer, _place(values), times_written(values), output.grad_fn, moments, add)
        else:
            add(*moments)

    def settle(self) -> None:
        """Read what still waits."""
        waiting, read = self._waiting, self._read
        self._waiting = self._read = None
        if waiting is not None:
            self._read_late(waiting)
        elif read is not None:
            read.add(*read.moments)

    def norm_called(self, norm: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Take the moments of the output that waits from a norm that has just run, if that was given it."""
        waiting, read = self._waiting, self._read
        self._waiting = self._read = None
        given = args[0] if len(args) == 1 and type(args[0]) is Tensor else None
        if waiting is not None:
            kept = None
            if given is not None and _unchanged(given, waiting):
                kept = kept_moments(norm, given, output)
            if kept is None:
                self._read_late(waiting)
            else:
                waiting.add(*kept)
        elif read is not None:
            kept, certain = None, False
            if given is not None and not not_computing(given):
                same = _place(given) == read.place and times_written(given) == read.written
                kept = kept_moments(norm, given, output) if same else None
                certain = read.made_by is not None and given.grad_fn is read.made_by
            if kept is not None:
                self._waits[read.layer] = True
            # The norm's from the first step on: a training that is carried on has the record of one that never ended.
            read.add(*(kept if kept is not None and certain else read.moments))

    def _read_late(self, waiting: _Waiting) -> None:
        self._waits[waiting.layer] = False
        waiting.add(*host_moments(waiting.copy))


def kept_moments(norm: nn.Module, given: Tensor, output: Any) -> tuple[float, float] | None:
    """Mean and variance of what a norm was given; None where it keeps none that are right to float32's last digit."""
    # A forward of the user's own may do something before torch's, or after it.
    if type(norm).forward not in _FORWARDS or "forward" in vars(norm) or type(output) is not Tensor:
        return None
    kept = kept_statistics(given, output)
    if kept is None or (isinstance(norm, BatchNorm) and not _summed_precisely(given, kept[0])):
        return None
    eps: float = vars(norm)["eps"]
    mean, variance = _pooled(*kept, eps)
    # A variance far below eps, or far below the squared mean, has lost digits. What is not finite fails, too.
    return (mean, variance) if eps <= variance and mean * mean <= OFFSET * variance else None


def _pooled(means: Tensor, inverse_deviations: Tensor, eps: float) -> tuple[float, float]:
    """Mean and variance of parts of one size, of which means and 1 / sqrt(variance + eps) are known."""
    if means.dim() == 1 and len(means) <= FEW:
        m, i = means.tolist(), inverse_deviations.tolist()
        mean = sum(m) / len(m)
        second = sum([x * x + (1 / (y * y) if y else inf) for x, y in zip(m, i, strict=True)]) / len(m)
    else:
        mean = means.double().mean().item()
        second = (means.double().square() + inverse_deviations.double().pow(-2)).mean().item()
    return mean, second - eps - mean * mean


def _summed_precisely(given: Tensor, means: Tensor) -> bool:
    """Batch norm adds up the values of a channel in double precision in one case, and else in float32."""
    samples, _, *positions = given.shape
    size = prod(positions)
    in_double = size > 1 and given.is_contiguous() and given.dtype is torch.float32
    return in_double or samples * size <= SINGLE_SUM or means.dtype is torch.float64


def _unchanged(given: Tensor, waiting: _Waiting) -> bool:
    """Whether a norm was given all of the output, as it was, in any order of its dimensions."""
    if given is waiting.output:  # what was written to has not shared its memory any more
        return data_address(given) == data_address(waiting.copy)
    return not not_computing(given) and _place(given) == _place(waiting.copy)


def _place(tensor: Tensor) -> Place:
    """Tensors of one place have the same values, perhaps in another order."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return data_address(tensor), tensor.dtype, sorted((size, step) for size, step in steps if size > 1)
