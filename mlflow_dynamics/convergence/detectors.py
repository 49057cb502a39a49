"""What a detector is, and how one is found by name."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, cast

from mlflow_dynamics.errors import unknown_choice

ENTRY_POINTS: Final = "mlflow_dynamics.detectors"
OURS: Final = "volatility"


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A detector's statistics over their thresholds: 1 or more is a detection, NaN is too early to tell.

    Attributes:
        falling: evidence that the stability index has become quieter.
        rising: evidence that it has become noisier.
    """

    falling: float
    rising: float


class Detector(Protocol):
    """Reads the stability index epoch by epoch. A distribution offers one under `mlflow_dynamics.detectors`.

    The entry point names a callable that takes `planned_epochs: int | None` and returns a detector.
    """

    def update(self, stability: float) -> Scores:
        """Take the next epoch's stability, always finite, and say what the series so far shows."""
        ...

    def reset(self) -> None:
        """Forget the series: the training has entered another regime."""
        ...


def find_detector(name: str) -> Callable[[int | None], Detector]:
    """The factory of the detector called `name`.

    Raises:
        ConfigError: no installed distribution offers it.
    """
    if name == OURS:
        # Known without its entry point, so that a source folder that was never installed works.
        from mlflow_dynamics.convergence.volatility import VolatilityDetector

        return VolatilityDetector
    offered = {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    if name not in offered:
        raise unknown_choice("detector", name, sorted({OURS, *offered}))
    return cast("Callable[[int | None], Detector]", offered[name].load())
