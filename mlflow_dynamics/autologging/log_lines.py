"""Shows this package's log lines while `autolog()` is on, in a script that has set up no logging."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

from mlflow_dynamics.recording.distributed import first_process
from mlflow_dynamics.text import LOG_DATES, LOG_FORMAT


class LogLines:
    """Shows this package's log lines if the script has set up no logging, as MLflow does; hides them if `silent`."""

    def __init__(self, silent: bool) -> None:
        self._logger = logging.getLogger("mlflow_dynamics")
        self._level = self._logger.level
        self._handler: logging.Handler | None = None
        if silent or not first_process():
            self._logger.setLevel(logging.ERROR)
        elif not self._logger.hasHandlers():
            self._handler = _Stderr()
            self._handler.addFilter(_shown)
            self._handler.setFormatter(logging.Formatter(LOG_FORMAT, LOG_DATES))
            self._logger.addHandler(self._handler)
            self._logger.setLevel(logging.INFO)

    def remove(self) -> None:
        """Leave logging as it was."""
        if self._handler is not None:
            self._logger.removeHandler(self._handler)
        self._logger.setLevel(self._level)


class _Stderr(logging.StreamHandler):
    """Writes to the `sys.stderr` of the moment: a notebook's cell may replace it for a while."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr


def _shown(line: logging.LogRecord) -> bool:
    # Asked for each line: a process not started by torchrun learns its rank later, and a script may set up logging
    # later.
    return not logging.getLogger().handlers and (line.levelno >= logging.ERROR or first_process())
