"""Trains the cells of a grid one after the other in this process, or several at a time in processes of their own."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import mlflow
from mlflow.entities import Run, RunStatus
from mlflow.environment_variables import MLFLOW_EXPERIMENT_ID
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from mlflow_dynamics import extras
from mlflow_dynamics.errors import DynamicsError, MissingDependencyError
from mlflow_dynamics.text import LOG_DATES, LOG_FORMAT
from mlflow_dynamics.tracking.claims import Claim, held
from mlflow_dynamics.tracking.query import tagged_runs
from mlflow_dynamics.tracking.store import connect_to_read, failing_as
from mlflow_dynamics.training.checkpoints import has_checkpoint
from mlflow_dynamics.training.interruption import ignore_interrupts, terminate_as_interrupt
from mlflow_dynamics.training.parameters import EngineConfig, TrainingConfig
from mlflow_dynamics.training.run import train_in_run

logger = logging.getLogger(__name__)

TAG_CELL: Final = "dynamics.grid_cell"
"""Tag of each child run: the digest of its parameters, by which a later start finds finished trainings."""

LOOK_S: Final = 2.0
"""How often an engine asks for more cells while others train."""

ENDING_S: Final = 60.0
"""The longest time that interrupted cells may take to end their runs."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell and where it is trained.

    Attributes:
        config: what is trained.
        parent: the id of the grid's run.
        experiment_id: the experiment of the grid.
        tracking_uri: the store.
        folder: the working folder, with the checkpoints; every machine sees it under this name.
        dead: claims on the cell that do not count.
    """

    config: TrainingConfig
    parent: str
    experiment_id: str
    tracking_uri: str
    folder: Path
    dead: frozenset[Claim] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a cell's turn ended.

    Attributes:
        cell: the cell.
        state: done; failed, with the reason; claimed by another grid; lost with the process or machine that trained it.
        reason: why it failed or was lost.
        epochs: how many epochs were trained.
    """

    cell: Cell
    state: Literal["done", "failed", "claimed", "lost"]
    reason: str = ""
    epochs: int = 0


class Engine(Protocol):
    """Trains cells, and yields the outcome of each as it ends, in any order.

    `more` gives the next cell that may be trained, or None if there is none at this moment. The engine ends when
    nothing trains any more and there is none. If it is closed, or interrupted, it ends the cells that train as KILLED.
    """

    def __call__(self, more: Callable[[], Cell | None]) -> Generator[Outcome, None, None]: ...


def engine_of(config: EngineConfig) -> Engine:
    """Return the engine that `config` asks for, connected.

    Raises:
        MissingDependencyError: Ray is not installed.
        ConfigError: the cluster does not answer.
    """
    if config.engine == "local":
        return in_this_process if config.jobs == 1 else partial(in_processes, jobs=config.jobs)
    extras.require("ray", "--engine ray")
    try:
        from mlflow_dynamics.training.on_ray import connected
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"--engine ray needs {error.name}; install it with: {extras.pip_command('ray')}"
        ) from error
    return connected(config)


def in_this_process(more: Callable[[], Cell | None]) -> Generator[Outcome, None, None]:
    """Train one cell after the other here."""
    while (cell := more()) is not None:
        yield train_cell(cell)


def in_processes(more: Callable[[], Cell | None], *, jobs: int) -> Generator[Outcome, None, None]:
    """Train `jobs` cells at a time, each in a process of its own, which the next cell goes on to use."""
    idle: list[tuple[Any, Any]] = []
    busy: dict[Any, tuple[Any, Cell]] = {}
    try:
        while True:
            while len(busy) < jobs and (cell := more()) is not None:
                connection, process = idle.pop() if idle else _worker()
                busy[connection] = process, cell
                with suppress(ConnectionError):  # it died while it was idle, which is seen below
                    connection.send(cell)
            if not busy:
                return
            ended: list[Any] = wait([*busy], LOOK_S)
            for ready in ended:
                process, cell = busy.pop(ready)
                try:
                    outcome = ready.recv()
                    idle.append((ready, process))
                except (EOFError, ConnectionError):
                    process.join()
                    outcome = Outcome(cell=cell, state="lost", reason=_how_ended(process.exitcode))
                yield outcome
    finally:
        if busy:
            ignore_interrupts()
        _end([*idle, *((connection, process) for connection, (process, _) in busy.items())])


def _worker() -> tuple[Any, Any]:
    """Start a process; return its connection and the process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there,))
    # A terminal sends Ctrl-C to all its processes; ours are ended by the one that started them.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    there.close()  # so that the end of the process is the end of what it sends
    return here, process


def _work(connection: Connection) -> None:
    """Train the cells that are sent, until no more can be."""
    os.environ["TQDM_DISABLE"] = "1"
    logging.basicConfig(format=LOG_FORMAT, datefmt=LOG_DATES)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    with open(os.devnull, "w") as nowhere, terminate_as_interrupt():  # noqa: PTH123
        sys.stdout = nowhere
        try:
            while True:
                connection.send(train_apart(connection.recv()))
        except (EOFError, ConnectionError, KeyboardInterrupt):
            return


def _end(workers: list[tuple[Any, Any]]) -> None:
    """Interrupt the training of each process, and wait until its run has ended."""
    for connection, process in workers:
        process.terminate()
        connection.close()
    deadline = time.monotonic() + ENDING_S
    for _, process in workers:
        process.join(max(0.0, deadline - time.monotonic()))
        process.kill()


def _how_ended(code: int) -> str:
    return f"its process ended with {f'status {code}' if code >= 0 else signal.Signals(-code).name}"


def train_apart(cell: Cell) -> Outcome:
    """Train a cell in a process that does not know yet in which folder and store."""
    os.chdir(cell.folder)
    os.environ[MLFLOW_EXPERIMENT_ID.name] = cell.experiment_id
    mlflow.set_tracking_uri(cell.tracking_uri)
    return train_cell(cell)


def train_cell(cell: Cell) -> Outcome:
    """Train a cell in its run, unless it is trained already or at this moment, and say how that ended.

    Raises:
        KeyboardInterrupt: the training was interrupted, and is KILLED.
    """
    config, digest, epochs = cell.config, cell.config.digest(), 0
    try:
        with held(cell.experiment_id, cell.parent, digest, dead=cell.dead) as claim:
            if claim is None:
                return Outcome(cell=cell, state="claimed")
            runs = tagged_runs(cell.experiment_id, TAG_CELL, digest)
            if not any(run.info.status == "FINISHED" for run in runs):
                tags = {TAG_CELL: digest, MLFLOW_PARENT_RUN_ID: cell.parent}
                try:
                    train_in_run(
                        replace(config, resume=_run_to_go_on_in(runs)), tags=tags, after_epoch=claim.count
                    )
                finally:
                    epochs = claim.done
    except (DynamicsError, RuntimeError, MemoryError, OSError) as error:
        logger.error("%s: %s", config.title, error, exc_info=not isinstance(error, DynamicsError))
        return Outcome(cell=cell, state="failed", reason=f"{error}" or type(error).__name__, epochs=epochs)
    return Outcome(cell=cell, state="done", epochs=epochs)


def _run_to_go_on_in(runs: list[Run]) -> str | None:
    """Return the run of a cell that has a checkpoint here; end those that a dead process has left RUNNING."""
    found = next((run.info.run_id for run in runs if has_checkpoint(run.info.run_id)), None)
    for run in runs:
        if run.info.status == "RUNNING" and run.info.run_id != found:
            with failing_as(f"Run {run.info.run_id} cannot be ended"):
                connect_to_read(mlflow.get_tracking_uri()).update_run_info(
                    run.info.run_id, RunStatus.KILLED, int(time.time() * 1000), None
                )
    return found
