"""The interface of a convergence detector, which reads the stability index by epoch and says how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A detector's result after the epochs so far.

    Attributes:
        score: the statistic of convergence over its threshold: 1 or more says that convergence is near; NaN as
            long as there are too few epochs to say.
        rising: the statistic of the opposite, rising volatility, over its threshold: likewise.
    """

    score: float
    rising: float


class Detector(Protocol):
    """Reads the stability index epoch by epoch. A fresh detector is made whenever the past no longer counts."""

    @property
    def parameters(self) -> Mapping[str, float | int | str]:
        """What the readings depend on, to be logged with the run."""

    def update(self, epoch: int, stability: float) -> Reading:
        """Read one epoch's stability, which is finite; epochs ascend but may skip numbers."""


class DetectorFactory(Protocol):
    """Makes a detector. Each entry point of the group `mlflow_dynamics.detectors` names such a factory."""

    def __call__(self, *, planned_epochs: int | None) -> Detector:
        """A fresh detector for a training of `planned_epochs` (None: not known) after start-up."""
