"""The stopping rules that are compared, with their settings, the outcome of a stop, and tuning on other runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from mlflow_dynamics.convergence import baselines as rules
from mlflow_dynamics.evaluation.traces import Array, Curves

WARNING: Final = "early warning"
PATIENCE: Final = "patience on validation accuracy"
LOSS_PATIENCE: Final = "patience on validation loss"

Semantics = Literal["keras", "lightning"]


@dataclass(frozen=True)
class Rule:
    """A stopping rule.

    Attributes:
        stop: (curves, setting) -> last epoch that is trained; None if the rule does not stop the run.
        settings: the settings among which the rule is tuned.
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
    "blind fraction of the budget": Rule(
        lambda run, f: max(round(f * len(run.accuracy)) - 1, 0), np.linspace(0.05, 1, 39).tolist()
    ),
}

AS_LIGHTNING: Final[Mapping[str, Rule]] = {
    PATIENCE: Rule(partial(_accuracy_patience, "lightning"), range(1, 31)),
    LOSS_PATIENCE: Rule(partial(_loss_patience, "lightning"), range(1, 31)),
}
"""The rules of patience as Lightning counts. They stop elsewhere only if a value is not finite (`patience_stop`)."""


def outcome(run: Curves, stop: int | None) -> tuple[float, float]:
    """Return (saved fraction of the budget, lost points of the best accuracy) of a stop that keeps the best weights."""
    last = len(run.accuracy) - 1 if stop is None else stop
    saved = 1 - (last + 1) / len(run.accuracy)
    return saved, 100 * float(np.nanmax(run.accuracy) - np.nanmax(run.accuracy[: last + 1]))


def outcomes(rule: Rule, runs: Sequence[Curves]) -> Array:
    """Return the outcome of each run under each setting, as (runs, settings, 2)."""
    return np.array([[outcome(run, rule.stop(run, s)) for s in rule.settings] for run in runs])


def matched(rule: Rule, runs: Sequence[Curves], saved: float) -> Array:
    """Return the outcomes (runs, 2) of a rule that is tuned for each run on the runs of all other configurations.

    The rule's setting is the one that saves, on these runs, a fraction of the budget nearest to `saved`.
    """
    table = outcomes(rule, runs)
    chosen = np.empty((len(runs), 2))
    for i, run in enumerate(runs):
        others = [k for k, other in enumerate(runs) if other.configuration != run.configuration]
        distance = np.abs(table[others, :, 0].mean(axis=0) - saved)
        chosen[i] = table[i, int(distance.argmin())]
    return chosen


def first(condition: NDArray[np.bool_]) -> int | None:
    """Return the first epoch at which the (epochs,) `condition` holds; None if it never holds."""
    return int(condition.argmax()) if condition.any() else None
