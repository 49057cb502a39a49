"""What plays the part of time: how the record of activations becomes signals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlflow_dynamics.config import MIN_STEPS, MeasureConfig
from mlflow_dynamics.measures.stability import measure
from mlflow_dynamics.records import EpochActivations, Measures

Array = NDArray[np.float64]

MIN_EPOCHS = 24
MIN_DEPTH = 16


class SignalWindow:
    """The recent record as signals; live sessions and later recomputations use it alike.

    `steps` and `depth` hold the last `config.window` steps, `epochs` one value per layer and epoch.
    """

    def __init__(self, config: MeasureConfig) -> None:
        self._config = config
        self._recent: Array | None = None

    def append(self, activations: EpochActivations) -> None:
        """Take in an epoch's record; epochs must come in order."""
        mean = activations.mean.astype(np.float64)
        std = activations.std.astype(np.float64)
        match self._config.signal:
            case "rms":
                new = np.hypot(mean, std)
            case "mean":
                new = mean
            case _:
                new = std
        if self._config.protocol == "epochs":
            new = new.mean(axis=1, keepdims=True)
        self._recent = new if self._recent is None else np.concatenate([self._recent, new], axis=1)
        if self._config.protocol != "epochs":
            self._recent = self._recent[:, -self._config.window :]

    def signals(self) -> Array:
        """(layers, steps) for `steps`, (layers, epochs) for `epochs`, (steps, layers) for `depth`."""
        if self._recent is None:
            return np.empty((0, 0))
        return self._recent.T if self._config.protocol == "depth" else self._recent

    def measure(self) -> Measures:
        """The measures of the window as it is."""
        shortest = {"steps": MIN_STEPS, "epochs": MIN_EPOCHS, "depth": MIN_DEPTH}[self._config.protocol]
        return measure(self.signals(), estimator=self._config.resolved_estimator, min_steps=shortest)
