"""What runs inside a forward pass: one reduction per layer into a preallocated device tensor.

Compiled code contains these hooks, so they follow dynamo's rules: no Python number that changes from step to
step is read, nothing grows, and the only effect is an in-place addition to a tensor whose address never
changes.
"""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from mlflow_dynamics.errors import RecordingError
from mlflow_dynamics.recording.boundary import Boundary
from mlflow_dynamics.recording.normalisation import Add, Readings
from mlflow_dynamics.recording.reduction import host_moments, moments, sums
from mlflow_dynamics.recording.torch_private import (
    dispatch_modes,
    graph_task_id,
    is_replica,
    is_sharded,
    mark_static_address,
    not_computing,
    set_to_zero,
    skip_code,
    while_tracing,
    without_dispatch_modes,
)

MOMENTS: Final = 4
"""A slot sums over the calls of its layer: 1, mean, variance, mean squared."""


def first_tensor(output: Any) -> Tensor | None:
    """The tensor a module returned, the first one of a tuple, list or mapping, or None."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict):
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        for item in output:
            found = first_tensor(item)
            if found is not None:
                return found
    return None


class Traceless:
    """A hook of which a pickled or deep-copied model carries only a no-op of the standard library."""

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")


def is_ours(hook: Any) -> bool:
    """Whether a hook is one of ours, or the no-op that a copy of the model has in its place."""
    return isinstance(hook, Traceless) or _is_left_behind(hook)


def forget_copied_hooks(model: nn.Module) -> None:
    """Take away the no-ops that the model has got as a copy of a recorded one: in generations they would add up."""
    for module in model.modules():
        for name in ("_forward_pre_hooks", "_forward_hooks"):
            hooks = vars(module).get(name, {})
            for key in [key for key, hook in hooks.items() if _is_left_behind(hook)]:
                del hooks[key]


def _is_left_behind(hook: Any) -> bool:
    return getattr(hook, "__func__", None) is nullcontext.__exit__


class ForwardPass(Traceless):
    """The state of the current forward pass, and the hook before the model that begins one.

    Attributes:
        called: the model itself has been called, in training; its layers may be without it.
        fresh: a training forward has run since the last optimizer step.
        inside: the model's own training forward is running, with gradients.
        wanted: the coming step is recorded (eager only; compiled code always records).
        seen: positions of the layers in the order in which they first ran.
    """

    def __init__(self, model: nn.Module, samples: int | None, boundary: Boundary) -> None:
        self.model = model
        self.samples = samples
        self.boundary = boundary
        self.slots: list[Tensor] = []
        self.readings = Readings(samples)
        self.called = False
        self.fresh = False
        self.inside = False
        self.wanted = True
        self.seen: list[int] = []

    def __call__(self, module: nn.Module, args: Any) -> None:
        """Forget what an earlier training forward left: the last one before the step counts."""
        self.boundary.run(self._begin)

    def _begin(self) -> None:
        self.inside = self.model.training and torch.is_grad_enabled()
        if not self.inside:
            return
        self.called = True
        if torch.compiler.is_compiling():
            set_to_zero(self.slots)
        elif not (_in_backward() or torch.jit.is_tracing()):
            with _unseen():
                self.readings.settle()
                set_to_zero(self.slots)

    def end(self) -> None:
        """What runs without gradients from here on is no part of a training forward."""
        inside, self.inside = self.inside, False
        if inside and not (torch.compiler.is_compiling() or _in_backward() or torch.jit.is_tracing()):
            with _unseen():
                self.readings.settle()


class ForwardPassEnd(Traceless):
    """The hook after the model."""

    def __init__(self, forward: ForwardPass) -> None:
        self.forward = forward

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.forward.boundary.run(self.forward.end)


class LayerHook(Traceless):
    """The forward hook of one layer: adds the moments of its output to the layer's slot.

    Attributes:
        shape: of one sample of the output.
        known: an output has been seen.
        declined: what the output is, where it is of a kind that has no mean and variance here.
    """

    def __init__(self, position: int, forward: ForwardPass, device: torch.device) -> None:
        self.position = position
        self.forward = forward
        self.shape: tuple[int, ...] = ()
        self.known = False
        self.declined: str | None = None

        def trace(context: Any) -> None:
            """Runs once, while dynamo traces the layer, in place of `_record`'s first call."""
            self._meet(context.get_local("tensor").as_fake())

        self._trace = trace  # a plain function: torch 2.14 takes no method here
        self.place(device)

    def place(self, device: torch.device) -> None:
        """Allocate the slot on the device on which the layer's output lives."""
        # Whatever the script's default: half precision would lose digits, and numpy has no bfloat16.
        self.slot = torch.zeros(MOMENTS, device=device, dtype=torch.float32)
        memory: Any = self.slot.numpy() if self.slot.device.type == "cpu" else None
        self._add_on_host: Add | None = None if memory is None else partial(_add_to, memoryview(memory))
        self.one = torch.ones((), device=device, dtype=torch.float32)
        for tensor in (self.slot, self.one):  # without it CUDA graphs are given up: an input would be mutated
            mark_static_address(tensor)
        if self.position < len(self.forward.slots):
            self.forward.slots[self.position] = self.slot
        else:
            self.forward.slots.append(self.slot)

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        forward, add = self.forward, self._add_on_host
        if (
            not torch.compiler.is_compiling()
            and module.training
            and forward.wanted
            and add is not None
            and forward.readings.expect(self.position, output, add)
        ):
            forward.fresh = True
            return
        if not (module.training or forward.model.training):
            return
        if not torch.is_grad_enabled() and not forward.inside:
            return
        forward.boundary.run(self._record, module, output)

    def _record(self, module: nn.Module, output: Any) -> None:
        compiling = torch.compiler.is_compiling()
        tensor = first_tensor(output)
        if tensor is None:
            if not self.known and not compiling:
                self.declined = f"of type {type(output).__name__}, which holds no tensor"
            return
        if not compiling and (
            _in_backward() or not_computing(tensor)
        ):  # a traced tensor is asked for nothing
            return
        if not _is_reducible(tensor):
            if compiling:
                while_tracing(self._trace, tensor)
            else:
                self._meet(tensor)
            return
        if tensor.numel() == 0:
            return
        if compiling:
            while_tracing(self._trace, tensor)
            self._add(tensor)
            return
        self.forward.fresh = True
        with _unseen():
            self.forward.readings.let_go()
            if not self.known or self.slot.device != tensor.device:
                _decline_replica(module)
                self._meet(tensor)
            if not self.forward.wanted:
                return
            if self._add_on_host is None:
                self._add(tensor)
            else:
                self.forward.readings.take(self.position, tensor, self._add_on_host)

    def _add(self, tensor: Tensor) -> None:
        self.forward.fresh = True
        self.slot.add_(moments(tensor, self.one, self.forward.samples))

    def _meet(self, tensor: Tensor) -> None:
        if not _is_reducible(tensor):
            self.declined = _kind(tensor)
            return
        if not self.known:
            _decline_sharded(tensor)
            self.known = True
            self.shape = tuple(int(size) for size in tensor.shape[1:])
            self.forward.seen.append(self.position)
        if self.slot.device != tensor.device:
            self.place(tensor.device)


class NormHook(Traceless):
    """The forward hook of a norm, which may have computed the moments of the layer before it."""

    def __init__(self, forward: ForwardPass) -> None:
        self.forward = forward

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        forward = self.forward
        if not forward.inside or not forward.readings.tell(module, args, output):
            forward.boundary.run(self._take, module, args, output)

    def _take(self, module: nn.Module, args: Any, output: Any) -> None:
        with _unseen():
            self.forward.readings.norm_called(module, args, output)
            if not self.forward.inside:
                self.forward.readings.settle()


def _add_to(slot: memoryview[Any], mean: float, variance: float) -> None:
    """Without an operation of torch, which costs as much as summing a small output."""
    slot[0] += 1
    slot[1] += mean
    slot[2] += variance
    slot[3] += mean * mean


def _is_reducible(tensor: Tensor) -> bool:
    # Numbers of 8 bits and fewer (float8, float4) are for storage: torch reduces none.
    summable = tensor.is_floating_point() and tensor.dtype.itemsize > 1
    return summable and tensor.layout is torch.strided and not tensor.is_nested


def _kind(tensor: Tensor) -> str:
    """In words, what keeps a tensor from being reduced."""
    if tensor.is_nested:
        return "nested"
    if tensor.layout is not torch.strided:
        return "sparse" if "sparse" in str(tensor.layout) else str(tensor.layout)
    if tensor.is_complex():
        return "complex"
    return "quantized" if tensor.is_quantized else f"of type {str(tensor.dtype).removeprefix('torch.')}"


def _in_backward() -> bool:
    """True while autograd runs: activation checkpointing calls forwards a second time there."""
    return bool(graph_task_id() != -1)


def _unseen() -> AbstractContextManager[Any]:
    """Hides our operations from selective checkpointing and FLOP counters, which see every one of a forward pass."""
    return without_dispatch_modes() if dispatch_modes() > 0 else nullcontext()


def _decline_sharded(tensor: Tensor) -> None:
    """Refuse an output of which each process holds a part: reducing it is a collective, and could stop the training."""
    if is_sharded(tensor):
        raise RecordingError(
            "A layer's output is a DTensor, spread over several processes: tensor parallelism with "
            "use_local_output=False is not recorded; leave such layers out with exclude=(...)."
        )


def _decline_replica(module: nn.Module) -> None:
    """Refuse DataParallel's copies on several GPUs: in threads, they share our hooks and would overwrite each other."""
    if is_replica(module):
        raise RecordingError(
            "The model runs under DataParallel on several GPUs, which is not recorded: train it on one of them "
            "(device_ids=[0]), or on all with DistributedDataParallel, which is."
        )


def never_compile_alone(*owners: Any) -> None:
    """Keep dynamo from compiling these functions, or all methods of these classes, by themselves.

    It calls the hooks of a compiled module's own root as ordinary Python, outside the graph, and would make a
    graph of each. Inside a graph they are inlined as before.
    """
    for owner in owners:
        functions = [owner] if inspect.isfunction(owner) else list(vars(owner).values())
        for function in filter(inspect.isfunction, functions):
            skip_code(function.__code__)


never_compile_alone(ForwardPass, ForwardPassEnd, LayerHook, NormHook, Readings, Boundary)
never_compile_alone(
    first_tensor, _in_backward, not_computing, _unseen, _decline_sharded, _decline_replica, is_replica
)
never_compile_alone(_is_reducible, _kind, is_sharded, while_tracing)
never_compile_alone(host_moments, sums)
