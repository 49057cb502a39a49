"""Threads that may be refused, as Python 3.12 and later start none while they exit, and work that may be given up."""

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
"""A thread has these by its own doing, and `faulthandler` is to hear of them."""


def started(thread: threading.Thread) -> bool:
    """Start a thread; False where the exiting interpreter refuses, and its work is to be done here and now.

    The thread, and any that is started in it, blocks all signals: the kernel gives one that the script blocks to
    whichever thread does not, and the process would die of what the script has put off.
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
    """What `function` returns, or raises; it goes on in a thread of its own where it takes longer.

    Args:
        seconds: how long it may take.
        function: what is waited for.
        more: seconds that are added for what it has done so far.

    Raises:
        TimeoutError: it took longer.
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
