"""Does the early warning help? It beside other stopping rules, on finished runs: what each saves, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlflow_dynamics.convergence import ConvergenceMonitor, Schedule
from mlflow_dynamics.convergence import baselines as rules
from mlflow_dynamics.convergence.plateau import PLATEAU_TOLERANCE, plateau_epoch
from mlflow_dynamics.convergence.schedule import SMOOTH, is_step
from mlflow_dynamics.errors import DataError
from mlflow_dynamics.tracking import names
from mlflow_dynamics.tracking.query import load_metrics

Array = NDArray[np.float64]

CONFIGURATION: Final = ("dataset", "model", "schedule")
"""Runs that agree in these differ by their seed alone."""

NEEDED: Final = (names.STABILITY, names.TRAIN_LOSS, names.VALIDATION_LOSS, names.VALIDATION_ACCURACY)
SAVED: Final = (0.2, 0.3, 0.4)
"""Fractions of the budget at which rules are compared."""

MATCHED: Final = 0.05
"""A rule whose saving is further from what it was tuned for is not compared at that saving."""

WORTHWHILE: Final = 0.2
"""Points of accuracy by which the warning must lose less than patience to be said to save epochs."""

SAVES_EPOCHS: Final = "saves epochs"
DIAGNOSTIC: Final = "a diagnostic, no better stopping rule than patience"

MANY_CLASSES: Final = 100
RESAMPLES: Final = 2_000

WARNING: Final = "early warning"
PATIENCE: Final = "patience on validation accuracy"


@dataclass(frozen=True, kw_only=True)
class Curves:
    """One finished run.

    Attributes:
        configuration: its data set, model and schedule.
        accuracy, validation_loss, training_loss: (epochs,).
        score: (epochs,) the early warning's statistic over its threshold, NaN where there is none.
        warned: the epoch of the warning at its own threshold, or None.
        plateau: the epoch from which validation accuracy is flat, or None.
        tolerance: what counts as flat, of an accuracy in [0, 1].
    """

    configuration: tuple[str, ...]
    accuracy: Array
    validation_loss: Array
    training_loss: Array
    score: Array
    warned: int | None
    plateau: int | None
    tolerance: float


@dataclass(frozen=True)
class Rule:
    """A stopping rule with the settings among which it is tuned: (curves, setting) -> last epoch, or None."""

    stop: Callable[[Curves, float], int | None]
    settings: Sequence[float]


RULES: Final[Mapping[str, Rule]] = {
    WARNING: Rule(lambda run, c: _first(run.score >= c), np.geomspace(0.02, 3, 60).tolist()),
    PATIENCE: Rule(
        lambda run, p: rules.patience_stop(run.accuracy, patience=int(p), mode="max"), range(1, 31)
    ),
    "patience on validation loss": Rule(
        lambda run, p: rules.patience_stop(run.validation_loss, patience=int(p), mode="min"), range(1, 31)
    ),
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


def read_traces(path: Path) -> pd.DataFrame:
    """A CSV file of epochs: the columns of `CONFIGURATION`, seed, epoch, metrics, and optionally `classes`.

    Raises:
        DataError: there is no such file, or it lacks a column.
    """
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a CSV file of epochs: {error}") from error
    return _checked(frame, str(path))


def read_experiment(experiment: str, filter_string: str = "") -> pd.DataFrame:
    """The same from an MLflow experiment's runs, which log dataset, model, schedule and seed as parameters.

    Raises:
        TrackingError: the experiment is unknown or cannot be read.
        DataError: its runs lack a metric.
    """
    frame = load_metrics(experiment=experiment, filter_string=filter_string, params=(*CONFIGURATION, "seed"))
    frame.columns = frame.columns.str.removeprefix("params.")
    return _checked(frame, f"experiment {experiment!r}")


def curves_of(frame: pd.DataFrame) -> list[tuple[Curves, str]]:
    """Each run of the frame with its seed, ordered by configuration and seed."""
    found = []
    for (*configuration, seed), run in frame.groupby([*CONFIGURATION, "seed"], sort=True):
        run = run.sort_values("epoch")
        classes = run["classes"].iloc[0] if "classes" in run else 0
        tolerance = 0.01 if classes >= MANY_CLASSES else PLATEAU_TOLERANCE
        monitor = ConvergenceMonitor(schedule=_schedule(str(configuration[-1]), run))
        verdicts = [
            monitor.update(int(epoch), stability, loss=loss)
            for epoch, stability, loss in zip(
                run["epoch"], run[names.STABILITY], run[names.TRAIN_LOSS], strict=True
            )
        ]
        accuracy = run[names.VALIDATION_ACCURACY].to_numpy(dtype=np.float64)
        curves = Curves(
            configuration=tuple(map(str, configuration)),
            accuracy=accuracy,
            validation_loss=run[names.VALIDATION_LOSS].to_numpy(dtype=np.float64),
            training_loss=run[names.TRAIN_LOSS].to_numpy(dtype=np.float64),
            score=np.array([verdict.score for verdict in verdicts]),
            warned=monitor.converged_epoch,
            plateau=plateau_epoch(accuracy, tolerance=tolerance),
            tolerance=tolerance,
        )
        found.append((curves, str(seed)))
    return found


def outcome(run: Curves, stop: int | None) -> tuple[float, float]:
    """(fraction of the budget saved, best accuracy lost in points) of a stop that keeps the best weights."""
    last = len(run.accuracy) - 1 if stop is None else stop
    saved = 1 - (last + 1) / len(run.accuracy)
    return saved, 100 * float(np.nanmax(run.accuracy) - np.nanmax(run.accuracy[: last + 1]))


def matched(rule: Rule, runs: Sequence[Curves], saved: float) -> Array:
    """(runs, 2) outcomes of a rule tuned to save that fraction on all other configurations than the run's own."""
    table = np.array([[outcome(run, rule.stop(run, s)) for s in rule.settings] for run in runs])
    chosen = np.empty((len(runs), 2))
    for i, run in enumerate(runs):
        others = [k for k, other in enumerate(runs) if other.configuration != run.configuration]
        distance = np.abs(table[others, :, 0].mean(axis=0) - saved)
        chosen[i] = table[i, int(distance.argmin())]
    return chosen


def report(frame: pd.DataFrame, *, seed: int = 0) -> str:
    """The evaluation as Markdown: the warning by itself, then all rules at matched savings.

    Intervals are 95 % percentile bootstrap intervals over runs (Efron 1979, doi 10.1214/aos/1176344552).

    Raises:
        DataError: fewer than two configurations, so that nothing can be tuned on another one.
    """
    seeded = curves_of(frame)
    runs = [run for run, _ in seeded]
    if len({run.configuration for run in runs}) < 2:
        raise DataError("The runs are of one configuration; rules are tuned on others, so give at least two.")
    rng = np.random.default_rng(seed)
    candidates = dict(RULES)
    candidates[f"{WARNING}, of another seed's S"] = _of_another_seed(runs)
    lines = [*_warning_lines(runs, rng), "", *_header()]
    patience = {saved: matched(RULES[PATIENCE], runs, saved)[:, 1] for saved in SAVED}
    better = False
    for name, rule in candidates.items():
        cells = []
        for saved in SAVED:
            found = matched(rule, runs, saved)
            low, high = _interval(found[:, 1], rng)
            cell = f"{found[:, 1].mean():.2f} [{low:.2f}, {high:.2f}] at {found[:, 0].mean():.2f}"
            if name == WARNING:
                difference = found[:, 1] - patience[saved]
                below, above = _interval(difference, rng)
                cell += f"; {difference.mean():+.2f} [{below:+.2f}, {above:+.2f}]"
                as_tuned = abs(found[:, 0].mean() - saved) <= MATCHED
                better |= as_tuned and above < 0 and difference.mean() <= -WORTHWHILE
            cells.append(cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", f"Verdict: {SAVES_EPOCHS if better else DIAGNOSTIC}."]
    return "\n".join(lines)


def figure(frame: pd.DataFrame) -> alt.Chart:
    """Accuracy lost against budget saved, a line for each rule over all its settings."""
    runs = [run for run, _ in curves_of(frame)]
    rows = []
    for name, rule in RULES.items():
        for setting in rule.settings:
            saved, lost = np.mean([outcome(run, rule.stop(run, setting)) for run in runs], axis=0)
            rows.append({"rule": name, "saved": saved, "lost": lost})
    points = pd.DataFrame(rows).groupby(["rule", "saved"], as_index=False)["lost"].min()
    return (
        alt.Chart(points)
        .mark_line(point=alt.OverlayMarkDef(size=15))
        .encode(
            x=alt.X(
                "saved:Q",
                title="fraction of the budget saved, mean over runs",
                scale=alt.Scale(domain=[0, 0.8]),
            ),
            y=alt.Y(
                "lost:Q",
                title="best validation accuracy lost, points",
                scale=alt.Scale(domain=[0, 8], clamp=True),
            ),
            color=alt.Color("rule:N", sort=list(RULES), legend=alt.Legend(labelLimit=300)),
        )
        .properties(width=460, height=300)
    )


def _of_another_seed(runs: Sequence[Curves]) -> Rule:
    """The warning that looks at the S of the next seed of the same configuration."""
    others: dict[int, Array] = {}
    for run in runs:
        same = [other for other in runs if other.configuration == run.configuration]
        position = next(i for i, other in enumerate(same) if other is run)
        others[id(run)] = same[(position + 1) % len(same)].score
    return Rule(lambda run, c: _first(others[id(run)] >= c), RULES[WARNING].settings)


def _warning_lines(runs: Sequence[Curves], rng: np.random.Generator) -> list[str]:
    warned = [run for run in runs if run.warned is not None]
    lead = np.array(
        [run.plateau - run.warned for run in warned if run.plateau is not None and run.warned is not None]
    )
    flat = [run for run in runs if run.plateau is not None and run.plateau < len(run.accuracy) - 1]
    missed = sum(run.warned is None for run in flat)
    false = sum(outcome(run, run.warned)[1] > 200 * run.tolerance for run in warned)
    lines = [
        f"{len(runs)} runs of {len({run.configuration for run in runs})} configurations. At its own threshold the "
        f"warning fired in {len(warned)}.",
        f"It fired in {len(flat) - missed} of the {len(flat)} runs whose accuracy became flat before their last "
        f"epoch ({missed} misses); in {false} accuracy rose afterwards by more than twice the plateau's tolerance "
        "(false alarms).",
    ]
    if len(lead) > 0:
        low, high = _interval(lead.astype(float), rng)
        lines.append(
            f"Lead over the plateau: {lead.mean():.1f} epochs [{low:.1f}, {high:.1f}] on average, median "
            f"{np.median(lead):.0f} (negative: the warning came after it)."
        )
    if warned:
        epochs = np.array([len(run.accuracy) - 1 - (run.warned or 0) for run in warned], dtype=np.float64)
        points = np.array([outcome(run, run.warned)[1] for run in warned])
        (low, high), (least, most) = _interval(epochs, rng), _interval(points, rng)
        lines.append(
            f"Stopped at the warning, these {len(warned)} runs save {epochs.mean():.1f} epochs [{low:.1f}, {high:.1f}] "
            f"on average and lose {points.mean():.2f} points [{least:.2f}, {most:.2f}]."
        )
    return lines


def _header() -> list[str]:
    columns = " | ".join(f"tuned to save {saved:.0%}" for saved in SAVED)
    return [
        "Best validation accuracy lost, points [95 % interval] at the fraction that was saved; of the warning also the "
        "difference to patience on accuracy.",
        "",
        f"| rule | {columns} |",
        "| --- |" + " --- |" * len(SAVED),
    ]


def _interval(values: Array, rng: np.random.Generator) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean."""
    drawn = rng.integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def _schedule(name: str, run: pd.DataFrame) -> Schedule:
    """What a training that was planned as this run went would have known of its learning rate."""
    drops: list[int] = []
    if name not in SMOOTH and names.LEARNING_RATE in run:
        rates = run[names.LEARNING_RATE].to_list()
        epochs = run["epoch"].to_list()
        drops = [int(epochs[i]) for i in range(1, len(rates)) if is_step(rates[i - 1], rates[i])]
    return Schedule(name=name, planned_epochs=int(run["epoch"].max()) + 1, drop_epochs=tuple(drops))


def _checked(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    missing = [column for column in (*CONFIGURATION, "seed", "epoch", *NEEDED) if column not in frame]
    if missing or frame.empty:
        lacking = f"lacks {', '.join(missing)}" if missing else "holds no epoch"
        raise DataError(
            f"{where} {lacking}; the evaluation needs the columns {', '.join((*CONFIGURATION, 'seed', 'epoch'))} and "
            f"the metrics {', '.join(NEEDED)}."
        )
    return frame


def _first(condition: NDArray[np.bool_]) -> int | None:
    return int(condition.argmax()) if condition.any() else None
