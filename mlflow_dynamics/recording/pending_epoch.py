"""An epoch handed over by the recorder: copied from the device, pooled with other processes' parts, made moments."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mlflow_dynamics.recording.device_memory import HostCopy
from mlflow_dynamics.recording.distributed import Averages, Exchange
from mlflow_dynamics.recording.hooks import MOMENTS
from mlflow_dynamics.records import EpochActivations, Layer


class PendingEpoch:
    """An epoch's activations, which may still be on their way from the device.

    Args:
        epoch: the epoch's number.
        layers: the layers, in forward order.
        order: the layers' positions in the copies from the device.
        start: the number of the epoch's first step.
        exchange: the exchange with the other processes that train the model; None without any.
        turn: the number of epochs handed over before, which is the same on every rank. (Only the rank that writes a
            resumed run knows the epoch's number.)
        averages: averages of the epoch, to be pooled over all processes.
        on_counts: called with how often each layer ran, (steps, layers), if there are steps.
    """

    def __init__(
        self,
        epoch: int,
        *,
        layers: tuple[Layer, ...],
        order: Sequence[int],
        start: int,
        exchange: Exchange | None,
        turn: int,
        averages: Averages,
        on_counts: Callable[[np.ndarray], None],
    ) -> None:
        self.epoch = epoch
        self.steps: list[int] = []
        self.copies: list[HostCopy] = []
        self._layers = layers
        self._order = order
        self._start = start
        self._exchange = exchange
        self._turn = turn
        self._averages = averages
        self._on_counts = on_counts

    @property
    def averages(self) -> dict[str, float]:
        """The epoch's averages; once `result` has returned, those over all processes."""
        return {key: total / weight for key, (total, weight) in self._averages.items()}

    def result(self) -> EpochActivations:
        """Wait for the copy and return the activations; may be called from any thread.

        With several processes, `result` also waits for a bounded time for the parts of the other ranks. A layer is NaN
        at a step at which it did not run.
        """
        parts = [copy.wait().numpy() for copy in self.copies]
        sums = np.concatenate(parts) if parts else np.empty((0, len(self._layers), MOMENTS), np.float32)
        if self._exchange is not None:
            positions = np.asarray(self.steps, dtype=np.int64) - self._start
            sums, self._averages = self._exchange.pool(self._turn, positions, sums, self._averages)
        sums = sums[:, self._order]
        if self.steps:
            self._on_counts(sums[..., 0])
        mean, std = pooled(sums)
        return EpochActivations(
            epoch=self.epoch,
            step=np.asarray(self.steps, dtype=np.int32),
            mean=np.ascontiguousarray(mean.T),
            std=np.ascontiguousarray(std.T),
            layers=self._layers,
        )


def pooled(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population standard deviation of a union of equally weighted parts; NaN if there are no parts.

    `sums` is (..., 4): the number of parts and their summed means, variances and squared means. The variance of a
    union is the mean of the variances plus the variance of the means; the second term is exactly 0 for one part.
    """
    count = sums[..., 0].astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, variance, square = (sums[..., k] / count for k in (1, 2, 3))
        between = np.where(count > 1, np.maximum(square - mean * mean, 0.0), 0.0)
        std = np.sqrt(variance + between)
    return mean.astype(np.float32), std.astype(np.float32)
