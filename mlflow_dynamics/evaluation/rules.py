"""Defines the stopping rules and their settings, computes what a stop saves and loses, tunes rules on other runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from mlflow_dynamics.convergence import baselines as rules
from mlflow_dynamics.convergence.baselines import first
from mlflow_dynamics.evaluation.traces import Array, Curves

WARNING: Final = "early warning"
PATIENCE: Final = "patience on validation accuracy"
LOSS_PATIENCE: Final = "patience on validation loss"

BLIND: Final = "blind fraction of the budget"

TARGETS: Final = np.linspace(0, 0.9, 91)
"""The fractions of the budget that a rule is tuned to save."""

Semantics = Literal["keras", "lightning"]


@dataclass(frozen=True)
class Rule:
    """A stopping rule, and the settings among which it is tuned.

    Attributes:
        stop: (curves, setting) -> the last epoch that is trained, or None if the rule does not stop the run.
        settings: the settings that are tried.
    """

    stop: Callable[[Curves, float], int | None]
    settings: Sequence[float]


def _accuracy_patience(semantics: Semantics, run: Curves, patience: float) -> int | None:
    return rules.patience_stop(run.accuracy, patience=int(patience), mode="max", semantics=semantics)


def _loss_patience(semantics: Semantics, run: Curves, patience: float) -> int | None:
    return rules.patience_stop(run.validation_loss, patience=int(patience), mode="min", semantics=semantics)


RULES: Final[Mapping[str, Rule]] = {
    WARNING: Rule(lambda run, c: first(run.score >= c), np.geomspace(0.02, 3, 60).tolist()),
    PATIENCE: Rule(partial(_accuracy_patience, "keras"), range(1, 31)),
    LOSS_PATIENCE: Rule(partial(_loss_patience, "keras"), range(1, 31)),
    "Prechelt GL": Rule(
        lambda run, a: rules.generalization_loss_stop(run.validation_loss, alpha=a),
        np.geomspace(0.01, 300, 60).tolist(),
    ),
    "Prechelt PQ": Rule(
        lambda run, a: rules.progress_quotient_stop(run.training_loss, run.validation_loss, alpha=a),
        np.geomspace(0.001, 30, 60).tolist(),
    ),
    "Prechelt UP": Rule(
        lambda run, s: rules.successive_increase_stop(run.validation_loss, increases=int(s)), range(1, 7)
    ),
    "rolling deviation of the training loss": Rule(
        lambda run, r: rules.rolling_deviation_stop(run.training_loss, ratio=r),
        np.linspace(0.02, 1, 50).tolist(),
    ),
    BLIND: Rule(lambda run, f: max(round(f * len(run.accuracy)) - 1, 0), np.linspace(0.05, 1, 39).tolist()),
}

AS_LIGHTNING: Final[Mapping[str, Rule]] = {
    PATIENCE: Rule(partial(_accuracy_patience, "lightning"), range(1, 31)),
    LOSS_PATIENCE: Rule(partial(_loss_patience, "lightning"), range(1, 31)),
}
"""The same rules with Lightning's way of counting. Stops differ only if a value is not finite (`patience_stop`)."""


def outcome(run: Curves, stop: int | None) -> tuple[float, float]:
    """Return (fraction of the budget saved, points of best accuracy lost) of a stop that keeps the best weights."""
    last = len(run.accuracy) - 1 if stop is None else stop
    saved = 1 - (last + 1) / len(run.accuracy)
    return saved, float(run.remaining_gain[last])


def outcomes(rule: Rule, runs: Sequence[Curves]) -> Array:
    """Return (runs, settings, 2): the `outcome` of each run under each setting."""
    return np.array([[outcome(run, rule.stop(run, s)) for s in rule.settings] for run in runs])


def tuned(table: Array, clusters: NDArray[np.int64]) -> Array:
    """Return (runs, TARGETS, 2): the outcomes of a rule that was tuned to save each of `TARGETS`.

    For each run, the rule is tuned on the clusters to which the run does not belong. If the wanted saving lies between
    those of two settings, the outcomes of both are averaged with weights, so that the mean saving on those clusters is
    the wanted one.

    Args:
        table: (runs, settings, 2), as `outcomes` returns it.
        clusters: (runs,), as `clusters_of` returns it.
    """
    chosen = np.empty((len(table), len(TARGETS), 2))
    for cluster in np.unique(clusters):
        own = clusters == cluster
        saved = table[~own, :, 0].mean(axis=0)
        order = np.argsort(saved, kind="stable")
        position = np.interp(TARGETS, saved[order], np.arange(len(order)))
        low = np.floor(position).astype(int)
        part = (position - low)[:, None]
        high = np.minimum(low + 1, len(order) - 1)
        chosen[own] = (1 - part) * table[own][:, order[low]] + part * table[own][:, order[high]]
    return chosen


def lost_at(saved: Sequence[float], found: Array, weights: Array) -> Array:
    """Return (samples, savings): the points lost at exactly these mean savings; NaN if the rule cannot save so much.

    Args:
        saved: fractions of the budget.
        found: (runs, TARGETS, 2), as `tuned` returns it.
        weights: (samples, runs), the weight of each run in each sample; a row sums to 1.
    """
    mean = np.tensordot(weights, found, axes=1)
    reached = np.maximum.accumulate(mean[:, :, 0], axis=1)
    return np.array(
        [np.interp(saved, x, y, right=np.nan) for x, y in zip(reached, mean[:, :, 1], strict=True)]
    )
