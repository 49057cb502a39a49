"""Draws the report of a run that still trains: now and then, by another process, and once more at the end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mlflow_dynamics.errors import DrawingError
from mlflow_dynamics.extras import pip_command, unmet
from mlflow_dynamics.report.drawing_process import render_apart
from mlflow_dynamics.report.history import RunHistory
from mlflow_dynamics.report.redrawing import RedrawClock
from mlflow_dynamics.report.summary import summary
from mlflow_dynamics.threads import started
from mlflow_dynamics.tracking import RunWriter, names
from mlflow_dynamics.tracking.links import REPORT_AND_PICTURE

END_DRAWING_S: Final = 20.0
"""The end of a training waits at most this long for its last report."""

logger = logging.getLogger(__name__)


class LiveReport:
    """Draws a run's history into the run.

    Attributes:
        history: the history that is drawn. It grows with the training.

    Args:
        writer: the writer of the run.
        order: returns the (steps,) order parameter over the window of the last epoch.
    """

    def __init__(self, writer: RunWriter, order: Callable[[], NDArray[np.float64]]) -> None:
        self.history = RunHistory(title=writer.title, definitions={}, running=True)
        self._writer = writer
        self._order = order
        self._clock = RedrawClock()
        self._drawing: threading.Thread | None = None
        self._page = threading.Lock()
        self._concluded = False
        self._drawn: bytes | None = None
        self._draws = not unmet("report")
        if not self._draws:
            logger.info("The run gets no report.html and no figures; for them: %s", pip_command("report"))

    def redraw(self, *, idle: bool) -> None:
        """Have another process draw the report anew, if the training is idle or enough time has passed."""
        busy = self._drawing is not None and self._drawing.is_alive()
        if not self._draws or busy or not (idle or self._clock.due) or not self.history.measured:
            return
        packed = self._packed()
        if packed != self._drawn:
            self._drawing = threading.Thread(
                target=self._draw_apart,
                args=(packed, summary(self.history)),
                name="mlflow_dynamics-drawing",
                daemon=True,
            )
            started(self._drawing)

    def conclude(self) -> None:
        """Draw the complete report, and write a summary as the run's description."""
        with self._page:
            self._concluded = True
        self.history.running = False
        if not self.history.metrics:
            return
        said = summary(self.history)
        self._describe(said)
        if names.VALIDATION_ACCURACY in self.history.frame or self.history.diverging_epoch is not None:
            logger.info("%s: %s", self._writer.title, said[0])
        if not (self.history.measured or self.history.diverging_epoch is not None):
            return
        packed = self._packed()
        if not self._draws or packed == self._drawn:
            return
        try:
            self._write(packed, render_apart(packed, timeout_s=END_DRAWING_S, nice=0), said)
        except DrawingError as error:
            logger.warning(
                "The last report of the run is not drawn: %s. Draw it with: mlflow-dynamics report %s",
                error,
                self._writer.run_id or self._writer.title,
            )

    def so_far(self) -> RunHistory:
        """Return a copy of the history, which does not grow."""
        writer, metrics = self._writer, list(self.history.metrics)
        return replace(self.history, title=writer.title, links=writer.links, metrics=metrics)

    def _packed(self) -> bytes:
        self.history.title = self._writer.title
        self.history.links = self._writer.links
        self.history.order = self._order()
        return self.history.packed()

    def _write(self, packed: bytes, files: Mapping[str, bytes], said: Sequence[str]) -> None:
        self._writer.write_files(files)
        self._drawn = packed
        self._describe(said)

    def _describe(self, said: Sequence[str]) -> None:
        """Write the run's description. It has links as soon as there is a page to link."""
        report, picture = REPORT_AND_PICTURE
        first, *rest = said
        lines = [first, report, *rest, picture] if self._drawn else said
        # The lines are paragraphs, because Markdown joins single lines.
        self._writer.set_tags({names.TAG_DESCRIPTION: names.DESCRIPTION + "\n\n".join(lines)})

    def _draw_apart(self, packed: bytes, said: Sequence[str]) -> None:
        try:
            with self._clock:
                files = render_apart(packed)
        except DrawingError as error:
            logger.debug("The report is not drawn for now: %s", error)
            return
        with self._page:
            if not self._concluded:
                self._write(packed, files, said)
