"""Writes the evaluation as Markdown: the warning by itself, then all rules at equal savings, with intervals."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlflow_dynamics.convergence.baselines import first
from mlflow_dynamics.errors import DataError
from mlflow_dynamics.evaluation.fitted import FORECAST, fitted_rules
from mlflow_dynamics.evaluation.rules import (
    AS_LIGHTNING,
    BLIND,
    PATIENCE,
    RULES,
    WARNING,
    Rule,
    lost_at,
    outcome,
    outcomes,
    tuned,
)
from mlflow_dynamics.evaluation.statistics import (
    ENOUGH_CLUSTERS,
    ENOUGH_RUNS,
    LEVEL,
    Clusters,
    interval,
    resampled,
    share_interval,
)
from mlflow_dynamics.evaluation.traces import Array, Curves, clusters_of, curves_of

SAVED: Final = (0.05, 0.2, 0.3, 0.4)
"""The fractions of the budget saved at which rules are compared."""

WORTHWHILE: Final = 0.2
"""Points of accuracy by which a rule must lose less than patience and a blind fraction to be said to save epochs."""

SAVES_EPOCHS: Final = "saves epochs"
NO_BETTER: Final = "no better stopping rule than patience or a blind fraction"
DIAGNOSTIC: Final = f"a diagnostic, {NO_BETTER}"
CANNOT_TELL: Final = "cannot tell"


def report(frame: pd.DataFrame, *, seed: int = 0) -> str:
    """Return the evaluation as Markdown: the warning by itself, then all rules at equal savings.

    All intervals are 95 % intervals. For means, they come from a bootstrap of whole clusters (`statistics.interval`);
    for shares, they are Wilson's (`statistics.share_interval`).

    Raises:
        DataError: all runs are in one cluster (`traces.clusters_of`), so that no rule can be tuned on other runs.
    """
    runs = [run for run, _ in curves_of(frame)]
    clusters = clusters_of(runs)
    if clusters.max() == 0:
        raise DataError(
            "The runs are of one configuration, or of some that share epochs; rules are tuned on others, so give at "
            "least two that share none."
        )
    weights = resampled(clusters, np.random.default_rng(seed))
    rules = {**RULES, **fitted_rules(runs), f"{WARNING}, of another seed's S": _of_another_seed(runs)}
    tables = {name: outcomes(rule, runs) for name, rule in rules.items()}
    elsewhere = {name: outcomes(rule, runs) for name, rule in AS_LIGHTNING.items()}
    elsewhere = {
        f"{name}, as Lightning counts": table
        for name, table in elsewhere.items()
        if not np.array_equal(table, tables[name])
    }
    lost = {name: _lost(tuned(table, clusters), weights) for name, table in {**tables, **elsewhere}.items()}
    lines = [*_warning_lines(runs, clusters), "", *_header(counts_differ=bool(elsewhere))]
    for name, of_rule in lost.items():
        cells = []
        for saved in SAVED:
            cell = _cell(of_rule[saved], clusters)
            if name != BLIND and cell != UNREACHED:
                cell += f"; {_cell(of_rule[saved] - lost[BLIND][saved], clusters, '+.2f')}"
            cells.append(cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines.append("")
    if FORECAST in lost:
        lines.append(f"Forecast: {_verdict(FORECAST, lost, clusters)}.")
    verdict = _verdict(WARNING, lost, clusters)
    lines.append(f"Verdict: {DIAGNOSTIC if verdict == NO_BETTER else verdict}.")
    return "\n".join(lines)


def for_terminal(report: str, *, width: int) -> str:
    """Return the report with lines of at most `width` characters, except cells that are longer.

    Instead of the row of a Markdown table, a rule has a line for each saving.
    """
    lines: list[str] = []
    header: list[str] = []
    for line in report.splitlines():
        first, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            lines += textwrap.wrap(line, width) or [""]
        elif not header:
            header = cells
        elif not first.startswith("---"):
            lines += [first, *(f"  {name}  {cell}" for name, cell in zip(header, cells, strict=True))]
    return "\n".join(lines)


UNREACHED: Final = "saves less"


def _lost(found: Array, weights: Array) -> dict[float, Array]:
    """Return saving -> points lost, for each of `SAVED`: over all runs, and then in each bootstrap sample.

    The points are NaN if the rule cannot save so much.
    """
    whole = np.full((1, weights.shape[1]), 1 / weights.shape[1])
    return dict(zip(SAVED, lost_at(SAVED, found, np.concatenate([whole, weights])).T, strict=True))


def _cell(lost: Array, clusters: Clusters, form: str = ".2f") -> str:
    """Return `1.54 [0.88, 2.83]`, or `UNREACHED` if the rule cannot save so much.

    It cannot if it does not over all runs, or in more than 2.5 % of the bootstrap samples.
    """
    if np.isnan(lost[0]) or np.isnan(lost[1:]).mean() > (1 - LEVEL) / 2:
        return UNREACHED
    low, high = interval(lost[1:], clusters)
    return f"{lost[0]:{form}} [{low:{form}}, {high:{form}}]"


def _verdict(name: str, lost: dict[str, dict[float, Array]], clusters: Clusters) -> str:
    """Say whether a rule saves epochs.

    It does if at one of `SAVED` it loses less than patience and less than a blind fraction: both times by `WORTHWHILE`
    or more, and with an interval of the difference that lies below 0.
    """
    count = len(np.unique(clusters))
    if count < ENOUGH_CLUSTERS:
        return f"{CANNOT_TELL} from {count} clusters of runs, at least {ENOUGH_CLUSTERS} are needed"
    compared = [saved for saved in SAVED if _cell(lost[name][saved], clusters) != UNREACHED]
    if not compared:
        return f"{CANNOT_TELL}, too little is saved for a comparison"
    better = []
    for saved in compared:
        differences = [lost[name][saved] - lost[other][saved] for other in (PATIENCE, BLIND)]
        better.append(all(d[0] <= -WORTHWHILE and interval(d[1:], clusters)[1] < 0 for d in differences))
    return SAVES_EPOCHS if any(better) else NO_BETTER


def _of_another_seed(runs: Sequence[Curves]) -> Rule:
    """Return a control: the warning that sees the score of the configuration's next seed in place of the run's own."""
    others: dict[int, Array] = {}
    for run in runs:
        same = [other for other in runs if other.configuration == run.configuration]
        position = next(i for i, other in enumerate(same) if other is run)
        others[id(run)] = same[(position + 1) % len(same)].score
    return Rule(lambda run, c: first(others[id(run)] >= c), RULES[WARNING].settings)


def _warning_lines(runs: Sequence[Curves], clusters: Clusters) -> list[str]:
    warned = np.array([run.warned is not None for run in runs])
    able = np.array([bool(np.isfinite(run.score).any()) for run in runs])
    flat = np.array([run.plateau is not None for run in runs])
    too_late = np.array(
        [run.plateau is not None and not np.isfinite(run.score[: run.plateau]).any() for run in runs]
    )
    lines = [
        f"{len(runs)} runs of {len({run.configuration for run in runs})} configurations in "
        f"{len(np.unique(clusters))} clusters: what shares epochs is drawn together in every interval.",
        f"At its own threshold the warning fired in {warned.sum()} of the {able.sum()} runs in which it can fire. In "
        f"{(~able).sum()} it cannot, for want of epochs since start-up or a step of the rate, which is no miss.",
        f"Misses: it did not fire in {_share(~warned, flat & able, clusters)} of the runs whose accuracy became flat "
        f"before their last epoch; in {(too_late & able).sum()} of these the warning can fire no sooner than accuracy "
        "is flat.",
    ]
    stops = np.array([outcome(run, run.warned) for run in runs])
    false = stops[:, 1] > [200 * run.tolerance for run in runs]
    lead = np.array(
        [
            run.plateau - run.warned if run.plateau is not None and run.warned is not None else np.nan
            for run in runs
        ]
    )
    epochs = stops[:, 0] * [len(run.accuracy) for run in runs]
    noise = [
        100 * np.nanstd(np.diff(run.accuracy[-max(3, len(run.accuracy) // 3) :]), ddof=1) for run in runs
    ]
    return [
        *lines,
        "False alarms: accuracy rose afterwards by more than twice the plateau's tolerance in "
        f"{_share(false, warned, clusters)} of the runs in which it fired.",
        f"Lead over the plateau, epochs (negative: the warning came after it): {_mean(lead, flat & warned, clusters)}.",
        f"Stopped at the warning, a run saves, in epochs: {_mean(epochs, warned, clusters)}; it loses, in points: "
        f"{_mean(stops[:, 1], warned, clusters)}.",
        f"Validation accuracy moves by {np.median(noise):.1f} points from epoch to epoch (standard deviation in the "
        f"last third, median over runs; {np.max(noise):.1f} at most), the plateau's tolerance is "
        f"{100 * min(run.tolerance for run in runs):.1f} to {100 * max(run.tolerance for run in runs):.1f}: where "
        "accuracy moves by more, the epoch of a plateau is a matter of chance.",
    ]


def _header(*, counts_differ: bool) -> list[str]:
    columns = " | ".join(f"at {saved:.0%} saved" for saved in SAVED)
    counts = (
        "where Lightning's count, which ends a run at a value that is not finite, stops elsewhere, it has a row of its "
        "own"
        if counts_differ
        else "Lightning's count stops each of these runs in the same epoch, so one row stands for both"
    )
    return [
        "Best validation accuracy lost, points [95 % interval], where each rule, tuned on the other clusters, saves "
        "just the same fraction of the budget; after the semicolon the difference to a blind fraction. Patience counts "
        f"as Keras does; {counts}.",
        "",
        f"| rule | {columns} |",
        "| --- |" + " --- |" * len(SAVED),
    ]


def _share(happened: NDArray[np.bool_], among: NDArray[np.bool_], clusters: Clusters) -> str:
    """Return `14 % [5, 33] (3 of 22)`. For fewer than `ENOUGH_RUNS` runs, the text says that they are too few."""
    if not among.any():
        return "none (0)"
    some = happened[among]
    low, high = share_interval(some, clusters[among])
    few = "" if len(some) >= ENOUGH_RUNS else f"; too few to tell, at least {ENOUGH_RUNS} are needed"
    return f"{100 * some.mean():.0f} % [{100 * low:.0f}, {100 * high:.0f}] ({some.sum()} of {len(some)}{few})"


def _mean(values: Array, among: NDArray[np.bool_], clusters: Clusters) -> str:
    """Return `4.2 [3.1, 5.4]`. For fewer than `ENOUGH_CLUSTERS` clusters, the text only says that they cannot tell."""
    own = clusters[among]
    count = len(np.unique(own))
    if count < ENOUGH_CLUSTERS:
        return f"{CANNOT_TELL} from {among.sum()} runs of {count} clusters, at least {ENOUGH_CLUSTERS} are needed"
    _, own = np.unique(own, return_inverse=True)
    low, high = interval(resampled(own, np.random.default_rng(0)) @ values[among], own)
    return f"{values[among].mean():.1f} [{low:.1f}, {high:.1f}]"
