"""Turns a history into the files of its run: the page, and a picture of each figure."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from mlflow_dynamics.extras import project_links
from mlflow_dynamics.report.figures import Figure, draw, glance_of
from mlflow_dynamics.report.history import RunHistory
from mlflow_dynamics.report.page import Table, page, picture
from mlflow_dynamics.report.panels import PANELS
from mlflow_dynamics.report.summary import summary
from mlflow_dynamics.text import printable
from mlflow_dynamics.tracking import names

DEFINITIONS: Final = {
    "signal": "what stands for a layer at a step: by default the root mean square of its output over the batch",
    "integration": "mean over layers of the signal's scaling exponent: 0.5 no memory, 1 1/f noise, 1.5 a random walk",
    "global integration": "scaling exponent of the layers' mean z-scored signal: of what they share",
    "order parameter R(t)": "length of the layers' mean phasor (Hilbert phases): 1 in phase, 0 cancelling",
    "synchrony": "mean over time of R(t)",
    "metastability": "standard deviation over time of R(t)",
    "metastability, unbiased": "standard deviation over time of R(t)^2 as of many layers: comparable across depths",
    "stability": "clip(integration / 1.5, 0, 1) (1 - 2 metastability)",
    "volatility": "standard deviation of stability over the last epochs (volatility_window), none of them start-up",
    "start-up": "epochs whose window is not full or holds the training's first steps: not judged, not compared",
    "phase coherence": "mean cosine between a layer's phase and that of the others",
    "plateau": "first epoch whose 5-epoch median of validation accuracy is within half a point of the best",
}
"""The page's short definition of each term. The documentation has the formulas in full."""


LONGEST_TABLE: Final = 500
"""The largest number of epochs in a table, because a page must stay small."""


def render(history: RunHistory, *, pictures: bool) -> dict[str, bytes]:
    """Return the files as artifact path -> content. The pictures are among them only if `pictures` is True."""
    history = _legible(history)
    figures = draw(history)
    links = {**history.links, **project_links()}
    parts: list[Figure | Table] = [*figures, *_tables(history)]
    files = {names.REPORT: page(history.title, summary(history), parts, links).encode()}
    if pictures:
        drawn = [figure for figure in (glance_of(history), *figures) if figure.panels]
        files |= {names.figure_path(figure.name): picture(figure) for figure in drawn}
    return files


def _tables(history: RunHistory) -> list[Table]:
    keys = [key for _, _, series in PANELS for key in series if any(key in row for row in history.metrics)]
    last = history.metrics[-LONGEST_TABLE:]
    numbers = [
        [f"{row['epoch']:.0f}", *(f"{row[key]:.4g}" if key in row else "-" for key in keys)] for row in last
    ]
    recorded = [("layers", str(len(history.layers))), ("epochs", str(len(history.metrics)))]
    return [
        Table(
            title="The numbers"
            + (f" of the last {len(last)} epochs" if len(last) < len(history.metrics) else ""),
            header=["epoch", *keys],
            rows=numbers,
            folded=True,
        ),
        Table(
            title="What the measures are",
            header=["measure", "meaning"],
            rows=list(DEFINITIONS.items()),
            folded=True,
        ),
        Table(
            title="What was recorded, and how it was measured",
            header=["setting", "value"],
            rows=[*recorded, *sorted(history.definitions.items())],
            folded=True,
        ),
    ]


def _legible(history: RunHistory) -> RunHistory:
    """Return the history with every name in printable characters, which people can read and pictures accept."""
    return replace(
        history,
        title=printable(history.title),
        definitions={printable(name): printable(value) for name, value in history.definitions.items()},
        layers=tuple(map(printable, history.layers)),
    )
