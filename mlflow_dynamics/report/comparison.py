"""Compares many runs on one page: their curves, their answers to the paper's three questions, and what stays open."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import altair as alt
import numpy as np
import pandas as pd
from mlflow.entities import Run, RunStatus

from mlflow_dynamics.convergence.plateau import plateau_epoch
from mlflow_dynamics.errors import TrackingError
from mlflow_dynamics.extras import project_links
from mlflow_dynamics.report.alike import ALIKE, SETTINGS, described, differing
from mlflow_dynamics.report.drawing_process import pictures_apart
from mlflow_dynamics.report.figures import Figure, Panel, finish
from mlflow_dynamics.report.page import Table, page, specification
from mlflow_dynamics.report.paper_questions import student_interval, styles_apart, tasks_apart, warning_leads
from mlflow_dynamics.report.ranking import LOADED as CURVE_METRICS
from mlflow_dynamics.report.ranking import Ranked, curves, table
from mlflow_dynamics.text import printable
from mlflow_dynamics.tracking import names
from mlflow_dynamics.tracking.query import find_runs, load_metrics
from mlflow_dynamics.tracking.settings import UNKNOWN, meaning_in

LONGEST: Final = 6_000
"""Characters after which a parameter is cut, as many as MLflow keeps: two parameters that begin alike stay apart."""

PADDING: Final = 8
"""The distance between the outermost point and the axis, in pixels."""

ROW_HEIGHT: Final = 14
LEAST_ROWS: Final = 6
HIGHEST_ROWS: Final = 40
"""A figure is as high as its rows need, for at least `LEAST_ROWS` and at most `HIGHEST_ROWS` rows."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoadedRuns:
    """Runs, and their metrics as run id -> frame with a row for each epoch. Runs without metrics have no frame."""

    runs: Sequence[Run]
    metrics: Mapping[str, pd.DataFrame]


def load(runs: Sequence[str] | None = None, *, experiment: str | None = None) -> LoadedRuns:
    """Load the runs that are compared, with their metrics.

    Args:
        runs: run ids; None means every run of `experiment`.
        experiment: the name of an experiment.

    Raises:
        TrackingError: a run or the experiment is unknown or deleted.
        ConfigError: both `runs` and `experiment` are given.
    """
    found = find_runs(runs, experiment_names=experiment)
    keys = [names.CONVERGENCE_SIGNAL, names.START_UP, names.WINDOW, *CURVE_METRICS]
    metrics = load_metrics([run.info.run_id for run in found], metrics=keys).dropna(subset=["epoch"])
    return LoadedRuns(runs=found, metrics=dict(tuple(metrics.groupby("run_id"))))


def gather(loaded: LoadedRuns) -> pd.DataFrame:
    """Return a row for each run that has measures after its start-up. A warning tells how many runs have none.

    Returns:
        Columns run_id, run_name, status; dataset, model, optimizer, schedule; window (its length in steps, as text) and
        the settings of `settings.MEANING`; integration and metastability (means over the second half of the epochs
        after start-up that have both); warning_epoch, plateau_epoch and lead_time (plateau minus warning, in epochs).
        A text that a run does not log is "not logged"; a number that a run does not have is NaN.

    Raises:
        TrackingError: no run has measures after its start-up, or the settings of a run were not logged by us.
    """
    found = loaded.runs
    numbers = {run_id: _numbers(one) for run_id, one in loaded.metrics.items()}
    rows = [
        {
            "run_id": run.info.run_id,
            "run_name": printable(run.info.run_name or run.info.run_id),
            "status": run.info.status,
            **{key: printable(run.data.params.get(key, UNKNOWN), limit=LONGEST) for key in SETTINGS},
            **meaning_in(run.info.run_id, run.data.params),
            **numbers[run.info.run_id],
        }
        for run in found
        if run.info.run_id in numbers and not np.isnan(numbers[run.info.run_id]["integration"])
    ]
    if not rows:
        raise TrackingError(
            f"None of the {len(found)} runs holds {names.INTEGRATION} after its start-up; give runs that were "
            "recorded with mlflow_dynamics for at least one measured epoch after start-up."
        )
    if len(rows) < len(found):
        _logger.warning(
            "%d of %d runs hold no %s after their start-up and are left out.",
            len(found) - len(rows),
            len(found),
            names.INTEGRATION,
        )
    return pd.DataFrame.from_records(rows)


def integration_by_task(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the mean integration of each group of repetitions, with its 95 % Student interval over seeds.

    Repetitions are runs that agree in `ALIKE`: task, architecture, optimizer, schedule and way of measuring.

    Returns:
        Columns `ALIKE`, runs, integration, low, high; low and high are NaN for a single run.
    """
    rows = []
    for settings, group in frame.groupby(list(ALIKE)):
        values = group["integration"].to_numpy(dtype=np.float64)
        rows.append((*settings, len(values), values.mean(), *student_interval(values)))
    return pd.DataFrame(rows, columns=[*ALIKE, "runs", "integration", "low", "high"])


def limits(frame: pd.DataFrame) -> list[str]:
    """Return a sentence for each conclusion that these runs do not allow. The list is empty if no limit applies."""
    said = []
    repeated = frame.groupby(list(ALIKE)).size()
    if single := int((repeated == 1).sum()):
        said.append(
            f"{single} of {len(repeated)} combinations were trained once: whether they differ from others by "
            "more than a different seed would make them differ cannot be said."
        )
    if frame["dataset"].nunique() == 1:
        said.append("All runs have one data set: whether integration tells tasks apart cannot be said.")
    for what, word in (("model", "architecture"), ("optimizer", "optimizer"), ("schedule", "schedule")):
        if frame[what].nunique() == 1:
            said.append(f"All runs have one {word}: its influence cannot be seen.")
    windows = sorted(set(frame["window"]), key=_steps)
    if len(windows) > 1:
        said.append(
            f"The runs' windows differ ({', '.join(windows)} steps). Integration and metastability depend on the "
            "length of the window, so only runs of one length are compared; mlflow-dynamics recompute --window "
            "measures a run anew under another."
        )
    if others := [key for key in differing(frame) if key != "window"]:
        values = "; ".join(f"{key}: {', '.join(sorted(set(frame[key])))}" for key in others)
        said.append(
            f"The runs were not measured alike ({values}). Integration and metastability are then other quantities, so "
            "only runs measured alike are compared."
        )
    going = sum(not RunStatus.is_terminated(RunStatus.from_string(status)) for status in frame["status"])
    if going:
        said.append(
            f"{going} of {len(frame)} runs have not ended: their numbers are those of the epochs so far."
        )
    lead = int(frame["lead_time"].notna().sum())
    if lead < len(frame):
        said.append(
            f"{len(frame) - lead} of {len(frame)} runs have no lead time: the warning did not fire, or validation "
            "accuracy was not flat or not logged."
        )
    return said


def draw(frame: pd.DataFrame) -> list[Figure]:
    """Return a figure for each of the three questions, from the frame that `gather` returns.

    The figure of lead times has no chart if no run has a lead time.
    """
    return [_by_task(frame), _lead(frame), _styles(frame)]


def comparison_page(frame: pd.DataFrame, *, title: str, runs: Sequence[Ranked] = ()) -> str:
    """Return the page as HTML, which needs no network: the curves and table of the runs, then the three questions.

    Args:
        frame: the measured runs, as `gather` returns them.
        title: the heading.
        runs: all runs, as `ranking.ranked` returns them.
    """
    questions: list[Figure | Table] = [
        *draw(frame),
        _integration_table(frame),
        Figure(
            name="limits",
            title="What these runs cannot say",
            caption=" ".join(limits(frame) or ["Runs differ by seed within every combination."]),
            panels=(),
        ),
    ]
    beside: list[Figure | Table] = [_curves(frame, runs)] if runs else []
    parts = [*beside, table(runs, _run_numbers(frame)), *questions]
    return page(title, _told(frame, runs), parts, project_links())


def comparison_pictures(frame: pd.DataFrame, *, runs: Sequence[Ranked]) -> dict[str, bytes]:
    """Return the figures of the page as figure name -> PNG. The arguments are as in `comparison_page`."""
    figures = [_curves(frame, runs), *draw(frame)]
    return pictures_apart({figure.name: specification(figure) for figure in figures if figure.panels})


def _curves(frame: pd.DataFrame, runs: Sequence[Ranked]) -> Figure:
    return curves(runs, alike=not differing(frame))


def _told(frame: pd.DataFrame, runs: Sequence[Ranked]) -> list[str]:
    """Return the lines below the title: the number of runs, the best run, and what became of runs that went wrong."""
    count = max(len(runs), len(frame))
    said = f"{count} {'run' if count == 1 else 'runs'}."
    if runs and not np.isnan(runs[0].best):
        best = runs[0]
        said += f" Best validation accuracy {best.best:.3f}: {best.name}, at epoch {best.best_epoch:.0f}."
    odd = "; ".join(f"{one.name}: {one.came_to}" for one in runs if one.came_to)
    return [said, *([f"{odd}."] if odd else [])]


def _run_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the columns that the table of the runs has for the measured runs, as text."""
    shown = {"run_id": frame["run_id"]}
    for key in ("integration", "metastability"):
        shown[key] = frame[key].map("{:.3f}".format)
    for column, key in (("warning", "warning_epoch"), ("plateau", "plateau_epoch"), ("lead", "lead_time")):
        shown[column] = frame[key].map(_epoch)
    return pd.DataFrame(shown | {key: frame[key] for key in differing(frame)})


def _integration_table(frame: pd.DataFrame) -> Table:
    shown = [*SETTINGS, "window", *(key for key in differing(frame) if key != "window")]
    rows = []
    for _, row in integration_by_task(frame).iterrows():
        spread = "one run" if row["runs"] == 1 else f"{row['low']:.3f} to {row['high']:.3f}"
        dataset, *settings = row[shown]
        # The numbers come before the long texts, because a narrow window shows only the left part of a table.
        rows.append([dataset, f"{row['integration']:.3f}", spread, str(row["runs"]), *settings])
    header = ["data set", "integration", "95 % of the mean", "runs", *shown[1:]]
    return Table(title="Integration by task and architecture", header=header, rows=rows)


def _numbers(metrics: pd.DataFrame) -> dict[str, Any]:
    after = metrics[metrics[names.START_UP] != 1.0]
    defined = after.dropna(subset=[names.INTEGRATION, names.METASTABILITY])
    late = defined.iloc[len(defined) // 2 :]
    fired = metrics.loc[metrics[names.CONVERGENCE_SIGNAL] > 0, "epoch"]
    warning = float(fired.iloc[0]) if len(fired) else np.nan
    position = plateau_epoch(metrics[names.VALIDATION_ACCURACY])
    plateau = np.nan if position is None else float(metrics["epoch"].iloc[position])
    length = after[names.WINDOW].max()
    return {
        "window": UNKNOWN if np.isnan(length) else f"{length:.0f}",
        "integration": float(late[names.INTEGRATION].mean()),
        "metastability": float(late[names.METASTABILITY].mean()),
        "warning_epoch": warning,
        "plateau_epoch": plateau,
        "lead_time": plateau - warning,
    }


def _by_task(frame: pd.DataFrame) -> Figure:
    axis = alt.X("integration:Q", scale=_around(frame["integration"]), axis=alt.Axis(tickCount=8))
    # The data sets of one training are drawn side by side, because the question is whether they lie apart.
    y, color = _rows("training"), alt.Color("dataset:N", title="data set")
    shift = alt.YOffset("dataset:N")
    tooltip = ["run_name:N", "dataset:N", "training:N", alt.Tooltip("integration:Q", format=".3f")]
    named = _named(frame)
    points = (
        alt.Chart(named[["run_name", "training", "dataset", "integration"]])
        .mark_circle(size=50)
        .encode(x=axis, y=y, yOffset=shift, color=color, tooltip=tooltip)
    )
    intervals = _named(integration_by_task(frame)).dropna(subset=["low"])
    bars = (
        alt.Chart(intervals[["training", "dataset", "low", "high"]])
        .mark_rule(size=2, opacity=0.6)
        .encode(x=alt.X("low:Q", title="integration"), x2="high:Q", y=y, yOffset=shift, color=color)
    )
    return _figure(
        "integration",
        "Does integration separate tasks?",
        f"{tasks_apart(frame)} A point a run, mean over the second half of its epochs after start-up; a bar is the "
        "95 % interval of the mean over seeds.",
        points if intervals.empty else alt.layer(bars, points),
        rows=named["training"].nunique() * frame["dataset"].nunique(),
    )


def _named(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with a column `training`, in which runs have one name if only data set and seed differ."""
    training = frame["model"] + ", " + frame["optimizer"] + ", " + frame["schedule"]
    if told := differing(frame):
        training += ", " + described(frame, told)
    return frame.assign(training=training)


def _rows(field: str) -> alt.Y:
    return alt.Y(f"{field}:N", title=None, axis=alt.Axis(labelLimit=200))


def _lead(frame: pd.DataFrame) -> Figure:
    shown = ["run_name", "dataset", "training", "warning_epoch", "plateau_epoch", "lead_time"]
    title = "Does the warning come before the plateau?"
    defined = _named(frame).dropna(subset=["lead_time"])[shown]
    if defined.empty:
        return Figure(name="lead", title=title, caption=warning_leads(frame), panels=())
    points = (
        alt.Chart(defined)
        .mark_circle(size=50)
        .encode(
            x=alt.X(
                "lead_time:Q",
                title="epochs from the warning to the plateau",
                scale=alt.Scale(padding=PADDING),
            ),
            y=_rows("training"),
            yOffset=alt.YOffset("dataset:N"),
            color=alt.Color("dataset:N", title="data set"),
            tooltip=["run_name:N", "warning_epoch:Q", "plateau_epoch:Q", "lead_time:Q"],
        )
    )
    zero = alt.Chart({"values": [{}]}).mark_rule(color="#888888").encode(x=alt.datum(0))
    return _figure(
        "lead",
        title,
        f"{warning_leads(frame)} Above 0 the warning fired before validation accuracy was flat; below 0 it came too "
        "late.",
        alt.layer(zero, points),
        rows=defined["training"].nunique() * defined["dataset"].nunique(),
    )


def _styles(frame: pd.DataFrame) -> Figure:
    groups = frame.assign(
        style=frame["optimizer"] + ", " + frame["schedule"], measured=described(frame, differing(frame))
    ).groupby("measured")
    # A reader compares the points of one chart, so each way of measuring has a chart of its own.
    charts = [_style_chart(group, measured) for measured, group in groups]
    return _figure(
        "styles",
        "Do integration and metastability tell training styles apart?",
        f"{styles_apart(frame)} A point a run; runs that were not measured alike are in charts of their own. "
        "Metastability depends on the number of layers: compare within one architecture.",
        *charts,
        rows=HIGHEST_ROWS // 2,
    )


def _style_chart(style: pd.DataFrame, measured: str) -> alt.Chart:
    chart = (
        alt.Chart(style[["run_name", "style", "model", "integration", "metastability"]])
        .mark_point(size=60, filled=True)
        .encode(
            x=alt.X(
                "integration:Q",
                scale=_around(style["integration"]),
                axis=alt.Axis(tickCount=8),
            ),
            y=alt.Y("metastability:Q", scale=_around(style["metastability"])),
            color=alt.Color("style:N", title="optimizer, schedule"),
            shape=alt.Shape("model:N"),
            tooltip=[
                "run_name:N",
                "style:N",
                "model:N",
                alt.Tooltip("integration:Q", format=".3f"),
                alt.Tooltip("metastability:Q", format=".3f"),
            ],
        )
    )
    return chart.properties(title=measured) if measured else chart


def _around(values: pd.Series) -> alt.Scale:
    """Return a scale for the values. Around a single value Vega would make an axis whose only tick is 0."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return alt.Scale(domain=[low - 0.05, high + 0.05])
    return alt.Scale(zero=False, padding=PADDING)


def _figure(name: str, title: str, caption: str, *charts: Any, rows: int) -> Figure:
    height = ROW_HEIGHT * min(max(rows, LEAST_ROWS), HIGHEST_ROWS)
    panels = tuple(
        Panel(
            chart=finish(
                chart.configure_legend(orient="bottom", columns=2), height=height, description=caption
            )
        )
        for chart in charts
    )
    return Figure(name=name, title=title, caption=caption, panels=panels)


def _steps(window: str) -> float:
    return np.inf if window == UNKNOWN else float(window)


def _epoch(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.0f}"
