"""What a convergence detector is, and how one is found by its name."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from mlflow_dynamics.errors import ConfigError, unknown_choice

GROUP: Final = "mlflow_dynamics.detectors"
"""The entry-point group in which distributions name their detectors."""

OURS: Final = "volatility"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a detector makes of the epochs so far.

    Attributes:
        score: the statistic of convergence over its threshold: 1 or more says that convergence is near; NaN as
            long as there are too few epochs to say.
        rising: likewise of the opposite, rising volatility.
    """

    score: float
    rising: float


class Detector(Protocol):
    """Reads the stability index epoch by epoch. A fresh one is made wherever the past no longer counts."""

    @property
    def parameters(self) -> Mapping[str, float | int | str]:
        """What its readings depend on, to be logged with the run."""

    def update(self, epoch: int, stability: float) -> Reading:
        """Read one epoch's stability, which is finite; epochs ascend but may skip numbers."""


class DetectorFactory(Protocol):
    """Makes a detector: what an entry point of the group `mlflow_dynamics.detectors` names."""

    def __call__(self, *, planned_epochs: int | None) -> Detector:
        """A fresh detector for a training of `planned_epochs` (None: not known)."""


def detector_names() -> list[str]:
    """The names of all detectors that are installed."""
    return sorted({OURS, *importlib.metadata.entry_points(group=GROUP).names})


def find_detector(name: str) -> DetectorFactory:
    """The detector called `name`; `volatility` is there even where this package is not installed.

    Raises:
        ConfigError: no installed distribution has a detector of this name, or it cannot be loaded.
    """
    if name == OURS:
        from mlflow_dynamics.convergence.volatility import VolatilityDetector

        return VolatilityDetector
    found = importlib.metadata.entry_points(group=GROUP, name=name)
    if not found:
        raise unknown_choice("detector", name, detector_names())
    entry = next(iter(found))
    try:
        factory: DetectorFactory = entry.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"detector={name!r} cannot be loaded from {entry.value!r} ({error}); reinstall or repair the package "
            f"that provides it."
        ) from error
    return factory
