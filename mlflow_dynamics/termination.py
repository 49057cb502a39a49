"""SIGTERM and SIGHUP: what is being recorded is ended first, then the signal does what it would have done."""

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
"""A signal is held up for this long at most, and as long again where a recording was just being begun."""

LAST_WORDS_S: Final = 0.3

SIGNALS: Final = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


_ASKED: Final = 128
"""Added to a signal's number by our handler, which may be called by one of the script's that has replaced it."""


class Hurried(KeyboardInterrupt):
    """A signal has come while the main thread itself was ending what the signal would have ended."""


class Terminations:
    """Calls what is to be ended when a signal is to end the process, and then lets the signal do so.

    Python calls its handlers between two steps of the main thread, which may hang in a library. So another thread
    hears of each signal at once, ends what is to be ended, and lets the signal take its default action. A handler of
    the script's own the main thread calls, as ever.

    What the main thread does by itself puts a signal off: `beginning` a recording, or `hurrying` to end it.
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
        """Call `end`, in another thread, if a signal comes."""
        if threading.current_thread() is not threading.main_thread():
            logger.warning("on_sigterm='end' has no effect: Python handles signals in the main thread alone.")
            return
        self._ends.append(end)
        self._install()

    def remove(self, end: Callable[[], object]) -> None:
        """Do not call it any more."""
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
        """For how long the signal that has come is still held up, less what it takes to say what is left undone."""
        return (
            0.0 if self._came is None else max(self._came + TIMEOUT_S - LAST_WORDS_S - time.monotonic(), 0.0)
        )

    @contextmanager
    def beginning(self) -> Iterator[None]:
        """Around what begins a recording, and calls `add`: a signal acts when that is done."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def nothing() -> None:
            """There is nothing to be ended yet."""

        self.add(nothing)
        try:
            with self._by_main("begins"):
                yield
        finally:
            self.remove(nothing)

    @contextmanager
    def hurrying(self) -> Iterator[None]:
        """Around what ends the recording in the main thread: a signal raises `Hurried` in it, and acts when it is over.

        `Hurried` does not leave the block. What takes longer than a signal is held up for is cut off by a signal that
        ends the process, and waited for by a handler of the script's.
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
            # One that is ignored stays so (`nohup`), as does a handler that is not of Python.
            if number not in self._earlier and signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._earlier[number] = signal.signal(number, self._handle)
        _keep_unless_ours(signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False), self._pipe[1])

    def _give_back(self) -> None:
        """Leave the signals to whoever had them; where somebody has taken one since, ours may still be called."""
        for number in [number for number in self._earlier if signal.getsignal(number) == self._handle]:
            signal.signal(number, self._earlier.pop(number))
        if self._pipe is not None:
            _keep_unless_ours(signal.set_wakeup_fd(-1), self._pipe[1])

    def _leave_to_the_parent(self) -> None:
        """In a forked process, whose signals are none of the parent's."""
        self._ends = []
        with suppress(ValueError):  # not in the main thread of an interpreter
            self._give_back()
        self._pipe = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """In the main thread; another signal may come in the midst of this, so it takes no lock."""
        self._came = self._came or time.monotonic()
        if self._main is not None:
            self._put_off.append(number)
            if self._main == "ends" and len(self._put_off) == 1:
                raise Hurried
            return
        # What another signal is ending may have left the list by now.
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
        """Let a signal do what it would have done without us."""
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
                continue  # it is the script's, which has replaced ours
            if received[0] >= _ASKED and not self._ending:
                continue  # it was heard without being asked, too, and has acted
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
    """Where somebody else (asyncio) hears of signals already, or by now, let it be so."""
    if other not in (-1, ours):
        signal.set_wakeup_fd(other)


def take_default_action(number: int) -> None:
    """Let a signal do what it does where nobody handles it; in any thread, where `signal.signal` works in one alone."""
    ctypes.pythonapi.PyOS_setsig(number, ctypes.c_void_p(0))
    os.kill(os.getpid(), number)


TERMINATIONS: Final = Terminations()
