"""Makes the figures of a run's report: takes the run's history and returns Altair charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import altair as alt
import numpy as np
from numpy.typing import NDArray

from mlflow_dynamics.report.history import RunHistory
from mlflow_dynamics.report.panels import (
    GLANCE,
    SERIES,
    Marks,
    described,
    last_epoch,
    marks_of,
    panels_of,
    series_of,
)
from mlflow_dynamics.report.summary import spans
from mlflow_dynamics.tracking import names

HEIGHT: Final = 150
ROW_HEIGHT: Final = 12
"""The height of a layer in a heat map, in pixels. Its name can still be read."""

LABEL_LENGTH: Final = 24
"""The number of characters of a layer's name beside a heat map. The last ones are kept, as they tell layers apart."""

OTHERS: Final = ("var(--grid)", [1, 0])

MANY_EPOCHS: Final = 60
"""With more epochs, the points on a line are small."""

LABEL_HEIGHT: Final = 13
FAINT: Final = 0.35


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A chart with its title and a caption that says what the chart shows."""

    chart: Any
    title: str = ""
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A section of the page, which is also a picture of its own.

    Attributes:
        name: the name of the picture.
        title, caption: the texts above the panels.
        panels: the charts.
        folded: whether a click opens the section.
        columns: how many charts of the picture are side by side.
        width: the width of a chart in the picture, in pixels.
    """

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    folded: bool = False
    columns: int = 1
    width: int = 640


def draw(history: RunHistory) -> list[Figure]:
    """Return the figures of a run, without those for which nothing is recorded."""
    figures = [_overview(history), _path(history), *_heat_maps(history), _order(history)]
    return [figure for figure in figures if figure is not None and figure.panels]


def glance_of(history: RunHistory) -> Figure:
    """Return the small picture of a run's description."""
    panels = _panels(history, height=90)
    shown = tuple(panel for panel in panels if panel.title in GLANCE)
    return Figure(name="glance", title="", caption="", panels=shown, columns=3, width=210)


def _overview(history: RunHistory) -> Figure:
    return Figure(
        name="overview",
        title="Training and its dynamics",
        caption=marks_of(history).words,
        panels=tuple(_panels(history)),
        columns=2,
        width=360,
    )


def _panels(history: RunHistory, *, height: int = HEIGHT) -> list[Panel]:
    """Return a panel for each of `PANELS` of which the run has logged a metric."""
    panels = []
    marks = marks_of(history)
    for title, caption, series in panels_of(history):
        curves = lines(
            series,
            last_epoch(history),
            height=height,
            headroom=LABEL_HEIGHT * marks.rows,
            named=list(series) != [title.lower()],
        )
        chart = finish(
            alt.layer(*_drawn(history, marks), curves),
            height=height,
            description=described(title, series, marks),
        )
        panels.append(Panel(title=title, caption=caption, chart=chart))
    return panels


def lines(
    series: Mapping[str, Sequence[tuple[int, float | None]]],
    last: float,
    *,
    height: int = HEIGHT,
    headroom: int = 0,
    named: bool = True,
    columns: int = 3,
    log: bool = False,
    styles: Sequence[tuple[str, Sequence[int]]] = SERIES,
) -> Any:
    """Return a chart with a line over the epochs for each series. A line is broken where a value is None.

    Args:
        series: label -> (epoch, value).
        last: the last epoch on the axis.
        height: the height of the chart, in pixels.
        headroom: how much of the height is left free above the lines, in pixels.
        named: whether there is a legend.
        columns: the number of the legend's columns.
        log: whether the axis of the values is logarithmic.
        styles: colour and dashes of the first series. Further series are grey and not in the legend.
    """
    rows = [
        {"epoch": epoch, "series": label, "value": value}
        for label, values in series.items()
        for epoch, value in values
    ]
    domain = list(series)
    others = [OTHERS] * (len(domain) - len(styles))
    colours, dashes = zip(*[*styles, *others][: len(domain)], strict=True)
    legend = alt.Legend(
        orient="top",
        symbolType="stroke",
        symbolStrokeWidth=2,
        symbolSize=250,
        columns=columns,
        values=domain[: len(styles)],
    )
    shown = legend if named else None
    size = 18 if len(rows) <= MANY_EPOCHS * len(domain) else 4
    return (
        alt.Chart({"values": rows})
        .mark_line(
            point=alt.OverlayMarkDef(size=size, filled=True),
            strokeWidth=1.5,
            invalid="break-paths-filter-domains",
        )
        .encode(
            x=alt.X(
                "epoch:Q",
                title="epoch",
                axis=alt.Axis(tickMinStep=1, format="d"),
                scale=alt.Scale(domain=[0, last], nice=False),
            ),
            y=alt.Y(
                "value:Q",
                title=None,
                scale=alt.Scale(range=[height, headroom], **({"type": "log"} if log else {"zero": False})),
                axis=alt.Axis(tickCount=5, format="~g"),
            ),
            color=alt.Color(
                "series:N", title=None, legend=shown, scale=alt.Scale(domain=domain, range=list(colours))
            ),
            strokeDash=alt.StrokeDash(
                "series:N", title=None, legend=shown, scale=alt.Scale(domain=domain, range=list(dashes))
            ),
            tooltip=["series:N", "epoch:Q", alt.Tooltip("value:Q", format=".4f")],
        )
    )


def _drawn(history: RunHistory, marks: Marks) -> list[Any]:
    """A shade over start-up, a vertical rule at each event, and the name of each."""
    layers = []
    if history.start_up:
        values = [
            {"from": max(first - 0.5, 0), "to": min(last + 0.5, last_epoch(history))}
            for first, last in spans(history.start_up)
        ]
        shade = alt.Chart({"values": values}).mark_rect(color="var(--muted)", opacity=0.18, clip=True)
        layers.append(shade.encode(x="from:Q", x2="to:Q"))
    for _, event, dash in marks.events:
        at = alt.Chart({"values": [{"epoch": event}]}).encode(x="epoch:Q")
        layers.append(at.mark_rule(color="var(--ink)", strokeDash=dash, strokeWidth=1.5))
    for text, epoch, row in marks.labels:
        left = epoch <= 0.6 * last_epoch(history)
        name = alt.Chart({"values": [{"epoch": epoch}]}).mark_text(
            text=text, align="left" if left else "right", dx=4 if left else -4, color="var(--ink)"
        )
        layers.append(name.encode(x="epoch:Q", y=alt.value(LABEL_HEIGHT * (row + 0.5))))
    return layers


def _faint(history: RunHistory) -> Any:
    """Return the opacity of a point: full, except in start-up."""
    return alt.condition(f"indexof({history.start_up}, +datum.epoch) >= 0", alt.value(FAINT), alt.value(1))


def _path(history: RunHistory) -> Figure | None:
    integration, metastability = (
        dict(series_of(history, key)) for key in (names.INTEGRATION, names.METASTABILITY)
    )
    if not (integration and metastability):
        return None
    rows = [
        {"epoch": epoch, "integration": value, "metastability": metastability[epoch]}
        for epoch, value in integration.items()
    ]
    base = alt.Chart({"values": rows}).encode(
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
    path = alt.layer(base.mark_line(color="var(--muted)", invalid="break-paths-filter-domains"), points)
    return Figure(
        name="path",
        title="The path through integration and metastability",
        caption="One point an epoch: trainings of different style take different paths."
        + (" Faint: start-up." if history.start_up else ""),
        panels=(Panel(chart=finish(path, height=300, description="Metastability against integration.")),),
        folded=True,
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
    # A row holds all values of a layer; the browser takes it apart. A row for each cell would take ten times the size.
    rows = [
        {
            "layer": f"{index} {layer}",
            "row": f"{index} {_end_of(layer)}",
            "value": [None if np.isnan(value) else round(float(value), 2) for value in series],
        }
        for index, (layer, series) in enumerate(zip(history.layers, matrix, strict=False))
    ]
    chart = (
        alt.Chart({"values": rows})
        .transform_flatten(["value"])
        .transform_window(column="row_number()", groupby=["layer"])
        .transform_calculate(epoch=f"{epochs}[datum.column - 1]")
        .mark_rect()
        .encode(
            x=alt.X("epoch:O", title="epoch", axis=alt.Axis(labelOverlap=True, labelAngle=0)),
            y=alt.Y("row:N", sort=None, title=None, axis=alt.Axis(labelLimit=200, labelFontSize=10)),
            color=alt.Color("value:Q", scale=scale, title=None),
            opacity=_faint(history),
            tooltip=["layer:N", "epoch:O", "value:Q"],
        )
    )
    empty = " Empty: could not be told." if np.isnan(matrix).any() else ""
    caption += (" Faint: start-up." if history.start_up else "") + empty
    chart = finish(chart, height=ROW_HEIGHT * max(len(rows), 4), description=f"{title}. {caption}")
    return Figure(name=name, title=title, caption=caption, panels=(Panel(chart=chart),), folded=True)


def _end_of(layer: str) -> str:
    return layer if len(layer) <= LABEL_LENGTH else f"…{layer[1 - LABEL_LENGTH :]}"


def _order(history: RunHistory) -> Figure | None:
    if len(history.order) == 0 or not history.measured:
        return None
    rows = [{"point": point, "R": round(float(value), 4)} for point, value in enumerate(history.order)]
    start_up = bool(history.metrics) and history.metrics[-1].get(names.START_UP) == 1.0
    chart = (
        alt.Chart({"values": rows})
        .mark_line(size=1, color="var(--one)")
        .encode(
            x=alt.X("point:Q", title="point of the last window, its edges left out"),
            y=alt.Y("R:Q", scale=alt.Scale(domain=[0, 1])),
            tooltip=["point:Q", "R:Q"],
        )
    )
    caption = "1: the layers are in phase; 0: they cancel. Its mean is the synchrony of the last epoch, its standard "
    caption += "deviation the metastability."
    return Figure(
        name="order_parameter",
        title="The order parameter R(t) over the last window",
        caption=caption + (" The last epoch still belongs to start-up." if start_up else ""),
        panels=(Panel(chart=finish(chart, height=HEIGHT, description=f"R(t). {caption}")),),
        folded=True,
    )


def finish(chart: Any, *, height: int, description: str) -> Any:
    """Return the chart as wide as its place, with a description in words for readers who do not see it."""
    return chart.properties(width="container", height=height, description=description)
