"""The end of the script's process, and of the processes it forks: who is called then, and how it ended."""

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
    """Calls `on_end(status)` when the process ends: FINISHED, FAILED or KILLED, as MLflow has it.

    The status is None where the script has left by a `raise SystemExit(...)`: of its value no trace is left. Python
    tells functions at exit nothing. An exception it leaves in `sys.last_value`; exits are watched; whether the script
    has come to its own end its outermost frame tells.

    Args:
        on_end: called with the status, in another thread if a signal ends the process.
        on_fork: called in each process that `multiprocessing` forks, whose end is told too; None: it is not.
        on_sigterm: "end" calls `on_end("KILLED")` on SIGTERM and SIGHUP before they do what they would have done.
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
        """The script goes on: an exit or an exception that was seen before this was caught."""
        self._exit_status = None
        self._earlier_error = last_error()

    def remove(self) -> None:
        """Watch no more."""
        for patch in self._patches:
            patch.remove()
        self._patches = []
        self._cancel()
        TERMINATIONS.remove(self._terminated)

    def _ended(self) -> None:
        if (
            os.getpid() != self._process
        ):  # a fork that `multiprocessing` knows nothing of, without our threads
            return
        if "ipykernel" in sys.modules and threading.current_thread() is threading.main_thread():
            # Jupyter sends it to a kernel that is not gone 2.5 s after it was told to go, and waits as long again.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        error = self._error()
        with suppress(
            KeyboardInterrupt
        ):  # whoever waits for us has waited enough; the script is over already
            self._on_end(self._status(error))
        if type(error) is KeyboardInterrupt and multiprocessing.parent_process() is None:
            die_of_interrupt()

    def _error(self) -> BaseException | None:
        """The exception that ended the process, where Python has kept one."""
        if multiprocessing.parent_process() is not None:
            return sys.exc_info()[1]  # still on its way
        error = last_error()
        return None if error is self._earlier_error or self._goes_well() else error

    def _status(self, error: BaseException | None) -> str | None:
        if error is not None or self._goes_well() or multiprocessing.parent_process() is not None:
            return status_after(error)
        return self._exit_status

    def _goes_well(self) -> bool:
        """Whether no exception has ended the script: it has returned, or is a prompt, where an error ends nothing."""
        if hasattr(sys, "ps1") or self._script is None:
            return True
        last = self._script.f_code.co_code[self._script.f_lasti]
        return dis.opname[last].startswith("RETURN_")

    def _call_when_ended(self) -> Callable[[], object]:
        # A child of `multiprocessing` calls no `atexit` functions.
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
        if threading.current_thread() is threading.main_thread():  # in another one it ends that alone
            self._exit_status = status_after(exit_)


def status_after(error: BaseException | None) -> str:
    """How a run ends whose training `error` has ended: FINISHED, FAILED or KILLED."""
    if error is None or (isinstance(error, SystemExit) and _is_success(error.code)):
        return "FINISHED"
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


def _is_success(code: object) -> bool:
    """Whether the process's status is 0 after `SystemExit(code)`: of an integer the last byte, of all else 1."""
    return code is None or (isinstance(code, int) and code & 0xFF == 0)


def last_error() -> BaseException | None:
    """The exception that Python printed last."""
    error: BaseException | None = vars(sys).get("last_value")
    return error


def die_of_interrupt() -> None:
    """Let Python, which is ending after a KeyboardInterrupt, end by SIGINT all the same.

    It does unless somebody has run code from a string since then, as the definition of a dataclass does in a module
    that is loaded only now: then it ends with status 1. The last such code counts.
    """
    with suppress(KeyboardInterrupt):
        exec("raise KeyboardInterrupt")


def _script() -> FrameType | None:
    """The outermost frame of the main thread."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001 - documented
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
    return frame
