"""Starts threads, which an exiting Python 3.12 or later refuses, and waits for work for a limited time."""

from __future__ import annotations

import contextvars
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
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
