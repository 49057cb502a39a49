"""Shows many runs together: their curves, and a table that ranks them by best accuracy and says in what they differ."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Run

from mlflow_dynamics.report.figures import Figure, Panel, finish, lines
from mlflow_dynamics.report.page import Table
from mlflow_dynamics.report.panels import SERIES
from mlflow_dynamics.text import printable
from mlflow_dynamics.tracking import names
from mlflow_dynamics.tracking.links import charts_of

STYLES: Final = (*SERIES, ("var(--four)", [8, 2, 2, 2]), ("var(--five)", [4, 4]), ("var(--six)", [1, 4]))
"""Colours and dashes of the best runs' lines. The lines of the other runs are grey."""

MOST_RUNS: Final = 100
MOST_POINTS: Final = 4_000
"""The largest numbers of runs and of points in a chart, because a page must stay small."""

FAR: Final = 100
"""If the largest loss is more than so many times the smallest, as in a divergence, the axis is logarithmic."""

MOST_SETTINGS: Final = 10
LABEL: Final = 60
"""The longest run name, and the longest name or value of a setting, in characters."""

HEIGHT: Final = 190

CURVES: Final = (
    (names.VALIDATION_ACCURACY, "Validation accuracy", "Part of the answers that are right."),
    (names.TRAIN_LOSS, "Training loss", "Mean over the epoch."),
    (
        names.INTEGRATION,
        "Integration",
        "How long a layer's signal remembers: 0.5 no memory, 1 1/f noise, 1.5 a random walk.",
    ),
    (names.METASTABILITY, "Metastability", "How much the layers' moving in phase varies within the window."),
    (names.STABILITY, "Stability", "High where integration is high and metastability low."),
    (names.VOLATILITY, "Volatility", "How much stability varies from epoch to epoch."),
)
"""(metric key, title, caption) of each chart. The charts of measures leave out the epochs of start-up."""

LOADED: Final = tuple(key for key, _, _ in CURVES)


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A run among others.

    Attributes:
        run: the run in MLflow.
        name: the name of the run, with a part of its id if another run has the same name.
        metrics: the metrics, with a row for each epoch.
        best: the best validation accuracy, or NaN.
        best_epoch: the epoch of the best validation accuracy, or NaN.
        came_to: what the numbers do not show: a divergence, missing measures, a status other than FINISHED. Else empty.
    """

    run: Run
    name: str
    metrics: pd.DataFrame
    best: float
    best_epoch: float
    came_to: str


def ranked(runs: Sequence[Run], metrics: Mapping[str, pd.DataFrame]) -> list[Ranked]:
    """Return the runs by best validation accuracy, the highest first. Runs without accuracy come last."""
    called = {run.info.run_id: printable(run.info.run_name or run.info.run_id, limit=LABEL) for run in runs}
    twice = {name for name, times in Counter(called.values()).items() if times > 1}
    found = []
    for run in runs:
        run_id, name = run.info.run_id, called[run.info.run_id]
        own = metrics.get(run_id, pd.DataFrame(columns=["epoch", *LOADED, names.START_UP], dtype=float))
        accuracy = own.set_index("epoch")[names.VALIDATION_ACCURACY]
        accuracy = accuracy[np.isfinite(accuracy)]
        found.append(
            Ranked(
                run=run,
                name=f"{name} ({run_id[:8]})" if name in twice else name,
                metrics=own,
                best=math.nan if accuracy.empty else float(accuracy.max()),
                best_epoch=math.nan if accuracy.empty else float(accuracy.idxmax()),
                came_to=_came_to(run, own),
            )
        )
    return sorted(found, key=lambda one: -one.best if one.best == one.best else math.inf)


def curves(found: Sequence[Ranked], *, alike: bool) -> Figure:
    """Return a figure of all runs' curves, with the best runs in colours.

    `alike` says whether all runs were measured in the same way.
    """
    drawn = found[:MOST_RUNS]
    panels: list[Panel] = []
    for key, title, caption in CURVES:
        # Every chart lists all runs, so that a run has the same colour in each of them.
        series = {one.name: _told(one.metrics, key, len(drawn)) for one in drawn}
        told = [value for values in series.values() for _, value in values if value is not None]
        if told:
            log = key == names.TRAIN_LOSS and min(told) > 0 and max(told) > FAR * min(told)
            shown = lines(
                series,
                max(epoch for values in series.values() for epoch, _ in values) or 1,
                height=HEIGHT,
                named=not panels,
                columns=1,
                log=log,
                styles=STYLES,
            )
            caption += " The axis is logarithmic." if log else ""
            described = f"{title} over the epochs of the runs, each from its first to its last value. "
            described += " ".join(_ends(one.name, series[one.name]) for one in drawn[: len(STYLES)])
            chart = finish(shown, height=HEIGHT, description=described)
            panels.append(Panel(title=title, caption=caption, chart=chart))
    said = "Of measures, the epochs of start-up are left out."
    if not alike:
        said += " These runs were not measured alike: their measures are not to be compared."
    if len(found) > len(STYLES):
        said += f" In colours: the {len(STYLES)} best by validation accuracy; the others are grey."
    if len(found) > len(drawn):
        said += f" Drawn are the best {len(drawn)} of {len(found)} runs."
    return Figure(
        name="curves", title="The runs' curves", caption=said, panels=tuple(panels), columns=2, width=360
    )


def table(found: Sequence[Ranked], numbers: pd.DataFrame) -> Table:
    """Return a table of the runs: best accuracy, the parameters in which the runs differ, and their measures.

    Args:
        found: the runs, in their order.
        numbers: a row for each run that was measured, with the run's id in `run_id`. The other columns hold text.
    """
    settings = _differing([one.run for one in found])
    columns = [column for column in numbers if column != "run_id"]
    by_run = numbers.set_index("run_id")
    uri = mlflow.get_tracking_uri()
    rows: list[list[str | tuple[str, str]]] = []
    for one in found:
        run_id = one.run.info.run_id
        address = charts_of(one.run, uri)
        accuracy = ["-", "-"] if math.isnan(one.best) else [f"{one.best:.3f}", f"{one.best_epoch:.0f}"]
        measured = [str(by_run.at[run_id, column]) if run_id in by_run.index else "-" for column in columns]
        given = [printable(one.run.data.params.get(key, "-"), limit=LABEL) for key in settings]
        rows.append(
            [
                one.name if address is None else (one.name, address),
                *accuracy,
                str(len(one.metrics)),
                one.came_to,
                *given,
                *measured,
                run_id[:8],
            ]
        )
    shown = [printable(key, limit=LABEL) for key in settings]
    header = ["run", "best accuracy", "at epoch", "epochs", "came to", *shown, *columns, "id"]
    return Table(
        title="The runs",
        header=header,
        rows=rows,
        caption="By best validation accuracy, with the parameters in which they differ.",
    )


def _came_to(run: Run, metrics: pd.DataFrame) -> str:
    said = []
    diverged = names.epoch_in(run.data.tags, names.TAG_DIVERGING_EPOCH)
    if diverged is not None:
        said.append(f"diverged at epoch {diverged}")
    if metrics.loc[metrics[names.START_UP] != 1.0, names.INTEGRATION].isna().all():
        said.append("no measures after start-up")
    if run.info.status != "FINISHED":
        said.append(run.info.status.lower())
    return ", ".join(said)


def _differing(runs: Sequence[Run]) -> list[str]:
    """Return the parameters in which the runs differ, except those of measuring, which have their own columns."""
    keys = sorted({key for run in runs for key in run.data.params if not key.startswith(names.OURS)})
    return [key for key in keys if len({run.data.params.get(key) for run in runs}) > 1][:MOST_SETTINGS]


def _ends(name: str, values: Sequence[tuple[int, float | None]]) -> str:
    told = [value for _, value in values if value is not None]
    return f"{name}: {told[0]:.4g} to {told[-1]:.4g}." if told else f"{name}: none."


def _told(metrics: pd.DataFrame, key: str, runs: int) -> list[tuple[int, float | None]]:
    """Return (epoch, value), evenly thinned. A value that is not finite is None. If none is finite, return []."""
    if key == names.VALIDATION_ACCURACY:  # accuracy need not be logged in every epoch
        metrics = metrics.dropna(subset=[key])
    values = metrics[key].where((metrics[names.START_UP] != 1.0) | (not key.startswith(names.OURS)))
    told = [
        (int(epoch), float(f"{value:.5g}") if np.isfinite(value) else None)
        for epoch, value in zip(metrics["epoch"], values, strict=True)
    ]
    if not any(value is not None for _, value in told):
        return []
    most = max(MOST_POINTS // runs, 2)
    if len(told) <= most:
        return told
    return [told[i] for i in np.linspace(0, len(told) - 1, most).round().astype(int)]
