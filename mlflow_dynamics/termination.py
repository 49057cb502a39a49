"""SIGTERM and SIGHUP: recordings are ended first, then the signal takes the effect that it has without us."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final, Literal

from mlflow_dynamics.threads import started

logger = logging.getLogger(__name__)

TIMEOUT_S: Final = 5.0
"""A signal is held up for at most this long, and for as long again if a recording was just being begun."""

LAST_WORDS_S: Final = 0.3
"""Part of `TIMEOUT_S` that is reserved for logging what is left undone."""

SIGNALS: Final = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


_ASKED: Final = 128
"""Added by our handler to the number that it writes into the pipe. Python itself writes the bare number. The script may
replace our handler with its own, and call ours from there."""


class Hurried(KeyboardInterrupt):
    """A signal came while the main thread was already ending the recording by itself."""


class Terminations:
    """Ends recordings when a signal is about to end the process, and then lets the signal end it.

    Python calls signal handlers between two steps of the main thread, which may hang in a library. So another thread
    is told of each signal at once, ends the recordings, and lets the signal take its default action. If the script has
    a handler of its own, the main thread calls it, as it would without us.

    A signal is put off while the main thread itself begins a recording (`beginning`) or ends one (`hurrying`).
    """

    def __init__(self) -> None:
        self._came: float | None = None
        self._ends: list[Callable[[], object]] = []
        self._earlier: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._ending = False
        self._main: Literal["begins", "ends"] | None = None
        self._put_off: list[int] = []
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._leave_to_the_parent)

    def add(self, end: Callable[[], object]) -> None:
        """Call `end` in another thread when a signal comes. Has no effect, but a warning, outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            logger.warning("on_sigterm='end' has no effect: Python handles signals in the main thread alone.")
            return
        self._ends.append(end)
        self._install()

    def remove(self, end: Callable[[], object]) -> None:
        """Do not call `end` any more; the signals are given back if nothing else is left to be ended."""
        if end in self._ends:
            self._ends.remove(end)
        if not (self._ends or self._ending) and threading.current_thread() is threading.main_thread():
            self._give_back()

    @property
    def begun(self) -> bool:
        """Whether a signal has come and has not acted yet."""
        return self._came is not None

    @property
    def left_s(self) -> float:
        """The seconds for which the signal that has come is still held up, less `LAST_WORDS_S`; 0 if none has come."""
        return (
            0.0 if self._came is None else max(self._came + TIMEOUT_S - LAST_WORDS_S - time.monotonic(), 0.0)
        )

    @contextmanager
    def beginning(self) -> Iterator[None]:
        """Put signals off inside the block, which begins a recording and calls `add`."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def nothing() -> None:
            """Do nothing: there is nothing to be ended yet."""

        self.add(nothing)
        try:
            with self._by_main("begins"):
                yield
        finally:
            self.remove(nothing)

    @contextmanager
    def hurrying(self) -> Iterator[None]:
        """Let a signal raise `Hurried` in the block, which ends the recording in the main thread.

        `Hurried` does not leave the block, and the signal acts when the block is over. If the block takes longer than
        `TIMEOUT_S`, a signal with default action ends the process meanwhile, while a handler of the script waits for
        the block.
        """
        if not self._ends or threading.current_thread() is not threading.main_thread():
            yield
            return
        with self._by_main("ends"), suppress(Hurried):
            yield

    @contextmanager
    def _by_main(self, what: Literal["begins", "ends"]) -> Iterator[None]:
        before, self._main = self._main, what
        try:
            yield
        finally:
            self._main = before
            while self._put_off and before is None:
                self._handle(self._put_off.pop(0), sys._getframe())  # noqa: SLF001 - documented

    def _install(self) -> None:
        if self._pipe is None:
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            started(threading.Thread(target=self._watch, name="mlflow_dynamics-signals", daemon=True))
        for number in SIGNALS:
            # An ignored signal stays ignored (`nohup`), and a handler that was not set by Python stays in place.
            if number not in self._earlier and signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._earlier[number] = signal.signal(number, self._handle)
        _keep_unless_ours(signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False), self._pipe[1])

    def _give_back(self) -> None:
        """Restore the earlier handlers. If the script has replaced ours, its handler stays, and may still call ours."""
        for number in [number for number in self._earlier if signal.getsignal(number) == self._handle]:
            signal.signal(number, self._earlier.pop(number))
        if self._pipe is not None:
            _keep_unless_ours(signal.set_wakeup_fd(-1), self._pipe[1])

    def _leave_to_the_parent(self) -> None:
        """Give the signals back in a forked process, whose signals do not concern the parent's recordings."""
        self._ends = []
        with suppress(ValueError):  # raised outside the main thread
            self._give_back()
        self._pipe = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal in the main thread. Takes no lock, since another signal may interrupt this function."""
        self._came = self._came or time.monotonic()
        if self._main is not None:
            self._put_off.append(number)
            if self._main == "ends" and len(self._put_off) == 1:
                raise Hurried
            return
        # While another signal ends the recordings, `_ends` may be empty already.
        if self._pipe is not None and (self._ends or self._ending):
            self._ending = True
            with suppress(BlockingIOError):
                os.write(self._pipe[1], bytes([number + _ASKED]))
            deadline = time.monotonic() + TIMEOUT_S
            while self._ending and time.monotonic() < deadline:
                time.sleep(0.01)
        try:
            self._act(number, frame)
        finally:
            self._came = None

    def _act(self, number: int, frame: FrameType | None) -> None:
        """Let a signal take the effect that it has without us."""
        earlier = self._earlier.get(number, signal.SIG_DFL)
        if callable(earlier):
            earlier(number, frame)
        elif earlier == signal.SIG_DFL:
            take_default_action(number)

    def _watch(self) -> None:
        assert self._pipe is not None
        while received := os.read(self._pipe[0], 1):
            number = received[0] % _ASKED
            if number not in self._earlier:
                continue
            if received[0] < _ASKED and signal.getsignal(number) != self._handle:
                continue  # the script has replaced our handler, so the signal is the script's
            if received[0] >= _ASKED and not self._ending:
                continue  # Python has written the same signal into the pipe before, and it has been handled
            self._came, self._ending = self._came or time.monotonic(), True
            deadline = time.monotonic() + TIMEOUT_S
            while self._main is not None and time.monotonic() < deadline:
                time.sleep(0.01)
            ending = threading.Thread(target=self._end, name="mlflow_dynamics-ending", daemon=True)
            if self._main is None and started(ending):
                ending.join(TIMEOUT_S)
            self._ending = False
            if received[0] < _ASKED and self._earlier.get(number) == signal.SIG_DFL:
                take_default_action(number)

    def _end(self) -> None:
        for end in list(self._ends):
            end()


def _keep_unless_ours(other: int, ours: int) -> None:
    """Restore the file descriptor of somebody else, such as asyncio, who is told of signals."""
    if other not in (-1, ours):
        signal.set_wakeup_fd(other)


def take_default_action(number: int) -> None:
    """Let a signal take its default action. Works in any thread; `signal.signal` works only in the main thread."""
    ctypes.pythonapi.PyOS_setsig(number, ctypes.c_void_p(0))
    os.kill(os.getpid(), number)


TERMINATIONS: Final = Terminations()
