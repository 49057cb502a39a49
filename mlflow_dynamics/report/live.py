"""The report of a run that still trains: drawn anew now and then by another process, and complete at the end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
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

END_DRAWING_S: Final = 20.0
"""The end of a training waits at most this long for its last report."""

logger = logging.getLogger(__name__)


class LiveReport:
    """Draws a run's history into the run.

    Attributes:
        history: what is drawn; grows with the training.

    Args:
        writer: of the run.
        order: the order parameter over the last epoch's window.
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
        """Have the report drawn anew beside the training, if the training is idle or enough time has passed."""
        busy = self._drawing is not None and self._drawing.is_alive()
        if not self._draws or busy or not (idle or self._clock.due) or not self.history.measured:
            return
        packed = self._packed()
        if packed != self._drawn:
            self._drawing = threading.Thread(
                target=self._draw_apart, args=(packed,), name="mlflow_dynamics-drawing", daemon=True
            )
            started(self._drawing)

    def conclude(self) -> None:
        """Draw the complete report, and write what happened as the run's description."""
        with self._page:
            self._concluded = True
        self.history.running = False
        if not self.history.metrics:
            return
        # Paragraphs: Markdown joins single lines.
        said = summary(self.history)
        self._writer.set_tags({names.TAG_DESCRIPTION: names.DESCRIPTION + "\n\n".join(said)})
        if names.VALIDATION_ACCURACY in self.history.frame or self.history.diverging_epoch is not None:
            logger.info("%s: %s", self._writer.title, said[0])
        if not (self.history.measured or self.history.diverging_epoch is not None):
            return
        packed = self._packed()
        if not self._draws or packed == self._drawn:
            return
        try:
            self._writer.write_files(render_apart(packed, timeout_s=END_DRAWING_S, nice=0))
        except DrawingError as error:
            logger.warning(
                "The last report of the run is not drawn: %s. Draw it with: mlflow-dynamics report %s",
                error,
                self._writer.run_id or self._writer.title,
            )

    def _packed(self) -> bytes:
        self.history.title = self._writer.title
        self.history.order = self._order()
        return self.history.packed()

    def _draw_apart(self, packed: bytes) -> None:
        try:
            with self._clock:
                files = render_apart(packed)
        except DrawingError as error:
            logger.debug("The report is not drawn for now: %s", error)
            return
        with self._page:
            if not self._concluded:
                self._writer.write_files(files)
                self._drawn = packed
