"""Ctrl-C and SIGTERM: one interruption, after which the run is KILLED and stays so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

import psutil
from mlflow import MlflowClient

LAUNCHER_TIMEOUT_S: Final = 60.0
"""How long `mlflow run` may take to end after its training was interrupted."""


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM (a scheduler's or `mlflow run`'s request to stop) as Ctrl-C, where signals can be handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def ignore_interrupts() -> None:
    """Finish what follows: `mlflow run` answers Ctrl-C with a SIGTERM to the training that already ends."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def keep_killed(run_id: str) -> None:
    """Mark the run KILLED once more when `mlflow run`, which launched this process, has ended.

    MLflow marks every launched run that did not exit with status 0 as FAILED: it means to leave an ended run alone,
    but compares the name of its status with numbers (`mlflow.projects._maybe_set_run_terminated`, 3.17).
    """
    subprocess.Popen(
        [sys.executable, "-m", "mlflow_dynamics.training.interruption", run_id, str(os.getppid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def main(run_id: str, launcher: str) -> None:
    """Wait for the launcher to end, then mark the run."""
    try:
        psutil.Process(int(launcher)).wait(LAUNCHER_TIMEOUT_S)
    except psutil.NoSuchProcess:
        pass
    except psutil.TimeoutExpired:
        return
    MlflowClient().set_terminated(run_id, "KILLED")


if __name__ == "__main__":
    main(*sys.argv[1:])
