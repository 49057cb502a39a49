"""The figures of a run's report, as Altair charts: a history in, charts out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlflow_dynamics.report.history import RunHistory
from mlflow_dynamics.tracking import names

HEIGHT: Final = 130
AXIS_WIDTH: Final = 46
"""Of the vertical axes, so that charts below each other share one time axis."""

WARNING: Final = "#d95f02"
PLATEAU: Final = "#1b9e77"
START_UP: Final = "#888888"
"""Shades the epochs whose window is not full or holds some of the training's first steps."""

FAINT: Final = 0.35

_PANELS: Final[Sequence[tuple[str, Mapping[str, str]]]] = (
    ("accuracy", {names.TRAIN_ACCURACY: "train", names.VALIDATION_ACCURACY: "validation"}),
    ("loss", {names.TRAIN_LOSS: "train", names.VALIDATION_LOSS: "validation"}),
    ("integration", {names.INTEGRATION: "integration", names.GLOBAL_INTEGRATION: "global integration"}),
    (
        "order parameter",
        {
            names.SYNCHRONY: "synchrony",
            names.METASTABILITY: "metastability",
            names.METASTABILITY_UNBIASED: "metastability, unbiased",
        },
    ),
    ("stability", {names.STABILITY: "stability"}),
)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of the page: charts, what to see in them, and how many of which size are beside each other in its
    picture."""

    name: str
    title: str
    caption: str
    charts: tuple[Any, ...]
    columns: int = 1
    width: int = 640
    height: int | None = None


def draw(history: RunHistory) -> list[Figure]:
    """The figures of a run; those for which nothing is recorded are left out."""
    figures = [
        _overview(history),
        _volatility(history),
        _path(history),
        *_heat_maps(history),
        _order(history),
    ]
    return [figure for figure in figures if figure is not None and figure.charts]


def glance_of(history: RunHistory) -> Figure:
    """The small picture in a run's description."""
    charts = [
        chart for title, chart in _panels(history).items() if title in ("accuracy", "loss", "stability")
    ]
    return Figure(name="glance", title="", caption="", charts=tuple(charts), columns=3, width=210, height=90)


def _overview(history: RunHistory) -> Figure:
    charts = list(_panels(history).values())
    return Figure(
        name="overview",
        title="Training and its dynamics",
        caption=f"Accuracy and loss above the measures, on one time axis. {_when(history)}",
        charts=tuple(_finish(chart) for chart in charts),
    )


def _panels(history: RunHistory) -> dict[str, Any]:
    """Title -> chart of what is logged."""
    frame = history.frame
    marks = _marks(history)
    last = frame["epoch"].max()
    panels = [
        (title, {key: name for key, name in series.items() if key in frame}) for title, series in _PANELS
    ]
    panels = [(title, present) for title, present in panels if present]
    charts = {}
    for title, present in panels:
        long = frame.rename(columns=present).melt("epoch", list(present.values()), "series", "value").dropna()
        lines = _lines(long, title, last, axis_title="epoch" if title == panels[-1][0] else None)
        charts[title] = lines if marks is None else alt.layer(lines, marks)
    return charts


def _lines(long: pd.DataFrame, title: str, last: float, *, axis_title: str | None = "epoch") -> Any:
    legend = alt.Legend(orient="top") if long["series"].nunique() > 1 else None
    return (
        alt.Chart(long)
        .mark_line(point=alt.OverlayMarkDef(size=18))
        .encode(
            x=alt.X(
                "epoch:Q",
                title=axis_title,
                axis=alt.Axis(tickMinStep=1, format="d"),
                scale=alt.Scale(domain=[0, max(last, 1)], nice=False),
            ),
            y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=False)),
            color=alt.Color("series:N", title=None, legend=legend),
            tooltip=["epoch:Q", "series:N", alt.Tooltip("value:Q", format=".4f")],
        )
    )


def _marks(history: RunHistory) -> Any | None:
    """Vertical rules at the warning and at the plateau, and a shade over start-up."""
    rules = []
    if history.start_up:
        spans = [{"from": max(epoch - 0.5, 0), "to": epoch + 0.5} for epoch in history.start_up]
        shade = alt.Chart(alt.Data(values=spans)).mark_rect(color=START_UP, opacity=0.2, clip=True)
        rules.append(shade.encode(x="from:Q", x2="to:Q"))
    for epoch, what, colour, dash in (
        (history.converged_epoch, "convergence signal", WARNING, [6, 3]),
        (history.plateau, "plateau of validation accuracy", PLATEAU, [2, 2]),
    ):
        if epoch is not None:
            at = alt.Chart(pd.DataFrame({"epoch": [epoch], "what": [what]}))
            rules.append(
                at.mark_rule(color=colour, strokeDash=dash, size=2).encode(
                    x="epoch:Q", tooltip=["what:N", "epoch:Q"]
                )
            )
    return alt.layer(*rules) if rules else None


def _volatility(history: RunHistory) -> Figure | None:
    frame = history.frame
    if names.VOLATILITY not in frame:
        return None
    long = frame[["epoch", names.VOLATILITY]].rename(columns={names.VOLATILITY: "value"}).dropna()
    lines = _lines(long.assign(series="volatility"), "volatility", frame["epoch"].max())
    marks = _marks(history)
    return Figure(
        name="volatility",
        title="Volatility, the early warning and the plateau",
        caption=_when(history),
        charts=(_finish(lines if marks is None else alt.layer(lines, marks)),),
    )


def _when(history: RunHistory) -> str:
    warning, plateau = history.converged_epoch, history.plateau
    said = "No convergence signal" if warning is None else f"Convergence signal at epoch {warning} (dashed)"
    flat = "" if plateau is None else f"; validation accuracy is flat from epoch {plateau} (dotted)"
    return f"{said}{flat}.{_shaded(history)}"


def _shaded(history: RunHistory) -> str:
    if not history.start_up:
        return ""
    return " Shaded: start-up, when the window is not full or holds the training's first steps."


def _faint(history: RunHistory) -> Any:
    """Full opacity, but in start-up."""
    return alt.condition(f"indexof({history.start_up}, +datum.epoch) >= 0", alt.value(FAINT), alt.value(1))


def _path(history: RunHistory) -> Figure | None:
    frame = history.frame
    keys = [names.INTEGRATION, names.METASTABILITY]
    if not set(keys) <= set(frame):
        return None
    path = frame[["epoch", *keys]].dropna().set_axis(["epoch", "integration", "metastability"], axis=1)
    base = alt.Chart(path).encode(
        x=alt.X("integration:Q", scale=alt.Scale(zero=False, padding=8)),
        y=alt.Y("metastability:Q", scale=alt.Scale(zero=False, padding=8)),
        order="epoch:Q",
    )
    points = base.mark_circle(size=60).encode(
        opacity=_faint(history),
        color=alt.Color("epoch:Q", scale=alt.Scale(scheme="viridis")),
        tooltip=[
            "epoch:Q",
            alt.Tooltip("integration:Q", format=".3f"),
            alt.Tooltip("metastability:Q", format=".3f"),
        ],
    )
    return Figure(
        name="path",
        title="The path through integration and metastability",
        caption="One point an epoch: trainings of different style take different paths."
        + (" Faint: start-up." if history.start_up else ""),
        charts=(_finish(alt.layer(base.mark_line(color="#bbbbbb"), points), height=300),),
    )


def _heat_maps(history: RunHistory) -> list[Figure]:
    if not history.measured:
        return []
    return [
        _heat_map(
            history,
            history.exponents,
            name="exponents",
            title="Scaling exponent of each layer",
            caption="Layers in forward order from the top. 0.5: no memory; 1: long memory; 1.5: a random walk.",
            scale=alt.Scale(scheme="viridis"),
        ),
        _heat_map(
            history,
            history.phase_coherence,
            name="phase_coherence",
            title="Phase coherence of each layer with the others",
            caption="1: the layer moves with the others; 0: on its own; -1: against them.",
            scale=alt.Scale(scheme="redblue", domain=[-1, 1], reverse=True),
        ),
    ]


def _heat_map(
    history: RunHistory,
    values: Mapping[int, NDArray[np.float64]],
    *,
    name: str,
    title: str,
    caption: str,
    scale: alt.Scale,
) -> Figure:
    epochs, matrix = history.by_layer(values)
    # One row a layer with all its values, taken apart in the browser: a tenth of the size of a row for each cell.
    rows = [
        {
            "layer": f"{index} {layer}",
            "value": [None if np.isnan(value) else round(float(value), 2) for value in series],
        }
        for index, (layer, series) in enumerate(zip(history.layers, matrix, strict=False))
    ]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .transform_flatten(["value"])
        .transform_window(column="row_number()", groupby=["layer"])
        .transform_calculate(epoch=f"{epochs}[datum.column - 1]")
        .mark_rect()
        .encode(
            x=alt.X("epoch:O", title="epoch", axis=alt.Axis(labelOverlap=True, labelAngle=0)),
            y=alt.Y(
                "layer:N",
                sort=None,
                title=None,
                axis=alt.Axis(labelLimit=150, labelOverlap=True, labelFontSize=9),
            ),
            color=alt.Color("value:Q", scale=scale, title=None),
            opacity=_faint(history),
            tooltip=["layer:N", "epoch:O", "value:Q"],
        )
    )
    height = int(min(max(12 * len(rows), 120), 600))
    caption += " Faint: start-up." if history.start_up else ""
    return Figure(name=name, title=title, caption=caption, charts=(_finish(chart, height=height),))


def _order(history: RunHistory) -> Figure | None:
    if len(history.order) == 0 or not history.measured:
        return None
    frame = pd.DataFrame({"point": np.arange(len(history.order)), "R": history.order.round(4)})
    start_up = bool(history.metrics) and history.metrics[-1].get(names.START_UP) == 1.0
    chart = (
        alt.Chart(frame)
        .mark_line(size=1)
        .encode(
            x=alt.X("point:Q", title="point of the last window, its edges left out"),
            y=alt.Y("R:Q", scale=alt.Scale(domain=[0, 1])),
            tooltip=["point:Q", "R:Q"],
        )
    )
    return Figure(
        name="order_parameter",
        title="The order parameter R(t) over the last window",
        caption="Its mean is the synchrony of the last epoch, its standard deviation the metastability."
        + (" The last epoch still belongs to start-up." if start_up else ""),
        charts=(_finish(chart),),
    )


def _finish(chart: Any, *, height: int = HEIGHT) -> Any:
    return chart.properties(width="container", height=height).configure_axisY(minExtent=AXIS_WIDTH)
