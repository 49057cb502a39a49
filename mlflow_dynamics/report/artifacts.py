"""A history as the files of its run: the page, and a picture of each figure."""

from __future__ import annotations

from mlflow_dynamics.report.figures import draw
from mlflow_dynamics.report.history import RunHistory
from mlflow_dynamics.report.page import page, picture
from mlflow_dynamics.report.summary import summary
from mlflow_dynamics.tracking import names


def render(history: RunHistory, *, pictures: bool) -> dict[str, bytes]:
    """Artifact path -> content; the pictures only where asked for."""
    figures = draw(history)
    tables = {"What was recorded, and how it was measured": sorted(history.definitions.items())}
    files = {names.REPORT: page(history.title, summary(history), figures, tables).encode()}
    if pictures:
        files |= {names.figure_path(figure.name): picture(figure) for figure in figures}
    return files
