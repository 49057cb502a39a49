"""Device memory for the steps of one epoch, of constant size, emptied into host memory without waiting."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from mlflow_dynamics.recording.hooks import MOMENTS

CHUNK_STEPS: Final = 1024
"""The most steps held on the device at once. A shorter epoch takes one copy; 21 layers take 0.3 MB."""


@dataclass(frozen=True)
class HostCopy:
    """A copy on its way to host memory, complete once `ready` has passed."""

    values: Tensor
    ready: torch.cuda.Event | None

    @classmethod
    def of(cls, values: Tensor) -> HostCopy:
        """A copy of the values as they are now; a copy from a GPU is not waited for."""
        if not values.is_cuda:
            return cls(values.to("cpu", copy=True), None)
        # Later writes to the values are queued on the same stream behind this copy.
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        ready = torch.cuda.Event()
        ready.record(torch.cuda.current_stream(values.device))
        return cls(host, ready)

    def part(self, start: int, end: int) -> HostCopy:
        """Some rows of the copy, in the same memory."""
        return HostCopy(self.values[start:end], self.ready)

    def wait(self) -> Tensor:
        """The values; called by the background thread."""
        if self.ready is not None:
            self.ready.synchronize()
        return self.values


class StepHistory:
    """The moments of every layer at every recorded step of the running epoch."""

    def __init__(self) -> None:
        self._chunk: Tensor | None = None
        self._filled = 0
        self._copies: list[HostCopy] = []
        self.steps: list[int] = []

    def append(self, step: int, slots: list[Tensor]) -> None:
        """Take the slots' values as those of `step`, with two small kernels and without synchronisation."""
        device = slots[0].device
        if self._chunk is None or self._chunk.device != device:
            self._flush()
            self._chunk = torch.empty((CHUNK_STEPS, len(slots), MOMENTS), device=device, dtype=torch.float32)
        if any(slot.device != device for slot in slots):
            slots = [slot.to(device, non_blocking=True) for slot in slots]
        torch.stack(slots, out=self._chunk[self._filled])
        self._filled += 1
        self.steps.append(step)
        if self._filled == CHUNK_STEPS:
            self._flush()

    def take(self, end: int) -> tuple[list[int], list[HostCopy]]:
        """Hand over the steps before step `end`, and keep the rest."""
        self._flush()
        count = bisect_left(self.steps, end)
        steps, self.steps = self.steps[:count], self.steps[count:]
        taken, kept = [], []
        for copy in self._copies:
            part = min(count, len(copy.values))
            count -= part
            taken.append(copy.part(0, part))
            kept.append(copy.part(part, len(copy.values)))
        self._copies = [copy for copy in kept if len(copy.values)]
        return steps, [copy for copy in taken if len(copy.values)]

    def clear(self) -> None:
        """Forget the steps so far."""
        self._filled = 0
        self._copies = []
        self.steps = []

    def _flush(self) -> None:
        if self._chunk is None or self._filled == 0:
            return
        self._copies.append(HostCopy.of(self._chunk[: self._filled]))
        self._filled = 0
