"""What runs inside a forward pass: one reduction per layer into a preallocated device tensor.

Compiled code contains these hooks, so they follow dynamo's rules: no Python number that changes from step to
step is read, nothing grows, and the only effect is an in-place addition to a tensor whose address never
changes.
"""

from __future__ import annotations

import inspect
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._dynamo.comptime import comptime
from torch._dynamo.eval_frame import skip_code
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils._python_dispatch import _disable_current_modes

from mlflow_dynamics.errors import RecordingError
from mlflow_dynamics.recording.boundary import Boundary

MOMENTS: Final = 4
"""A slot sums over the calls of its layer: 1, mean, variance, mean squared."""

HALF: Final = (torch.float16, torch.bfloat16)
"""Of these `var_mean` would round its results to three digits."""

OFFSET: Final = 1000.0
"""A squared mean so many times the variance would cost the difference of moments three of float32's seven digits."""


def moments(output: Tensor, one: Tensor, samples: int | None) -> Tensor:
    """(1, mean, population variance, squared mean) of `output`, or of its first `samples` entries."""
    values = output.detach()
    if samples is not None and values.dim() > 0 and not statically_known_true(values.shape[0] <= samples):
        if not statically_known_true(values.shape[0] >= samples):
            return _moments_of_at_most(values, one, samples)
        values = values[:samples]
    return (
        _compiled_moments(values, one) if torch.compiler.is_compiling() else _moments_on_device(values, one)
    )


def host_moments(values: Tensor) -> tuple[float, float]:
    """Mean and population variance of values in host memory.

    As Python's numbers: beside the two sums, a dozen operations on tensors of one value would show.
    """
    size = values.numel()
    mean, squares = (total.item() / size for total in _sums(values))
    variance = squares - mean * mean
    if mean * mean > OFFSET * variance:
        centred = values.to(torch.promote_types(values.dtype, torch.float32)) - mean
        variance = float(centred.square().mean())
    return mean, variance


def _compiled_moments(values: Tensor, one: Tensor) -> Tensor:
    if values.dtype in HALF:
        values = values.float()
    if values.is_cuda:
        variance, mean = torch.var_mean(values, dim=None, correction=0)
    else:
        mean = values.mean()
        variance = torch.linalg.vector_norm(values - mean) ** 2 / values.numel()
    return torch.stack((one, mean, variance, mean * mean))


def _moments_on_device(values: Tensor, one: Tensor) -> Tensor:
    """On a GPU nothing may be asked of a value: the answer would stall it."""
    if values.dtype in HALF:
        mean, squares = (total / values.numel() for total in _sums(values))
        variance = squares - mean * mean
    else:
        variance, mean = torch.var_mean(values, dim=None, correction=0)
    return torch.stack((one, mean, variance, mean * mean))


def _sums(values: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and sum of squares: vectorised reductions that copy nothing, on a CPU many times as fast as `var_mean`."""
    dtype = torch.float32 if values.dtype.itemsize < torch.float32.itemsize else None
    total = values.sum(dtype=dtype)
    # A norm for each sample: one running sum over millions of values would lose digits.
    within = tuple(range(1, values.dim()))
    norms = torch.linalg.vector_norm(values, dim=within or None, dtype=dtype)
    return total, norms.dot(norms) if within else norms * norms


def _moments_of_at_most(values: Tensor, one: Tensor, samples: int) -> Tensor:
    """As `moments` in compiled code whose batch size may change: slicing would add a guard, and with it recompiles."""
    rows = torch.arange(samples, device=values.device)
    there = (rows < values.shape[0]).to(torch.float32)
    values = values.index_select(0, rows.clamp(max=values.shape[0] - 1)).float()
    variances, means = torch.var_mean(values.reshape(samples, -1), dim=1, correction=0)
    mean = (there * means).sum() / there.sum()
    variance = (there * (variances + (means - mean) ** 2)).sum() / there.sum()
    return torch.stack((one, mean, variance, mean * mean))


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
            torch._foreach_zero_(self.slots)
        elif not (_in_backward() or torch.jit.is_tracing()):
            with _unseen():
                torch._foreach_zero_(self.slots)


class ForwardPassEnd(Traceless):
    """The hook after the model: what runs without gradients from here on is no part of a training forward."""

    def __init__(self, forward: ForwardPass) -> None:
        self.forward = forward

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.forward.inside = False


class LayerHook(Traceless):
    """The forward hook of one layer: adds the moments of its output to the layer's slot."""

    def __init__(self, position: int, forward: ForwardPass, device: torch.device) -> None:
        self.position = position
        self.forward = forward
        self.shape: tuple[int, ...] = ()
        self.known = False

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
        self._host: memoryview[Any] | None = None if memory is None else memoryview(memory)
        self.one = torch.ones((), device=device, dtype=torch.float32)
        for tensor in (self.slot, self.one):  # without it CUDA graphs are given up: an input would be mutated
            torch._dynamo.mark_static_address(tensor)
        if self.position < len(self.forward.slots):
            self.forward.slots[self.position] = self.slot
        else:
            self.forward.slots.append(self.slot)

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if not (module.training or self.forward.model.training):
            return
        if not torch.is_grad_enabled() and not self.forward.inside:
            return
        self.forward.boundary.run(self._record, module, output)

    def _record(self, module: nn.Module, output: Any) -> None:
        tensor = first_tensor(output)
        if tensor is None or not tensor.is_floating_point() or tensor.numel() == 0:
            return
        if torch.compiler.is_compiling():
            comptime(self._trace)
            self._add(tensor)
            return
        if _in_backward() or not_computing(tensor):
            return
        self.forward.fresh = True
        if not self.known or self.slot.device != tensor.device:
            _decline_replica(module)
            self._meet(tensor)
        if self.forward.wanted:
            with _unseen():
                if self._host is None:
                    self._add(tensor)
                else:
                    self._add_on_host(tensor, self._host)

    def _add(self, tensor: Tensor) -> None:
        self.forward.fresh = True
        self.slot.add_(moments(tensor, self.one, self.forward.samples))

    def _add_on_host(self, tensor: Tensor, slot: memoryview[Any]) -> None:
        """As `_add`, without an operation of torch, which costs as much as summing a small output."""
        values = tensor.detach()
        if self.forward.samples is not None and values.dim() > 0:
            values = values[: self.forward.samples]
        mean, variance = host_moments(values)
        slot[0] += 1
        slot[1] += mean
        slot[2] += variance
        slot[3] += mean * mean

    def _meet(self, tensor: Tensor) -> None:
        if not self.known:
            _decline_sharded(tensor)
            self.known = True
            self.shape = tuple(int(size) for size in tensor.shape[1:])
            self.forward.seen.append(self.position)
        if self.slot.device != tensor.device:
            self.place(tensor.device)


def _in_backward() -> bool:
    """True while autograd runs: activation checkpointing calls forwards a second time there."""
    return bool(torch._C._current_graph_task_id() != -1)


def _unseen() -> AbstractContextManager[Any]:
    """Hides our operations from selective checkpointing and FLOP counters, which see every one of a forward pass."""
    return _disable_current_modes() if torch._C._len_torch_dispatch_stack() > 0 else nullcontext()


def not_computing(tensor: Tensor) -> bool:
    """True while the model is being examined rather than run: graph capture, shape inference, vmap."""
    return (
        tensor.is_meta
        or isinstance(tensor, FakeTensor)
        or torch.jit.is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def _decline_sharded(tensor: Tensor) -> None:
    """Refuse an output of which each process holds a part: reducing it is a collective, and could stop the training."""
    sharding = sys.modules.get("torch.distributed.tensor")
    if sharding is not None and isinstance(tensor, sharding.DTensor):
        raise RecordingError(
            "A layer's output is a DTensor, spread over several processes: tensor parallelism with "
            "use_local_output=False is not recorded; leave such layers out with exclude=(...)."
        )


def _decline_replica(module: nn.Module) -> None:
    """Refuse DataParallel's copies on several GPUs: in threads, they share our hooks and would overwrite each other."""
    if getattr(module, "_is_replica", False):
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


never_compile_alone(ForwardPass, ForwardPassEnd, LayerHook, Boundary)
never_compile_alone(moments, host_moments, _compiled_moments, _moments_on_device, _sums, _moments_of_at_most)
never_compile_alone(first_tensor, _in_backward, not_computing, _unseen, _decline_sharded, _decline_replica)
