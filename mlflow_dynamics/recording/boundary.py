"""The one boundary at which a failure of ours ends: the user's training never sees the failure."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable
from typing import Any, Final

from mlflow_dynamics.errors import DynamicsError
from mlflow_dynamics.redaction import redact_text

ENV_TESTING: Final = "MLFLOW_DYNAMICS_TESTING"
"""Only our own tests set it to "true": a failure that is not raised on purpose is then raised into the training."""

logger = logging.getLogger(__name__)


class Boundary:
    """Runs our code when torch calls us, and keeps every failure of our code away from the training.

    The first failure is logged once, with its traceback, and `on_failure` detaches what is attached. After that nothing
    of ours runs any more.
    """

    def __init__(self, on_failure: Callable[[], None]) -> None:
        self.failure: Exception | None = None
        self._on_failure = on_failure

    def run(self, function: Callable[..., None], *args: Any) -> None:
        """Call `function(*args)`; an exception in it stops recording, not training."""
        if self.failure is not None:
            return
        try:
            function(*args)
        except Exception as error:
            self._fail(error)
            if os.environ.get(ENV_TESTING) == "true" and not isinstance(error, DynamicsError):
                raise

    def _fail(self, error: Exception) -> None:
        """Log the failure once and detach."""
        self.failure = error
        said = "Recording stopped after an internal error; training goes on unrecorded."
        lines = "".join(traceback.format_exception(error)).splitlines()
        safe = [redact_text(line) for line in lines]
        if safe == lines:
            logger.error(said, exc_info=error)
        else:  # a traceback that quotes a password is logged as text, without the password
            logger.error("%s\n%s", said, "\n".join(safe))
        self._on_failure()
