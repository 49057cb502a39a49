"""The cells of a notebook: calls functions before and after each cell, and finds what the cell raised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlflow_dynamics.process_end import last_error
from mlflow_dynamics.report.notebook import ipython_shell


class Cells:
    """Calls `on_begin()` and `on_end(error)` around each cell that IPython runs (Jupyter, Colab, Databricks).

    If a cell runs inside another one, as with `%%capture`, only the outer cell counts. Calls nothing outside IPython.
    """

    def __init__(self, on_begin: Callable[[], None], on_end: Callable[[BaseException | None], None]) -> None:
        self._on_begin = on_begin
        self._on_end = on_end
        self._cell: Any = None
        self._before = last_error()
        shell = ipython_shell()
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
        # A new cell of the user's also begins where interrupts left the cell before without an end.
        if self._cell is None or info.store_history:
            self._cell = info
            self._before = last_error()
            self._on_begin()

    def _ended(self, result: Any) -> None:
        if self._cell is None or result.info is self._cell:  # None: the cell in which this object was made
            self._cell = None
            error = last_error()  # an error inside `%run` is shown, but IPython reports the cell as a success
            self._on_end(result.error_in_exec or (None if error is self._before else error))
