"""All that recording uses of torch beyond its public interface, as seen in torch 2.14.1 (2.4 to 2.15 were tried).

A name that a torch has no more is an ImportError here, with which recording is declined (`mlflow_dynamics.autolog`).
Names without a function of ours around them are called within forward passes, where dynamo follows them. Dynamo itself,
seconds and 200 MB, is not imported here: what is compiled, by torch's own means, has imported it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from operator import attrgetter
from types import CodeType
from typing import Any, Final

import torch
from torch import (
    Tensor,
    _disable_dynamo,
    _foreach_norm,
    _foreach_zero_,
    nn,
)
from torch._C import _current_graph_task_id, _dynamo, _is_tracing, _len_torch_dispatch_stack
from torch._C._functorch import peek_interpreter_stack
from torch._subclasses.fake_tensor import FakeTensor
from torch.jit import _recursive
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.optim.lr_scheduler import LRScheduler, SequentialLR
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.data import DataLoader, RandomSampler
from torch.utils.data.dataloader import _BaseDataLoaderIter, _DatasetKind

ConvNd: Final = _ConvNd
"""The base of all convolutions."""

BatchNorm: Final = _BatchNorm
"""The base of batch norms."""

LoaderIterator: Final = _BaseDataLoaderIter
"""What draws the batches of a DataLoader."""

set_to_zero: Final = _foreach_zero_
"""All tensors of a list in one kernel."""

norms: Final = _foreach_norm
"""Of all tensors of a list."""

graph_task_id: Final = _current_graph_task_id
"""-1 unless autograd runs a backward pass in this thread."""

dispatch_modes: Final = _len_torch_dispatch_stack
"""How many modes see every operation."""

is_tracing: Final = _is_tracing
"""Whether `torch.jit.trace` looks on."""

transforms: Final = peek_interpreter_stack
"""The innermost transform of torch.func that is applied here, or None."""

without_dispatch_modes: Final = _disable_current_modes
"""Context in which they see none."""


def not_computing(tensor: Tensor) -> bool:
    """True while the model is being examined rather than run: graph capture, shape inference, vmap."""
    return (
        tensor.is_meta
        or isinstance(tensor, FakeTensor)
        or torch.jit.is_tracing()
        or peek_interpreter_stack() is not None
    )


SCRIPT_COMPILER: Final = _recursive
"""Of `torch.jit.script`: its `create_script_module` compiles a module with its hooks."""

HOOKS: Final = ("_forward_pre_hooks", "_forward_hooks")
"""A module's attributes that hold its forward hooks by key."""


def pre_hooks(module: nn.Module) -> list[Any]:
    """What a module calls before its forward."""
    return list(module._forward_pre_hooks.values())


def is_replica(module: nn.Module) -> bool:
    """Whether the module is one of DataParallel's copies."""
    return getattr(module, "_is_replica", False)


def compiled_original(model: nn.Module) -> nn.Module | None:
    """The module inside torch.compile's wrapper; None of other modules."""
    dynamo = sys.modules.get("torch._dynamo")
    return model._orig_mod if dynamo is not None and isinstance(model, dynamo.OptimizedModule) else None


def any_compiled() -> bool:
    """Whether dynamo has built a graph in this process."""
    utils = sys.modules.get("torch._dynamo.utils")
    return utils is not None and bool(utils.counters["stats"]["unique_graphs"] > 0)


def forget_compiled() -> None:
    """Have all code compiled again that is compiled, when it is called next."""
    torch._dynamo.reset()


def mark_static_address(tensor: Tensor) -> None:
    """Say that a tensor stays where it is, so that CUDA graphs may write into it; as dynamo's function of that name."""
    tensor._dynamo_static_input_type = "unguarded"  # type: ignore[attr-defined]


def untraced(function: Callable[..., None]) -> Callable[..., None]:
    """The function, which dynamo never follows; as `torch.compiler.disable`, which imports dynamo at once."""
    found: Callable[..., None] = _disable_dynamo(functools.partial(function))
    return found


def skip_code(code: CodeType) -> None:
    """Keep dynamo from making a graph of a function by itself."""
    frames: Any = _dynamo.eval_frame
    if hasattr(frames, "skip_code"):
        frames.skip_code(code)
    elif hasattr(frames, "_FrameExecStrategy"):
        action = frames._FrameAction
        frames.set_code_exec_strategy(code, frames._FrameExecStrategy(action.SKIP, action.DEFAULT))
    else:
        from torch._dynamo.eval_frame import skip_code as skip

        skip(code)


def while_tracing(function: Callable[[Any], None], tensor: Tensor) -> None:
    """Within compiled code: have dynamo call the function once, as it traces this place, where `tensor` is a local."""
    torch._dynamo.comptime.comptime(function)


def is_sharded(tensor: Tensor) -> bool:
    """Whether each of several processes holds a part of the tensor."""
    return isinstance(tensor, _found("DTensor", "torch.distributed.tensor", "torch.distributed._tensor"))


def sharding_kinds() -> tuple[type, ...]:
    """What `fully_shard` puts before a module's class."""
    composable = "torch.distributed._composable.fsdp.fully_shard"
    return (
        *_found("FSDPModule", "torch.distributed.fsdp", composable),
        *_found("FSDP", composable),  # the name in torch 2.4
    )


def _found(name: str, *places: str) -> tuple[type, ...]:
    """The classes of this name in those of the modules that somebody has imported."""
    modules = [sys.modules[place] for place in places if place in sys.modules]
    return tuple(vars(module)[name] for module in modules if name in vars(module))


CLONES_STORES: Final = hasattr(getattr(torch.distributed, "Store", None), "clone")
"""Whether a process can have a second connection to the store of its group: not before torch 2.5."""


def is_iterable(loader: DataLoader[Any]) -> bool:
    """Whether the loader's data set says itself when it is over."""
    return bool(loader._dataset_kind == _DatasetKind.Iterable)


def draws_whole(sampler: RandomSampler) -> bool:
    """Whether the sampler draws as many as its data are."""
    return sampler._num_samples is None


def base_of(view: Tensor) -> Tensor | None:
    """The tensor of which this is a view; None where it is none."""
    return view._base


def factor_of(node: Any) -> Tensor | None:
    """What a node of autograd that multiplies or divides does it by; RuntimeError where the graph was freed."""
    factor: Tensor | None = node._saved_other
    return factor


_torch_c: Final[Any] = torch._C  # typed without these
_saving_hooks: Final[Any] = getattr(_torch_c._autograd, "_top_saved_tensors_default_hooks", None)

data_address: Final[Any] = getattr(_torch_c, "_data_address", None)
"""Where a tensor's values lie; `data_ptr` would end the sharing of memory, since it may be written through."""

NORMS_TELL: Final = _saving_hooks is not None and data_address is not None and hasattr(torch, "_lazy_clone")
"""Whether this torch has all that it takes to get moments from norms."""


def lazy_copy(values: Tensor) -> Tensor | None:
    """A copy that shares the memory until either is written to; None where the memory is not torch's own."""
    try:
        return torch._lazy_clone(values.data)
    except RuntimeError:
        return None


times_written: Final = attrgetter("_version")
"""How often a tensor, or another one of the same memory, has been written to in place."""


NORM_NODES: Final = (
    "NativeBatchNormBackward0",
    "NativeLayerNormBackward0",
    "NativeGroupNormBackward0",
)
"""Autograd's names for norms on a CPU."""


def kept_statistics(given: Tensor, output: Tensor) -> tuple[Tensor, Tensor] | None:
    """Means and 1 / sqrt(variance + eps) that autograd keeps of a norm's input; None where it keeps none that we know.

    Where hooks pack what is kept (activation checkpointing, offloading), asking for it would unpack it.
    """
    node: Any = output.grad_fn
    if type(node).__name__ not in NORM_NODES or _saving_hooks(False) is not None:
        return None
    try:
        if node._saved_input is not given or not getattr(node, "_saved_training", True):
            return None
        means, inverse_deviations = node._saved_result1, node._saved_result2
    except RuntimeError:  # it was written to since
        return None
    # Of group norm they are results, which would keep the graph alive.
    return (means.data, inverse_deviations.data) if means.requires_grad else (means, inverse_deviations)


def default_store() -> Any:
    """Through which the processes of the default group find each other."""
    return torch.distributed.distributed_c10d._get_default_store()


PARTS: Final = "_schedulers"
"""The attribute of a composed scheduler that holds the others."""


def parts_of(scheduler: LRScheduler) -> list[LRScheduler]:
    """The schedulers of a SequentialLR or ChainedScheduler; of others none."""
    return list(vars(scheduler).get(PARTS, ()))


def starts_of(sequence: SequentialLR) -> list[int]:
    """The counts at which the parts of a SequentialLR begin."""
    return [0, *sequence._milestones]


def rate_now(scheduler: LRScheduler) -> Any:
    """The first parameter group's rate at the scheduler's count: in closed form, if its class has one."""
    scheduler._get_lr_called_within_step = True  # else get_lr warns
    return getattr(scheduler, "_get_closed_form_lr", scheduler.get_lr)()[0]
