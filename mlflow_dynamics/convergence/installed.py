"""The detectors that are installed, by name."""

from __future__ import annotations

import importlib.metadata
from typing import Final

from mlflow_dynamics.convergence.detector import DetectorFactory
from mlflow_dynamics.convergence.volatility import VolatilityDetector
from mlflow_dynamics.errors import ConfigError, unknown_choice

GROUP: Final = "mlflow_dynamics.detectors"
"""The entry-point group in which distributions name their detectors."""

OURS: Final = "volatility"


def detector_names() -> list[str]:
    """The names of all detectors that are installed."""
    return sorted({OURS, *importlib.metadata.entry_points(group=GROUP).names})


def find_detector(name: str) -> DetectorFactory:
    """The detector called `name`; `volatility` is found even if this package is not installed.

    Raises:
        ConfigError: no installed distribution has a detector of this name, or it cannot be loaded.
    """
    if name == OURS:
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
