"""Writes the evaluation as Markdown: the warning by itself, then all rules at equal savings, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlflow_dynamics.errors import DataError
from mlflow_dynamics.evaluation.rules import (
    AS_LIGHTNING,
    PATIENCE,
    RULES,
    WARNING,
    Rule,
    first,
    matched,
    outcome,
    outcomes,
)
from mlflow_dynamics.evaluation.traces import Array, Curves, curves_of

SAVED: Final = (0.2, 0.3, 0.4)
"""The saved fractions of the budget at which rules are compared."""

MATCHED: Final = 0.05
"""The largest difference between the fraction that the warning saves and the fraction it was tuned for. If the
difference is larger, the warning is not compared with patience at that fraction."""

WORTHWHILE: Final = 0.2
"""The warning is said to save epochs only if it loses at least this many points of accuracy less than patience."""

SAVES_EPOCHS: Final = "saves epochs"
DIAGNOSTIC: Final = "a diagnostic, no better stopping rule than patience"

RESAMPLES: Final = 2_000


def report(frame: pd.DataFrame, *, seed: int = 0) -> str:
    """Return the evaluation as Markdown: the warning by itself, then all rules at equal savings.

    Intervals are 95 % percentile bootstrap intervals over runs (Efron 1979, doi 10.1214/aos/1176344552).

    Args:
        frame: the epochs of the runs, as `read_traces` or `read_experiment` returns them.
        seed: the seed of the bootstrap.

    Raises:
        DataError: there are fewer than two configurations, so no rule can be tuned on another configuration.
    """
    seeded = curves_of(frame)
    runs = [run for run, _ in seeded]
    if len({run.configuration for run in runs}) < 2:
        raise DataError("The runs are of one configuration; rules are tuned on others, so give at least two.")
    rng = np.random.default_rng(seed)
    lightning_rules = {
        f"{name}, as Lightning counts": rule
        for name, rule in AS_LIGHTNING.items()
        if not np.array_equal(outcomes(rule, runs), outcomes(RULES[name], runs))
    }
    candidates = {**RULES, **lightning_rules, f"{WARNING}, of another seed's S": _of_another_seed(runs)}
    lines = [*_warning_lines(runs, rng), "", *_header(counts_differ=bool(lightning_rules))]
    patience = {saved: matched(RULES[PATIENCE], runs, saved)[:, 1] for saved in SAVED}
    better = False
    for name, rule in candidates.items():
        cells = []
        for saved in SAVED:
            found = matched(rule, runs, saved)
            cell = f"{_mean(found[:, 1], rng, '.2f')} at {_mean(found[:, 0], rng, '.2f')}"
            if name == WARNING:
                difference = found[:, 1] - patience[saved]
                below, above = bootstrap_interval(difference, rng)
                cell += f"; {difference.mean():+.2f} [{below:+.2f}, {above:+.2f}]"
                as_tuned = abs(found[:, 0].mean() - saved) <= MATCHED
                better |= as_tuned and above < 0 and difference.mean() <= -WORTHWHILE
            cells.append(cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", f"Verdict: {SAVES_EPOCHS if better else DIAGNOSTIC}."]
    return "\n".join(lines)


def bootstrap_interval(values: Array, rng: np.random.Generator) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean of (runs,) values."""
    drawn = rng.integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def _of_another_seed(runs: Sequence[Curves]) -> Rule:
    """Return a rule like the warning that looks at the S of the next seed of the same configuration."""
    others: dict[int, Array] = {}
    for run in runs:
        same = [other for other in runs if other.configuration == run.configuration]
        position = next(i for i, other in enumerate(same) if other is run)
        others[id(run)] = same[(position + 1) % len(same)].score
    return Rule(lambda run, c: first(others[id(run)] >= c), RULES[WARNING].settings)


def _warning_lines(runs: Sequence[Curves], rng: np.random.Generator) -> list[str]:
    warned = [run for run in runs if run.warned is not None]
    lead = np.array(
        [run.plateau - run.warned for run in warned if run.plateau is not None and run.warned is not None],
        dtype=np.float64,
    )
    flat = [run for run in runs if run.plateau is not None]
    missed = np.array([run.warned is None for run in flat])
    lines = [
        f"{len(runs)} runs of {len({run.configuration for run in runs})} configurations. At its own threshold the "
        f"warning fired in {len(warned)}.",
        f"Misses: it did not fire in {_share(missed, rng)} of the runs whose accuracy became flat before their last "
        "epoch.",
    ]
    if not warned:
        return lines
    stopped = np.array([outcome(run, run.warned) for run in warned])
    epochs = stopped[:, 0] * [len(run.accuracy) for run in warned]
    false = stopped[:, 1] > [200 * run.tolerance for run in warned]
    lines.append(
        f"False alarms: accuracy rose afterwards by more than twice the plateau's tolerance in {_share(false, rng)} of "
        "the runs in which it fired."
    )
    if len(lead) > 0:
        lines.append(
            f"Lead over the plateau: {_mean(lead, rng, '.1f')} epochs on average, median {np.median(lead):.0f} "
            "(negative: the warning came after it)."
        )
    lines.append(
        f"Stopped at the warning, these {len(warned)} runs save {_mean(epochs, rng, '.1f')} epochs on average, "
        f"{_mean(stopped[:, 0], rng, '.2f')} of the budget, and lose {_mean(stopped[:, 1], rng, '.2f')} points."
    )
    return lines


def _header(*, counts_differ: bool) -> list[str]:
    columns = " | ".join(f"tuned to save {saved:.0%}" for saved in SAVED)
    counts = (
        "where Lightning's count, which ends a run at a value that is not finite, stops elsewhere, it has a row of its "
        "own"
        if counts_differ
        else "Lightning's count stops each of these runs in the same epoch, so one row stands for both"
    )
    return [
        "Best validation accuracy lost, points [95 % interval] at the fraction of the budget that was saved [95 % "
        "interval]; of the warning also the difference to patience on accuracy. Patience counts as Keras does; "
        f"{counts}.",
        "",
        f"| rule | {columns} |",
        "| --- |" + " --- |" * len(SAVED),
    ]


def _share(happened: NDArray[np.bool_], rng: np.random.Generator) -> str:
    """Format a share and its interval, as `14 % [0, 27] (3 of 22)`."""
    if len(happened) == 0:
        return "none (0)"
    low, high = bootstrap_interval(100 * happened.astype(np.float64), rng)
    return f"{100 * happened.mean():.0f} % [{low:.0f}, {high:.0f}] ({happened.sum()} of {len(happened)})"


def _mean(values: Array, rng: np.random.Generator, form: str) -> str:
    """Format a mean and its interval, as `4.2 [3.1, 5.4]`."""
    low, high = bootstrap_interval(values, rng)
    return f"{values.mean():{form}} [{low:{form}}, {high:{form}}]"
