"""Starts threads, which an exiting Python 3.12 or later refuses; waits for work for a limited time, or has it done
aside.
"""

from __future__ import annotations

import contextvars
import queue
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Final, TypeVar

Result = TypeVar("Result")


_FAULTS: Final = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}
"""Signals that a thread causes by its own faults. They are not blocked, so that `faulthandler` can report them."""


def started(thread: threading.Thread) -> bool:
    """Start a thread; return False if the exiting interpreter refuses, so that the caller must do the work itself.

    The thread, and every thread started in it, blocks all signals except faults. Otherwise the kernel would deliver a
    signal that the script has blocked to our thread, and the process would die of a signal that the script has put off.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)
        thread.start()
    except RuntimeError:
        return False
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return True


def within(
    seconds: float, function: Callable[[], Result], *, more: Callable[[], float] = lambda: 0.0
) -> Result:
    """Run `function` in a thread of its own and return its result, or raise its exception.

    If `function` takes too long, it goes on in its thread, and nobody waits for it.

    Args:
        seconds: how long `function` may take.
        function: the function to wait for.
        more: called while waiting; returns the seconds that are added for the progress made so far.

    Raises:
        TimeoutError: `function` took longer.
    """
    context = contextvars.copy_context()
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(context.run(function))
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            future.set_exception(error)

    began = time.monotonic()
    if not started(threading.Thread(target=work, name="mlflow-dynamics-within", daemon=True)):
        work()
    while True:
        left = began + seconds + more() - time.monotonic()
        try:
            return future.result(max(left, 0.0))
        except TimeoutError:
            if left <= 0 or future.done():
                raise


class Aside:
    """Does one piece of work after the other in a thread of its own, which ends with the process at the latest.

    Args:
        name: of the thread.
        waiting: how much work may wait; more is refused.
    """

    def __init__(self, name: str, *, waiting: int) -> None:
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(waiting)
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._started = started(self._thread)

    def put(self, work: Callable[[], None]) -> bool:
        """Have work done, which raises nothing, without waiting for it; False if too much waits already."""
        with suppress(queue.Full):
            self._queue.put_nowait(work)
            return self._started
        return False

    def finish(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` seconds until all work is done; False if some is left."""
        deadline = time.monotonic() + timeout_s
        with suppress(queue.Full):
            self._queue.put(None, timeout=timeout_s)
        if self._started:
            self._thread.join(max(deadline - time.monotonic(), 0.0))
        return self._queue.empty() and not self._thread.is_alive()

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            work()
