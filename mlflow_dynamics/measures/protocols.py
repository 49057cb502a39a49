"""How the record of activations becomes signals: what plays the part of time in each protocol."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

import numpy as np

from mlflow_dynamics.config import MIN_STEPS, MeasureConfig
from mlflow_dynamics.measures.epoch import measure, undefined
from mlflow_dynamics.measures.signals import Real, bridge_lost_steps
from mlflow_dynamics.measures.uncertainty import integration_interval, surrogate_tests
from mlflow_dynamics.measures.windows import (
    EPOCHS_THAT_DECIDE,
    LEAST_JUDGED,
    MOST_STEPS,
    changed,
    window_rule,
)
from mlflow_dynamics.records import EpochActivations, Measures

MIN_EPOCHS: Final = 16
"""The shortest series of the `epochs` protocol. The error of "hk" on fractional Gaussian noise is 0.20 at 16
epochs (0.16 at 24, 0.14 at 32): enough to tell 0.3 from 0.9, not to tell 0.6 from 0.7."""

MIN_DEPTH: Final = 16
"""The fewest layers of the `depth` protocol: at 16 `dfa` has its first three box sizes, 4, 6 and 8."""


class SignalWindow:
    """The recent record as signals; live sessions and later recomputations both use it.

    In the protocols `steps` and `depth` the window holds the last steps (`measures.windows` says how many); in `epochs`
    it holds one value for each layer and epoch so far. NaN stands for a layer that did not run at a step. In `steps` a
    layer with any NaN in the window is left out, in `epochs` its mean is over the steps at which it ran, in `depth` the
    layer is left out of the profile.

    The record of an epoch without steps changes nothing. Another number of layers than before is an error.
    """

    def __init__(self, config: MeasureConfig) -> None:
        self._config = config
        self._recent: Real | None = None
        self._steps = 0
        self._first_epochs: list[int] = []
        # The length in steps of the current epochs, and the number of steps before epochs had this length.
        self._epoch = 0
        self._before = 0

    def append(self, activations: EpochActivations) -> None:
        """Take in an epoch's record; epochs must come in order.

        Raises:
            ValueError: the record has another number of layers than the records before it.
        """
        known = self._recent
        if known is not None and len(known) != len(activations.mean):
            raise ValueError(
                f"activations of shape {activations.mean.shape} do not continue a record of {len(known)} layers."
            )
        steps = activations.mean.shape[1]
        if steps and len(self._first_epochs) < EPOCHS_THAT_DECIDE:
            self._first_epochs.append(steps)
            self._epoch = max(self._first_epochs)
        elif steps and changed(steps, self._epoch):
            self._epoch, self._before = steps, self._steps
        self._steps += steps
        if self._config.protocol == "epochs":
            new = _mean_of_steps(self._signal(activations, steps))
        else:
            new = self._signal(activations, self._length)
        joined = new if known is None else np.concatenate([known, new], axis=1)
        if self._config.protocol != "epochs" and joined.shape[1] > self._length:
            # A copy: a view would keep the whole of the joined array alive.
            joined = joined[:, -self._length :].copy()
        self._recent = joined

    @property
    def start_up(self) -> bool:
        """Whether the window is not full yet, or holds some of the training's first steps.

        If the epochs change their length, start-up also lasts through the first epoch of the new length, and as long as
        the window holds steps from before that. Start-up never ends if epochs have fewer than 8 steps, or in the
        protocol `epochs`, whose window holds the whole training.
        """
        if self._config.protocol == "epochs" or self._epoch < LEAST_JUDGED:
            return True
        rule = window_rule(self._first_epochs, self._config.window)
        # At least the first epoch of the new length belongs to start-up, however long it is.
        mixed = self._before > 0 and self._steps <= self._before + max(rule.length - 1, self._epoch)
        return mixed or rule.starting_up(self._steps)

    @property
    def _length(self) -> int:
        if not self._first_epochs:
            return self._config.window or MOST_STEPS
        return window_rule(self._first_epochs, self._config.window).length

    def signals(self) -> Real:
        """(layers, steps) for `steps`, (layers, epochs) for `epochs`, (steps, layers) for `depth`."""
        if self._recent is None:
            return np.empty((0, 0))
        if self._config.protocol == "depth":
            recent = bridge_lost_steps(self._recent)
            return recent[np.isfinite(recent).all(axis=1)].T
        return self._recent

    def measure(self) -> Measures:
        """The measures of the current window.

        In the protocol `depth` a signal is a step, not a layer, so exponents and phase coherence of layers are NaN.
        """
        steps = 0 if self._recent is None else self._recent.shape[1]
        found = replace(self._measure(), window=steps, start_up=self.start_up)
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

    def _measure_depth(self, profiles: Real) -> Measures:
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
            found,
            # A mean over steps is a profile of the network, not a signal that layers share.
            global_integration=math.nan,
            layers_dropped=layers - finite,
            exponents=nothing,
            phase_coherence=nothing.copy(),
        )

    def _signal(self, activations: EpochActivations, last: int) -> Real:
        """(layers, up to `last` steps) the configured signal of each layer and step, as precise as the record."""
        start = max(activations.mean.shape[1] - last, 0)
        mean, std = activations.mean[:, start:], activations.std[:, start:]
        match self._config.signal:
            case "rms":
                precise = np.hypot(mean.astype(np.float64), std.astype(np.float64))
                return precise.astype(np.result_type(mean, std))
            case "mean":
                return mean
            case _:
                return std


def _mean_of_steps(signal: Real) -> Real:
    """(layers, 1) mean over the steps at which a layer ran, NaN if it never ran; (layers, 0) if there are no steps."""
    if signal.shape[1] == 0:
        return signal
    ran = ~np.isnan(signal)
    count = ran.sum(axis=1)
    total = np.where(ran, signal, 0.0).sum(axis=1, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)[:, None]
