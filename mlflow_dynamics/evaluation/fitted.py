"""Fits stopping rules on other runs: they forecast what a run would still gain, from other data sets and networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from mlflow_dynamics.convergence.baselines import first
from mlflow_dynamics.evaluation.rules import Rule
from mlflow_dynamics.evaluation.traces import Array, Curves

FORECAST: Final = "forecast of the remaining gain"
PER_SCHEDULE: Final = "blind fraction per schedule"

LOOK_BACK: Final = 5
"""The forecast looks at the moves of accuracy and training loss over so many epochs. Before, there is no forecast."""

SETTINGS: Final = 100


def fitted_rules(runs: Sequence[Curves]) -> dict[str, Rule]:
    """Return the rules that stop a run when its forecast gain is at most the setting, in points of accuracy.

    The gain is forecast from the run's strangers: the runs of another data set and also of another network, and for
    `PER_SCHEDULE` only those of the same schedule. A rule is left out if a run has no strangers.
    """
    forecasts = {FORECAST: _regression, PER_SCHEDULE: _mean_of_schedule}
    found = {}
    for name, forecast in forecasts.items():
        expected: dict[int, Array] = {}
        for run in runs:
            strangers = [
                other
                for other in runs
                if all(a != b for a, b in zip(other.configuration[:2], run.configuration[:2], strict=True))
                and (name == FORECAST or other.configuration[-1] == run.configuration[-1])
            ]
            if strangers:
                # Forecasts are rounded, so that the last digit of a machine does not decide which runs a setting stops.
                expected[id(run)] = np.round(forecast(run, strangers), 6)
        said = [value for values in expected.values() for value in values if np.isfinite(value)]
        if said and len(expected) == len(runs):
            found[name] = _rule(expected, np.quantile(said, np.linspace(0, 1, SETTINGS)))
    return found


def _rule(expected: dict[int, Array], levels: Array) -> Rule:
    return Rule(lambda run, level: first(expected[id(run)] <= level), [-np.inf, *levels])


def _elapsed(run: Curves) -> Array:
    return np.arange(1, len(run.accuracy) + 1) / len(run.accuracy)


def _mean_of_schedule(run: Curves, strangers: Sequence[Curves]) -> Array:
    """Return the mean gain that strangers of the same schedule still had ahead at the same fraction of their budget."""
    gains = [np.interp(_elapsed(run), _elapsed(other), other.remaining_gain) for other in strangers]
    return np.mean(gains, axis=0)


def _regression(run: Curves, strangers: Sequence[Curves]) -> Array:
    """Forecast the remaining gain by least squares from what is known at an epoch (`_known`), fitted on strangers."""
    known = np.concatenate([_known(other) for other in strangers])
    gain = np.concatenate([other.remaining_gain for other in strangers])
    whole = np.isfinite(known).all(axis=1) & np.isfinite(gain)
    coefficients = np.linalg.lstsq(known[whole], gain[whole], rcond=None)[0]
    return np.asarray(_known(run) @ coefficients)


def _known(run: Curves) -> Array:
    """Return (epochs, 7): a constant, time, rate, and the last moves of accuracy and loss, NaN before `LOOK_BACK`."""
    elapsed = _elapsed(run)
    best = 100 * np.fmax.accumulate(run.accuracy)
    loss = np.log(np.where(run.training_loss > 0, run.training_loss, np.nan))
    moved = np.full((2, len(elapsed)), np.nan)
    moved[:, LOOK_BACK:] = [best[LOOK_BACK:] - best[:-LOOK_BACK], loss[LOOK_BACK:] - loss[:-LOOK_BACK]]
    one = np.ones(len(elapsed))
    return np.stack([one, elapsed, elapsed**2, run.rate, run.rate * (1 - elapsed), *moved], axis=1)
