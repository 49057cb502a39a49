"""Handles Ctrl-C and SIGTERM as one interruption, after which the run is KILLED and keeps this status."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, Literal

import mlflow
from mlflow.entities import RunStatus

from mlflow_dynamics.tracking.store import connect_to_read

logger = logging.getLogger(__name__)

LAUNCHER_TIMEOUT_S: Final = 60.0
"""The longest time that `mlflow run` may take to end after its training was interrupted."""


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM (a scheduler's or `mlflow run`'s request to stop) as Ctrl-C inside the block.

    After the block, both signals are handled as before, even if `ignore_interrupts` was called meanwhile. Outside the
    main thread, where Python cannot set handlers, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: the handler was not set by Python, which cannot restore it
                signal.signal(number, handler)


@contextmanager
def said_when_interrupted(sentence: Callable[[], str]) -> Iterator[None]:
    """Log the sentence at once if the block is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        logger.info("Interrupted. %s", sentence())
        raise


def ignore_interrupts() -> None:
    """Ignore SIGTERM and SIGINT from now on, so that the training can end in peace.

    After Ctrl-C, `mlflow run` also sends SIGTERM to the training, which is ending already.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def keep_killed(run_id: str) -> None:
    """Mark the run KILLED once more when `mlflow run`, which launched this process, has ended.

    MLflow marks every launched run that did not exit with status 0 as FAILED. It intends to leave an ended run alone,
    but compares the name of the run's status with numbers (`mlflow.projects._maybe_set_run_terminated`, 3.17).
    """
    after_launcher(run_id, "kill")


def after_launcher(run_id: str, then: Literal["kill", "delete"]) -> None:
    """Mark a run KILLED, or delete it, after `mlflow run` has ended. Until then `mlflow run` changes the run itself."""
    subprocess.Popen(
        [sys.executable, "-m", "mlflow_dynamics.training.interruption", run_id, str(os.getppid()), then],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def main(run_id: str, launcher: str, then: str) -> None:
    """Wait for the launcher to end, then mark or delete the run.

    Args:
        run_id: the run's id.
        launcher: the process id of `mlflow run`.
        then: "delete" deletes the run; "kill" marks it KILLED.
    """
    import psutil  # part of the extra `train`; without it this process fails, and the run stays as it is

    try:
        psutil.Process(int(launcher)).wait(LAUNCHER_TIMEOUT_S)
    except psutil.NoSuchProcess:
        pass
    except psutil.TimeoutExpired:
        return
    store = connect_to_read(mlflow.get_tracking_uri())  # nobody waits for this process
    if then == "delete":
        store.delete_run(run_id)
    else:
        store.update_run_info(run_id, RunStatus.KILLED, int(time.time() * 1000), None)


if __name__ == "__main__":
    main(*sys.argv[1:])
