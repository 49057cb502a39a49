"""Where the moments of a layer's output in host memory are had from: a norm that it goes into, or the output itself.

A norm that is given the output as it is computes mean and variance of its channels, rows or groups, all of one size,
and autograd keeps them for the backward pass. The moments of the whole follow from these: for all layers together, at
the end of the forward pass, since between two convolutions our code finds the processor's caches full of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Final, NamedTuple
from weakref import ref

import numpy as np
import torch
from torch import Tensor, nn

from mlflow_dynamics.recording.reduction import OFFSET, host_moments
from mlflow_dynamics.recording.torch_private import (
    NORMS_TELL,
    BatchNorm,
    data_address,
    dispatch_modes,
    graph_task_id,
    is_tracing,
    kept_statistics,
    lazy_copy,
    not_computing,
    times_written,
    transforms,
)

NORMS: Final = (BatchNorm, nn.LayerNorm, nn.GroupNorm)
_FORWARDS: Final = frozenset(norm.forward for norm in NORMS)

SINGLE_SUM: Final = 4096
"""One float32 sum over so many values costs a deviation 1e-7, its last digit; over more it costs more."""

Kept = tuple[Tensor, Tensor]
"""Means of the parts of a norm's input and their 1 / sqrt(variance + eps)."""

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


_Waiting = tuple[int, Tensor, Tensor, Add]
"""Which layer's output waits for a norm, the output, and a lazy copy of it."""

_Told = tuple[int, nn.Module, Kept, ref[Tensor], int, Add]
"""Of which layer's output a norm has kept what; the output, if it is there yet, and how often it was written to."""


class Readings:
    """Reads the outputs of layers, or takes their moments from the norm that follows.

    The outputs of a layer are read until a norm was given one unchanged; its moments are the norm's then, too. From
    then on they wait for the norm as lazy copies, which share the output's memory: it is copied if anything writes to
    the output meanwhile, so the values can still be read. They are read if another norm, layer or step comes first,
    or if the norm was given something else; after that this layer's outputs are read at once for good. What norms have
    kept is pooled by `settle`; an output for which that is not exact is read then, if it is there yet.

    Args:
        samples: at most so many of a batch are read.
    """

    def __init__(self, samples: int | None) -> None:
        self._samples = samples
        self._waits: dict[int, bool] = {}
        self._read: _Read | None = None
        self._waiting: _Waiting | None = None
        self._told: list[_Told] = []

    def expect(self, layer: int, output: Any, add: Add) -> bool:
        """Have an output wait, if its layer's did before and all is as usual; else it is looked at, and for `take`."""
        if (
            not self._waits.get(layer)
            or type(output) is not Tensor
            or not output.is_cpu
            or self._waiting is not None
            or self._read is not None
            or self._samples is not None
            or not torch.is_grad_enabled()
            or graph_task_id() != -1
            or dispatch_modes() > 0
            or transforms() is not None
            or is_tracing()
        ):
            return False
        copy = lazy_copy(output)
        if copy is None:
            return False
        self._waiting = (layer, output, copy, add)
        return True

    def tell(self, norm: nn.Module, args: tuple[Any, ...], output: Any) -> bool:
        """Note what a norm has kept of the output that waits, if all is as usual; else it takes `norm_called`."""
        if self._waiting is None:
            return self._read is None
        layer, given, copy, add = self._waiting
        if len(args) != 1 or args[0] is not given or data_address(given) != data_address(copy):
            return False
        kept = _kept(norm, given, output)
        if kept is None:
            return False
        self._waiting = None
        self._told.append((layer, norm, kept, ref(given), times_written(given), add))
        return True

    def take(self, layer: int, output: Tensor, add: Add) -> None:
        """Have `add` called with mean and variance of a layer's output: at once, or when the norm has been called.

        An output before it that still waits has to be let go.
        """
        values = output.detach()
        if self._samples is not None and values.dim() > 0 and len(values) > self._samples:
            add(*host_moments(values[: self._samples]))
            return
        # Without gradients autograd keeps nothing.
        waits = self._waits.get(layer) if NORMS_TELL and torch.is_grad_enabled() else False
        copy = lazy_copy(values) if waits else None
        if copy is not None:
            self._waiting = (layer, output, copy, add)
            return
        moments = host_moments(values)
        if waits is None and type(values) is Tensor and not values.is_inference():
            self._read = _Read(layer, _place(values), times_written(values), output.grad_fn, moments, add)
        else:
            add(*moments)

    def let_go(self) -> None:
        """Read what still waits for a norm."""
        waiting, read = self._waiting, self._read
        if waiting is not None:
            self._waiting = None
            self._read_late(waiting)
        elif read is not None:
            self._read = None
            read.add(*read.moments)

    def settle(self) -> None:
        """Let go what still waits, and add the moments that norms have told."""
        self.let_go()
        told, self._told = self._told, []
        if not told:
            return
        moments = _pooled([(norm, kept) for _, norm, kept, *_ in told])
        for (layer, norm, kept, output, written, add), (mean, variance, exact) in zip(
            told, moments, strict=True
        ):
            given = output()
            if given is not None and not (exact and _precise(norm, kept, given)):
                self._waits[layer] = False
                if times_written(given) == written:
                    mean, variance = host_moments(given.detach())
            add(mean, max(variance, 0.0))

    def norm_called(self, norm: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Take the moments of the output that waits from a norm that has just run, if that was given it."""
        waiting, read = self._waiting, self._read
        if waiting is None and read is None:
            return
        self._waiting = self._read = None
        given = args[0] if len(args) == 1 and type(args[0]) is Tensor else None
        if waiting is not None:
            if given is not None and _unchanged(given, waiting):
                kept = _kept(norm, given, output)
                if kept is not None:
                    layer, _, _, add = waiting
                    self._told.append((layer, norm, kept, ref(given), times_written(given), add))
                    return
            self._read_late(waiting)
        elif read is not None:
            moments, certain = None, False
            if given is not None and not not_computing(given):
                same = _place(given) == read.place and times_written(given) == read.written
                moments = kept_moments(norm, given, output) if same else None
                certain = read.made_by is not None and given.grad_fn is read.made_by
            if moments is not None:
                self._waits[read.layer] = True
            # The norm's from the first step on: a training that is carried on has the record of one that never ended.
            read.add(*(moments if moments is not None and certain else read.moments))

    def _read_late(self, waiting: _Waiting) -> None:
        layer, _, copy, add = waiting
        self._waits[layer] = False
        add(*host_moments(copy))


def kept_moments(norm: nn.Module, given: Tensor, output: Any) -> tuple[float, float] | None:
    """Mean and variance of what a norm was given; None where it keeps none that are right to float32's last digit."""
    kept = _kept(norm, given, output)
    if kept is None or not _precise(norm, kept, given):
        return None
    mean, variance, exact = _pooled([(norm, kept)])[0]
    return (mean, variance) if exact else None


def _kept(norm: nn.Module, given: Tensor, output: Any) -> Kept | None:
    # A forward of the user's own may do something before torch's, or after it.
    if type(norm).forward not in _FORWARDS or "forward" in vars(norm) or type(output) is not Tensor:
        return None
    return kept_statistics(given, output)


def _pooled(told: Sequence[tuple[nn.Module, Kept]]) -> list[tuple[float, float, bool]]:
    """Mean and variance of what each norm was given, and whether they are exact.

    A variance far below eps, or far below the squared mean, has lost digits.
    """
    means, inverse_deviations = (
        torch.cat([kept[which].flatten() for _, kept in told]).double().numpy() for which in (0, 1)
    )
    sizes = [kept[0].numel() for _, kept in told]
    starts = [0, *accumulate(sizes[:-1])]
    with np.errstate(all="ignore"):
        squares = means * means + 1 / (inverse_deviations * inverse_deviations)
        sums, sums_of_squares = (np.add.reduceat(each, starts).tolist() for each in (means, squares))
    moments = []
    for (norm, _), size, total, of_squares in zip(told, sizes, sums, sums_of_squares, strict=True):
        eps, mean = vars(norm)["eps"], total / size
        variance = of_squares / size - eps - mean * mean
        # What is not finite fails, too.
        moments.append((mean, variance, eps <= variance and mean * mean <= OFFSET * variance))
    return moments


def _precise(norm: nn.Module, kept: Kept, given: Tensor) -> bool:
    """Batch norm adds up the values of a channel in double precision in one case, and else in float32."""
    means, _ = kept
    if means.dtype is not torch.float32 or not isinstance(norm, BatchNorm):
        return means.dtype in (torch.float32, torch.float64)
    summed = given.numel() // means.numel()
    in_double = summed > given.shape[0] and given.is_contiguous() and given.dtype is torch.float32
    return in_double or summed <= SINGLE_SUM


def _unchanged(given: Tensor, waiting: _Waiting) -> bool:
    """Whether a norm was given all of the output, as it was, in any order of its dimensions."""
    _, output, copy, _ = waiting
    if given is output:  # what was written to has not shared its memory any more
        return bool(data_address(given) == data_address(copy))
    return not not_computing(given) and _place(given) == _place(copy)


def _place(tensor: Tensor) -> Place:
    """Tensors of one place have the same values, perhaps in another order."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return data_address(tensor), tensor.dtype, sorted((size, step) for size, step in steps if size > 1)
