"""An epoch on its way from the recorder: copied from the device, joined with other processes' parts, made moments."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mlflow_dynamics.recording.distributed import Averages, Exchange
from mlflow_dynamics.recording.history import HostCopy
from mlflow_dynamics.recording.hooks import MOMENTS
from mlflow_dynamics.records import EpochActivations, Layer


class PendingEpoch:
    """An epoch's activations, perhaps still on their way.

    Args:
        epoch: its number.
        layers: in forward order.
        order: their positions in what is copied from the device.
        start: the number of its first step.
        exchange: with the other processes that train the model; None without any.
        averages: to be taken over all of them.
        on_counts: told how often each layer ran, (steps, layers), where there are steps.
    """

    def __init__(
        self,
        epoch: int,
        *,
        layers: tuple[Layer, ...],
        order: Sequence[int],
        start: int,
        exchange: Exchange | None,
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
        self._averages = averages
        self._on_counts = on_counts

    @property
    def averages(self) -> dict[str, float]:
        """The epoch's averages, from `result` on those of all processes."""
        return {key: total / weight for key, (total, weight) in self._averages.items()}

    def result(self) -> EpochActivations:
        """Wait for the copy and return the activations; may be called from any thread.

        With several processes it also waits, for a bounded time, for the parts of the other ranks. A layer that
        did not run at a step is NaN there.
        """
        parts = [copy.wait().numpy() for copy in self.copies]
        sums = np.concatenate(parts) if parts else np.empty((0, len(self._layers), MOMENTS), np.float32)
        if self._exchange is not None:
            positions = np.asarray(self.steps, dtype=np.int64) - self._start
            sums, self._averages = self._exchange.pool(self.epoch, positions, sums, self._averages)
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
    """Mean and population standard deviation of a union of equally weighted parts, NaN of none.

    `sums` is (..., 4): number of parts and their summed means, variances and squared means. The variance of a
    union is the mean of the variances plus the variance of the means; for one part the second term is exactly
    0.
    """
    count = sums[..., 0].astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, variance, square = (sums[..., k] / count for k in (1, 2, 3))
        between = np.where(count > 1, np.maximum(square - mean * mean, 0.0), 0.0)
        std = np.sqrt(variance + between)
    return mean.astype(np.float32), std.astype(np.float32)
