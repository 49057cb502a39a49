"""What plays the part of time: how the record of activations becomes signals."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from mlflow_dynamics.config import MIN_STEPS, MeasureConfig
from mlflow_dynamics.measures.epoch import measure, undefined
from mlflow_dynamics.measures.signals import Array
from mlflow_dynamics.measures.uncertainty import integration_interval, surrogate_tests
from mlflow_dynamics.records import EpochActivations, Measures

MIN_EPOCHS: Final = 16
"""The shortest series of the `epochs` protocol. The error of "hk" on fractional Gaussian noise is 0.20 at 16
epochs (0.16 at 24, 0.14 at 32): enough to tell 0.3 from 0.9, not to tell 0.6 from 0.7."""

MIN_DEPTH: Final = 16
"""The fewest layers of the `depth` protocol: at 16 `dfa` has its first five box sizes, 4 to 8."""


class SignalWindow:
    """The recent record as signals; live sessions and later recomputations use it alike.

    `steps` and `depth` hold the last `config.window` steps, `epochs` one value per layer and epoch. NaN stands for
    a layer that did not run at a step: in `steps` a layer with any NaN in the window is left out, in `epochs` its
    mean is over the steps at which it ran, in `depth` the layer is left out of the profile.

    The record of an epoch without steps changes nothing. Another number of layers than before is an error.
    """

    def __init__(self, config: MeasureConfig) -> None:
        self._config = config
        self._recent: Array | None = None

    def append(self, activations: EpochActivations) -> None:
        """Take in an epoch's record; epochs must come in order.

        Raises:
            ValueError: the record has another number of layers than those before it.
        """
        known = self._recent
        if known is not None and len(known) != len(activations.mean):
            raise ValueError(
                f"activations of shape {activations.mean.shape} do not continue a record of {len(known)} layers."
            )
        if self._config.protocol == "epochs":
            new = _mean_of_steps(self._signal(activations, activations.mean.shape[1]))
        else:
            new = self._signal(activations, self._config.window)
        joined = new if known is None else np.concatenate([known, new], axis=1)
        if self._config.protocol != "epochs" and joined.shape[1] > self._config.window:
            # A copy: a view would keep the whole of the joined array alive.
            joined = joined[:, -self._config.window :].copy()
        self._recent = joined

    def signals(self) -> Array:
        """(layers, steps) for `steps`, (layers, epochs) for `epochs`, (steps, layers) for `depth`."""
        if self._recent is None:
            return np.empty((0, 0))
        if self._config.protocol == "depth":
            return self._recent[np.isfinite(self._recent).all(axis=1)].T
        return self._recent

    def measure(self) -> Measures:
        """The measures of the window as it is.

        In `depth` a signal is a step, not a layer: exponents and phase coherence of layers are NaN there.
        """
        found = self._measure()
        if not self._config.uncertainty or found.reason is not None:
            return found
        signals = self.signals()
        interval = integration_interval(signals, estimator=self._config.resolved_estimator)
        tests = surrogate_tests(signals)
        return replace(
            found,
            integration_low=interval.low,
            integration_high=interval.high,
            coupling_p=tests.coupling_p,
            metastability_p=tests.metastability_p,
        )

    def _measure(self) -> Measures:
        signals = self.signals()
        estimator = self._config.resolved_estimator
        match self._config.protocol:
            case "steps":
                return measure(signals, estimator=estimator, min_steps=MIN_STEPS)
            case "epochs":
                layers, epochs = signals.shape
                if epochs < MIN_EPOCHS:
                    return undefined(
                        (layers,),
                        f"{epochs} epochs are recorded; the epochs protocol needs at least {MIN_EPOCHS}.",
                    )
                return measure(signals, estimator=estimator, min_steps=MIN_EPOCHS)
            case _:
                return self._measure_depth(signals)

    def _measure_depth(self, profiles: Array) -> Measures:
        layers = 0 if self._recent is None else len(self._recent)
        steps, finite = profiles.shape
        if steps < MIN_STEPS:
            return undefined(
                (layers,), f"{steps} steps are recorded; the measures need at least {MIN_STEPS}."
            )
        if finite < MIN_DEPTH:
            return undefined(
                (layers,),
                f"{finite} layers are recorded and finite; the depth protocol needs at least {MIN_DEPTH}.",
                dropped=layers - finite,
            )
        found = measure(profiles, estimator=self._config.resolved_estimator, min_steps=MIN_DEPTH)
        nothing = np.full(layers, np.nan)
        return replace(
            found, layers_dropped=layers - finite, exponents=nothing, phase_coherence=nothing.copy()
        )

    def _signal(self, activations: EpochActivations, last: int) -> Array:
        """(layers, up to `last` steps) what stands for a layer at a step."""
        start = max(activations.mean.shape[1] - last, 0)
        mean = activations.mean[:, start:].astype(np.float64)
        std = activations.std[:, start:].astype(np.float64)
        match self._config.signal:
            case "rms":
                return np.hypot(mean, std)
            case "mean":
                return mean
            case _:
                return std


def _mean_of_steps(signal: Array) -> Array:
    """(layers, 1) mean over the steps at which a layer ran, NaN where it never did; (layers, 0) without steps."""
    if signal.shape[1] == 0:
        return signal
    ran = ~np.isnan(signal)
    count = ran.sum(axis=1)
    total = np.where(ran, signal, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)[:, None]
