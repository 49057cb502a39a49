"""Calls a function when the script's process, or a process that it forks, ends, and finds out how it ended."""

from __future__ import annotations

import atexit
import dis
import functools
import multiprocessing
import os
import signal
import sys
import threading
from _sitebuiltins import Quitter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.util import Finalize, register_after_fork
from types import FrameType
from typing import Any

from mlflow_dynamics.config import OnSigterm
from mlflow_dynamics.recording.patching import Patch
from mlflow_dynamics.termination import TERMINATIONS


class ProcessEnd:
    """Calls `on_end(status)` when the process ends, with MLflow's status FINISHED, FAILED or KILLED.

    Python does not tell its exit functions how the process ended. The status is put together from three sources:
    Python leaves an unhandled exception in `sys.last_value`; calls of `sys.exit` and `quit` are patched to note their
    argument; and the script's outermost frame shows whether the script has returned. The status is None if the script
    was left by `raise SystemExit(...)`, because Python keeps no trace of the exit code.

    Args:
        on_end: called with the status; called in another thread if a signal ends the process.
        on_fork: called in each process that `multiprocessing` forks; `on_end` is then called at the end of that process
            too. None: forked processes are not watched.
        on_sigterm: "end" calls `on_end("KILLED")` on SIGTERM and SIGHUP, before the signal takes its usual effect.
    """

    def __init__(
        self,
        on_end: Callable[[str | None], None],
        on_fork: Callable[[], None] | None = None,
        *,
        on_sigterm: OnSigterm = None,
    ) -> None:
        self._on_end = on_end
        self._on_fork = on_fork
        self._process = os.getpid()
        self._script = _script()
        self._exit_status: str | None = None
        self._earlier_error = last_error()
        self._patches = [
            Patch(sys, "exit", before=self._exits),
            Patch(Quitter, "__call__", before=self._quits),
        ]
        self._cancel = self._call_when_ended()
        register_after_fork(self, ProcessEnd._forked)
        self._terminated = functools.partial(on_end, "KILLED")
        if on_sigterm == "end":
            TERMINATIONS.add(self._terminated)

    def not_yet(self) -> None:
        """Forget the exits and exceptions seen so far: the script goes on, so it has caught them."""
        self._exit_status = None
        self._earlier_error = last_error()

    def remove(self) -> None:
        """Stop watching for the end."""
        for patch in self._patches:
            patch.remove()
        self._patches = []
        self._cancel()
        TERMINATIONS.remove(self._terminated)

    def _ended(self) -> None:
        if os.getpid() != self._process:  # a fork without `multiprocessing`, which lacks our threads
            return
        if "ipykernel" in sys.modules and threading.current_thread() is threading.main_thread():
            # Jupyter sends SIGTERM to a kernel that is still alive 2.5 s after it was asked to end, and kills it after
            # as long again.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        error = self._error()
        with suppress(KeyboardInterrupt):  # the user waits no longer, and the script itself is over
            self._on_end(self._status(error))
        if type(error) is KeyboardInterrupt and multiprocessing.parent_process() is None:
            die_of_interrupt()

    def _error(self) -> BaseException | None:
        """The exception that ended the process; None if Python has kept none."""
        if multiprocessing.parent_process() is not None:
            return sys.exc_info()[1]  # `multiprocessing` calls us while the exception still propagates
        error = last_error()
        return None if error is self._earlier_error or self._goes_well() else error

    def _status(self, error: BaseException | None) -> str | None:
        if error is not None or self._goes_well() or multiprocessing.parent_process() is not None:
            return status_after(error)
        return self._exit_status

    def _goes_well(self) -> bool:
        """Whether no exception has ended the script: it has returned, or is a prompt, which no exception ends."""
        if hasattr(sys, "ps1") or self._script is None:
            return True
        last = self._script.f_code.co_code[self._script.f_lasti]
        return dis.opname[last].startswith("RETURN_")

    def _call_when_ended(self) -> Callable[[], object]:
        # A child process of `multiprocessing` does not call `atexit` functions.
        if multiprocessing.parent_process() is None:
            atexit.register(self._ended)
            return functools.partial(atexit.unregister, self._ended)
        return Finalize(None, self._ended, exitpriority=0).cancel

    def _forked(self) -> None:
        if self._patches and self._on_fork is not None:
            self._process = os.getpid()
            self._cancel = self._call_when_ended()
            self._on_fork()

    def _exits(self, *args: Any, **_: Any) -> None:
        self._left(SystemExit(*args))

    def _quits(self, _: Quitter, code: Any = None, *__: Any) -> None:
        self._left(SystemExit(code))

    def _left(self, exit_: SystemExit) -> None:
        if threading.current_thread() is threading.main_thread():  # SystemExit ends only its own thread
            self._exit_status = status_after(exit_)


def status_after(error: BaseException | None) -> str:
    """Return the status of a run whose training was ended by `error`: FINISHED, FAILED or KILLED.

    The status is FINISHED if there is no error or a SystemExit with exit status 0, and KILLED for a KeyboardInterrupt.
    """
    if error is None or (isinstance(error, SystemExit) and _is_success(error.code)):
        return "FINISHED"
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


def _is_success(code: object) -> bool:
    """Whether the process's exit status is 0 after `SystemExit(code)`.

    The exit status is the last byte of an integer code, 0 for None, and 1 for any other value.
    """
    return code is None or (isinstance(code, int) and code & 0xFF == 0)


def last_error() -> BaseException | None:
    """Return the exception whose traceback Python printed last; None if there was none."""
    error: BaseException | None = vars(sys).get("last_value")
    return error


def die_of_interrupt() -> None:
    """Make sure that Python, which is ending after a KeyboardInterrupt, dies of SIGINT as usual.

    Python ends with status 1 instead if code was run from a string (`exec`) after the KeyboardInterrupt. The definition
    of a dataclass does so, in a module that is imported only now. Only the last `exec` counts, and this one is
    interrupted.
    """
    with suppress(KeyboardInterrupt):
        exec("raise KeyboardInterrupt")


def _script() -> FrameType | None:
    """The outermost frame of the main thread."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001 - documented
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
    return frame
