"""Makes the HTML that a notebook shows of a run: what the run came to and three small charts, without any library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

from mlflow_dynamics.report.history import RunHistory
from mlflow_dynamics.report.panels import (
    GLANCE,
    SERIES,
    Marks,
    by_day,
    described,
    last_epoch,
    marks_of,
    panels_of,
)
from mlflow_dynamics.report.summary import spans, summary
from mlflow_dynamics.text import printable

WIDTH: Final = 228
LEFT: Final = 52
RIGHT: Final = WIDTH - 8
TOP: Final = 22
HEIGHT: Final = 84
ROW: Final = 12
LETTER: Final = 6
"""Sizes in pixels: of a chart, of the area of its lines, of a row of labels above it, and of the widest letter."""

LETTERS: Final = 7
"""A number of so many letters is rounded further, because it would not fit beside the lines."""

Points = Sequence[tuple[int, float | None]]


def said_of(history: RunHistory) -> list[str]:
    """Return lines of text that say what a run came to so far. The first line names the run."""
    epochs = len(history.metrics)
    count = f"{epochs} epoch{'' if epochs == 1 else 's'}{' so far' if history.running else ''}"
    return [f"{printable(history.title)}: {count}", *(summary(history) if epochs else [])]


def html_of(history: RunHistory) -> str:
    """Return the run's name (a link to the run, if a server holds it), what the run came to so far, and its charts.

    The text takes its colour and font from the notebook, by day and by night.
    """
    name, *lines = map(escape, said_of(history))
    for address in list(history.links.values())[:1]:
        name = f'<a href="{escape(address)}" target="_blank" rel="noopener" style="color:inherit">{name}</a>'
    styles = ("", "font-weight:600", "opacity:.8", "opacity:.8")
    text = "".join(
        f'<div style="{style}">{line}</div>' for line, style in zip([name, *lines], styles, strict=False)
    )
    marks = marks_of(history)
    charts = "".join(
        _chart(history, marks, title, series) for title, _, series in panels_of(history) if title in GLANCE
    )
    return (
        f'<div style="font-size:13px;line-height:1.45">{text}'
        f'<div style="display:flex;flex-wrap:wrap;gap:6px 16px;margin-top:6px">{charts}</div></div>'
    )


def _chart(history: RunHistory, marks: Marks, title: str, series: Mapping[str, Points]) -> str:
    """Return a chart with a line for each series. Start-up is shaded, and what happened is marked and named."""
    top = TOP + ROW * marks.rows
    bottom = top + HEIGHT
    told = [value / 2 for values in series.values() for _, value in values if value is not None]
    low, high = min(told), max(told)  # halves: the difference of floats may be none

    def x(epoch: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * epoch / last_epoch(history), 1)

    def y(value: float) -> float:
        return round(bottom - HEIGHT * ((value / 2 - low) / (high - low) if high > low else 0.5), 1)

    parts = [_text("start", 0, 11, title)]
    for first, last in spans(history.start_up):
        left, right = x(max(first - 0.5, 0)), x(min(last + 0.5, last_epoch(history)))
        parts.append(f'<path d="M{left} {top}H{right}V{bottom}H{left}" style="opacity:.12"/>')
    for value in {2 * low, 2 * high}:
        exact = f"{value:.3g}"
        parts.append(_text("end", LEFT - 4, y(value) + 4, exact if len(exact) < LETTERS else f"{value:.2g}"))
        parts.append(_stroke(f"M{LEFT} {y(value)}H{RIGHT}", "opacity:.2"))
    for _, epoch, dashes in marks.events:
        parts.append(_stroke(f"M{x(epoch)} {top}V{bottom}", _dashed(dashes)))
    for what, at, row in marks.labels:
        side, gap = ("start", 3) if at <= 0.6 * last_epoch(history) else ("end", -3)
        parts.append(_text(side, x(at) + gap, TOP + ROW * row + 9, what))
    legend = RIGHT
    for (label, values), (colour, dashes) in zip(series.items(), SERIES, strict=False):
        # The colour is moved towards that of the text, which is light by night. Old browsers keep the colour of day.
        own = by_day(f"stroke:{colour};stroke:color-mix(in srgb,{colour} 75%,currentColor);stroke-width:1.5;")
        points = [(x(epoch), None if value is None else y(value)) for epoch, value in _thinned(values)]
        parts.append(_stroke(_path(points), own + _dashed(dashes)))
        parts += [_stroke(f"M{across} {down}h0", f"{own}stroke-width:5") for across, down in points[-1:]]
        if label != title.lower():
            parts.append(_text("end", legend, 11, label))
            legend -= LETTER * len(label) + 22
            parts.append(_stroke(f"M{legend} 7h18", own + _dashed(dashes)))
            legend -= 10
    parts += [
        _text("start", LEFT, bottom + 13, "0"),
        _text("middle", (LEFT + RIGHT) / 2, bottom + 13, "epoch"),
        _text("end", RIGHT, bottom + 13, f"{last_epoch(history):.0f}"),
    ]
    words = escape(described(title, series, marks))
    return (
        f'<svg width="{WIDTH}" height="{bottom + 17}" role="img" aria-label="{words}" '
        f'style="fill:currentColor;font-size:11px">{"".join(parts)}</svg>'
    )


def _text(side: str, across: float, down: float, words: str) -> str:
    return f'<text x="{across:.1f}" y="{down:.1f}" text-anchor="{side}">{escape(words)}</text>'


def _stroke(path: str, style: str) -> str:
    return f'<path d="{path}" style="fill:none;stroke:currentColor;stroke-linecap:round;{style}"/>'


def _dashed(dashes: Sequence[int]) -> str:
    return f"stroke-dasharray:{' '.join(map(str, dashes))}" if dashes[1] else ""


def _thinned(values: Points) -> Points:
    """Return about as many of the values as a chart has pixels across, or fewer, with the last one."""
    return [*values[: -1 : -(-len(values) // WIDTH)], values[-1]]


def _path(points: Sequence[tuple[float, float | None]]) -> str:
    """Return the path through the points. It is broken where a value is None; a point between two gaps is a dot."""
    path, drawing = "", False
    for across, down in points:
        if down is not None:
            path += f"L{across} {down}" if drawing else f"M{across} {down}h0"
        drawing = down is not None
    return path
