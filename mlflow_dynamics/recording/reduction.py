"""The mean and variance of a layer's output, read from the output itself."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

HALF: Final = (torch.float16, torch.bfloat16)
"""Of these `var_mean` would round its results to three digits."""

OFFSET: Final = 1000.0
"""A squared mean so many times the variance would cost the difference of moments three of float32's seven digits."""


def moments(output: Tensor, one: Tensor, samples: int | None) -> Tensor:
    """(1, mean, population variance, squared mean) of `output`, or of its first `samples` entries."""
    values = output.detach()
    if samples is not None and values.dim() > 0 and not _known(values.shape[0] <= samples):
        if not _known(values.shape[0] >= samples):
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
    mean, squares = (total.item() / size for total in sums(values))
    variance = squares - mean * mean
    if mean * mean > OFFSET * variance:
        centred = values.to(torch.promote_types(values.dtype, torch.float32)) - mean
        variance = float(centred.square().mean())
    return mean, variance


def _known(comparison: Any) -> bool:
    """Whether a comparison holds for every size that the code is compiled for; otherwise for the one there is."""
    if torch.compiler.is_compiling():
        # Sympy comes with it, which takes a second.
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return statically_known_true(comparison)
    return bool(comparison)


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
        mean, squares = (total / values.numel() for total in sums(values))
        variance = squares - mean * mean
    else:
        variance, mean = torch.var_mean(values, dim=None, correction=0)
    return torch.stack((one, mean, variance, mean * mean))


def sums(values: Tensor) -> tuple[Tensor, Tensor]:
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
