"""The cells of a notebook: who is called after each, and what it raised."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


class Cells:
    """Calls `on_end(error)` after each cell that IPython runs (Jupyter, Colab, Databricks); never elsewhere."""

    def __init__(self, on_end: Callable[[BaseException | None], None]) -> None:
        self._on_end = on_end
        ipython = sys.modules.get("IPython")
        shell: Any = None if ipython is None else ipython.get_ipython()
        self._events = None if shell is None else shell.events
        if self._events is not None:
            self._events.register("post_run_cell", self._ended)

    def remove(self) -> None:
        """Watch no more."""
        if self._events is not None:
            self._events.unregister("post_run_cell", self._ended)
            self._events = None

    def _ended(self, result: Any) -> None:
        self._on_end(result.error_in_exec)
