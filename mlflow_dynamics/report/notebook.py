"""Shows a run's figure under the cell of a notebook that trains or watches it, and draws it anew as epochs come."""

from __future__ import annotations

import logging
import multiprocessing
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, Final

from mlflow_dynamics.report.at_a_glance import html_of, said_of
from mlflow_dynamics.report.history import RunHistory
from mlflow_dynamics.report.redrawing import SHARE
from mlflow_dynamics.threads import Aside

PAUSE_S: Final = 1.0
"""The figure is drawn at most this often, and so that drawing takes no more than `SHARE` of the time."""

END_S: Final = 2.0
"""The end of a training waits at most this long for the figure's last drawing."""

logger = logging.getLogger(__name__)


def ipython_shell() -> Any:
    """Return the shell of IPython that runs this process, in a notebook or a terminal; None if there is none."""
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()


class LiveFigure:
    """Shows a figure in a notebook. Outside of a notebook it does nothing. No method raises.

    Args:
        history: returns the run's epochs so far.
    """

    def __init__(self, history: Callable[[], RunHistory]) -> None:
        self._history = history
        self._name = uuid.uuid4().hex
        self._shown = False
        self._ending = threading.Event()
        # A forked process has its parent's shell, but is not the notebook's kernel.
        self._shell: Any = ipython_shell() if multiprocessing.parent_process() is None else None
        self._aside: Aside | None = None
        if getattr(self._shell, "kernel", None) is not None:
            self._aside = Aside("mlflow_dynamics-figure", waiting=1)

    def show(self) -> None:
        """Show the figure in the cell that runs now, the first time. Called by the cell's thread."""
        if self._aside is not None and not self._shown:
            self._shown = True
            self._publish(update=False)

    def redraw(self) -> None:
        """Have the figure drawn anew in a thread of its own."""
        if self._aside is not None and self._shown:
            self._aside.put(self._redraw)

    def finish(self) -> None:
        """Draw it for the last time, and wait for that, but not for long."""
        self._ending.set()
        self.redraw()
        if self._aside is not None:
            self._aside.finish(END_S)
            self._aside = None

    def _redraw(self) -> None:
        began = time.monotonic()
        self._publish(update=True)
        self._ending.wait(max(PAUSE_S, (time.monotonic() - began) / SHARE))

    def _publish(self, *, update: bool) -> None:
        try:
            history = self._history()
            shown = {"text/html": html_of(history), "text/plain": "\n".join(said_of(history))}
            self._shell.display_pub.publish(
                data=shown, metadata={}, transient={"display_id": self._name}, update=update
            )
        except Exception as error:  # noqa: BLE001 - every notebook shows in a way of its own
            logger.debug("The notebook does not show the figure: %r", error)
