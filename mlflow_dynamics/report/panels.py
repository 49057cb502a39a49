"""Says what the charts of a run show, and in which colours, whichever library draws them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mlflow_dynamics.report.history import RunHistory
from mlflow_dynamics.tracking import names

DAY: Final = {
    "ink": "#1f2328",
    "muted": "#57606a",
    "grid": "#d8dee4",
    "paper": "#ffffff",
    "link": "#0550ae",
    "one": "#0072b2",
    "two": "#c24e00",
    "three": "#007a5a",
    "four": "#a64d86",
    "five": "#8a6100",
    "six": "#4b4bc8",
}
"""The colours of pages by day, and of pictures. The lines have the colours of Okabe and Ito (jfly.uni-koeln.de/color),
darkened until they can be read on white."""

NIGHT: Final = {
    "ink": "#e6edf3",
    "muted": "#9da7b1",
    "grid": "#30363d",
    "paper": "#0d1117",
    "link": "#79b8ff",
    "one": "#56b4e9",
    "two": "#ff9b57",
    "three": "#3ecf9b",
    "four": "#e39ac5",
    "five": "#f0c541",
    "six": "#a5a5ff",
}

SERIES: Final = (("var(--one)", [1, 0]), ("var(--two)", [6, 3]), ("var(--three)", [2, 2]))
"""Colour and dashes of the lines in a chart. The dashes tell the lines apart without colours."""

LABEL_SHARE: Final = 0.4
"""The share of a chart's width. Names that are closer than this would overlap."""

PANELS: Final[Sequence[tuple[str, str, Mapping[str, str]]]] = (
    (
        "Accuracy",
        "Part of the answers that are right.",
        {names.VALIDATION_ACCURACY: "validation", names.TRAIN_ACCURACY: "train"},
    ),
    ("Loss", "Mean over the epoch.", {names.VALIDATION_LOSS: "validation", names.TRAIN_LOSS: "train"}),
    (
        "Integration",
        "How long a layer's signal remembers, mean over the layers: 0.5 no memory, 1 1/f noise, 1.5 a random walk. "
        "Global: of what the layers share.",
        {names.INTEGRATION: "integration", names.GLOBAL_INTEGRATION: "global integration"},
    ),
    (
        "Synchrony and metastability",
        "How much the layers move in phase (1: all of them), and how much that varies within the window. Unbiased: "
        "comparable across depths.",
        {
            names.SYNCHRONY: "synchrony",
            names.METASTABILITY: "metastability",
            names.METASTABILITY_UNBIASED: "unbiased",
        },
    ),
    (
        "Stability",
        "From 0 to 1: high where integration is high and metastability low.",
        {names.STABILITY: "stability"},
    ),
    (
        "Volatility",
        "How much stability varies from epoch to epoch; the early warning fires where it stays low.",
        {names.VOLATILITY: "volatility"},
    ),
)
"""(title, caption, metric key -> name of its line) of each panel."""

GLANCE: Final = ("Accuracy", "Loss", "Stability")
"""The panels that are shown in a run's description and in a notebook."""


def by_day(text: str) -> str:
    """Return a specification or style with the colours of day in place of the page's variables."""
    return re.sub(r"var\(--(\w+)\)", lambda found: DAY.get(found[1], found[0]), text)


def series_of(history: RunHistory, key: str) -> list[tuple[int, float | None]]:
    """Return (epoch, value) of a metric. An unknown value is None; if no value is known, return [].

    A measure that an epoch lacks could not be computed, so it is None. A value that the training gives, such as
    accuracy, need not come with each epoch, so it is None only if it is not finite.
    """
    values = [
        (int(row["epoch"]), row.get(key))
        for row in history.metrics
        if key in row or key.startswith(names.OURS)
    ]
    told = [
        (epoch, float(f"{value:.5g}") if value is not None and math.isfinite(value) else None)
        for epoch, value in values
    ]
    return told if any(value is not None for _, value in told) else []


def panels_of(history: RunHistory) -> Iterator[tuple[str, str, dict[str, list[tuple[int, float | None]]]]]:
    """Give title, caption and label -> series of each of `PANELS` of which the run has logged a metric."""
    for title, caption, wanted in PANELS:
        series = {label: values for key, label in wanted.items() if (values := series_of(history, key))}
        if series:
            yield title, caption, series


def described(title: str, series: Mapping[str, Sequence[tuple[int, float | None]]], marks: Marks) -> str:
    """Return what a panel shows, in words."""
    said = [f"{title} over the epochs."]
    for label, values in series.items():
        told = [(epoch, value) for epoch, value in values if value is not None]
        (first, start), (last, end) = told[0], told[-1]
        low, high = min(value for _, value in told), max(value for _, value in told)
        said.append(
            f"{label}: {start:.4g} at epoch {first}, {end:.4g} at epoch {last}, from {low:.4g} to {high:.4g}."
        )
    return " ".join([*said, marks.words])


def last_epoch(history: RunHistory) -> float:
    """Return the last epoch of the axis, which is at least 1."""
    return max(history.metrics[-1]["epoch"], 1.0)


@dataclass(frozen=True, kw_only=True)
class Marks:
    """What is marked in every chart over epochs.

    Attributes:
        events: (what was raised or found, its epoch, its dashes) in the order of epochs.
        labels: (text, epoch, row) of what is named above the lines; what is close together is in rows below each other.
        rows: how many rows there are.
        words: when what happened.
    """

    events: Sequence[tuple[str, int, list[int]]]
    labels: Sequence[tuple[str, float, int]]
    rows: int
    words: str


def marks_of(history: RunHistory) -> Marks:
    """Return what is marked in the charts of a run."""
    found = [
        ("diverged", history.diverging_epoch, [1, 0]),
        ("unsettled", history.unsettled_epoch, [1, 3]),
        ("warning", history.converged_epoch, [6, 3]),
        ("plateau", history.plateau, [2, 2]),
    ]
    events = sorted(
        ((what, epoch, dash) for what, epoch, dash in found if epoch is not None), key=lambda one: one[1]
    )
    named = [(f"{what} {epoch}", float(epoch)) for what, epoch, _ in events]
    said = [f"{what} at epoch {epoch}" for what, epoch, _ in events]
    if history.start_up:
        named.insert(0, ("start-up", max(history.start_up[0] - 0.5, 0.0)))
        said.append("shaded: start-up, when the window is not full or holds the training's first steps")
    labels: list[tuple[str, float, int]] = []
    for text, at in sorted(named, key=lambda one: one[1]):
        near = {row for _, other, row in labels if at - other < LABEL_SHARE * last_epoch(history)}
        labels.append((text, at, next(row for row in range(len(named)) if row not in near)))
    words = "; ".join(said)
    return Marks(
        events=events,
        labels=labels,
        rows=max((row + 1 for *_, row in labels), default=0),
        words=f"{words[:1].upper()}{words[1:]}." if words else "",
    )
