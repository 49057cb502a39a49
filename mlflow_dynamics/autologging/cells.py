"""The cells of a notebook: who is called before and after each, and what it raised."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from mlflow_dynamics.session import last_error


class Cells:
    """Calls `on_begin()` and `on_end(error)` around each cell that IPython runs (Jupyter, Colab, Databricks).

    Of a cell that is run in another one, as `%%capture` does, only the other counts. Never calls them elsewhere.
    """

    def __init__(self, on_begin: Callable[[], None], on_end: Callable[[BaseException | None], None]) -> None:
        self._on_begin = on_begin
        self._on_end = on_end
        self._cell: Any = None
        self._before = last_error()
        ipython = sys.modules.get("IPython")
        shell: Any = None if ipython is None else ipython.get_ipython()
        self._events = None if shell is None else shell.events
        if self._events is not None:
            self._events.register("pre_run_cell", self._begun)
            self._events.register("post_run_cell", self._ended)

    def remove(self) -> None:
        """Watch no more."""
        if self._events is not None:
            self._events.unregister("pre_run_cell", self._begun)
            self._events.unregister("post_run_cell", self._ended)
            self._events = None

    def _begun(self, info: Any) -> None:
        # One that interrupts left without an end is over too.
        if self._cell is None or info.store_history:
            self._cell = info
            self._before = last_error()
            self._on_begin()

    def _ended(self, result: Any) -> None:
        if self._cell is None or result.info is self._cell:  # or the one in which this was made
            self._cell = None
            error = last_error()  # what `%run` has shown; IPython takes its cell for a good one
            self._on_end(result.error_in_exec or (None if error is self._before else error))
