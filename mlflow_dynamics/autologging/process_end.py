"""The end of the script's process, and of the processes it forks: who is called then, and how it ended."""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import signal
import sys
import threading
from _sitebuiltins import Quitter
from collections.abc import Callable
from multiprocessing.util import Finalize, register_after_fork
from typing import Any

from mlflow_dynamics.recording.patching import Patch
from mlflow_dynamics.session import last_error, status_after


class ProcessEnd:
    """Calls `on_end(status)` when the process ends: FINISHED, FAILED or KILLED, as MLflow has it.

    Python tells functions at exit neither which exception ended the script nor the status of an exit. The exception
    it leaves in `sys.last_value`; exits are watched. A `raise SystemExit(3)` leaves no trace and passes for FINISHED.

    Args:
        on_end: called with the status.
        on_fork: called in each process that `multiprocessing` forks.
    """

    def __init__(self, on_end: Callable[[str], None], on_fork: Callable[[], None]) -> None:
        self._on_end = on_end
        self._on_fork = on_fork
        self._exit_status = "FINISHED"
        self._earlier_error = last_error()
        self._patches = [
            Patch(sys, "exit", self._around_exit),
            Patch(Quitter, "__call__", self._around_quitter),
        ]
        self._cancel = self._call_when_ended()
        register_after_fork(self, ProcessEnd._forked)

    def not_yet(self) -> None:
        """The script goes on: an exit or an exception that was seen before this was caught."""
        self._exit_status = "FINISHED"
        self._earlier_error = last_error()

    def remove(self) -> None:
        """Watch no more."""
        for patch in self._patches:
            patch.remove()
        self._patches = []
        self._cancel()

    def _ended(self) -> None:
        if "ipykernel" in sys.modules and threading.current_thread() is threading.main_thread():
            # Jupyter sends it to a kernel that is not gone 2.5 s after it was told to go, and waits as long again.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # In a child of `multiprocessing` the exception that ends it is still on its way.
        error = sys.exception() or last_error()
        self._on_end(self._exit_status if error is self._earlier_error else status_after(error))

    def _call_when_ended(self) -> Callable[[], object]:
        # A child of `multiprocessing` calls no `atexit` functions.
        if multiprocessing.parent_process() is None:
            atexit.register(self._ended)
            return functools.partial(atexit.unregister, self._ended)
        return Finalize(None, self._ended, exitpriority=0).cancel

    def _forked(self) -> None:
        if self._patches:
            self._cancel = self._call_when_ended()
            self._on_fork()

    def _around_exit(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def leave(*args: Any) -> None:
            self._exit_status = status_after(SystemExit(*args))
            original(*args)

        return leave

    def _around_quitter(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def leave(quitter: Quitter, code: Any = None) -> None:
            self._exit_status = status_after(SystemExit(code))
            original(quitter, code)

        return leave
