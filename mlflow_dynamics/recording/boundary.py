"""The one boundary at which a failure of ours ends: user training never sees it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


class Boundary:
    """Runs our code when torch calls us, and keeps every failure of it away from the training that called.

    After the first failure nothing of ours runs any more: it is logged once, with its traceback, and
    `on_failure` detaches what is attached.
    """

    def __init__(self, on_failure: Callable[[], None]) -> None:
        self.failure: Exception | None = None
        self._on_failure = on_failure

    def run(self, function: Callable[..., None], *args: Any) -> None:
        """Call `function(*args)`; whatever it raises stops recording, not training."""
        if self.failure is not None:
            return
        try:
            function(*args)
        except Exception as error:  # noqa: BLE001 - the boundary: a failed recording must not fail a training
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Log the failure once and detach."""
        if self.failure is not None:
            return
        self.failure = error
        logger.error(
            "Recording stopped after an internal error; training goes on unrecorded.", exc_info=error
        )
        self._on_failure()
