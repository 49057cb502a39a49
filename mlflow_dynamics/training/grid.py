"""Trains the cells of a grid as child runs of one run. Finished trainings are not repeated."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import mlflow
from mlflow.entities import RunTag
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from tqdm import tqdm

from mlflow_dynamics.errors import DynamicsError, TrackingError
from mlflow_dynamics.redaction import redact
from mlflow_dynamics.threads import started
from mlflow_dynamics.tracking.claims import Claim, Watch, claims, open_to_claims
from mlflow_dynamics.tracking.query import tagged_runs
from mlflow_dynamics.tracking.runs import named
from mlflow_dynamics.tracking.store import connect_to_read, failing_as
from mlflow_dynamics.tracking.sync import sync
from mlflow_dynamics.training.engines import LOOK_S, TAG_CELL, Cell, Engine, Outcome, in_this_process
from mlflow_dynamics.training.interruption import said_when_interrupted
from mlflow_dynamics.training.parameters import TrainingConfig
from mlflow_dynamics.training.progress import progress_bar
from mlflow_dynamics.training.run import interruptible, managed_run

logger = logging.getLogger(__name__)

POLL_S: Final = 5.0
"""How often the claims of other grids are looked at, while their cells are waited for."""

MOST_TRIES: Final = 3
"""So often is a cell begun whose process or machine dies."""

GO_ON: Final = (
    "Give the same command again: what is trained is kept, and a training goes on after its last whole epoch."
)


def train_grid(cells: Sequence[TrainingConfig], engine: Engine = in_this_process) -> str:
    """Train every cell as a child run of one parent; return the parent's id.

    If an earlier start in this experiment has finished a cell, its run is moved under this parent, and the cell is not
    trained again. An interrupted cell goes on in its own run, from its checkpoint. A cell that another grid trains at
    this moment stays with it, is waited for, and is trained here if that grid dies.

    Raises:
        TrackingError: the tracking server does not answer, or refuses access, when the grid begins.
        DynamicsError: one or more cells could not be trained; all others were.
        KeyboardInterrupt: the grid was interrupted (Ctrl-C or SIGTERM). The cells that were training are KILLED.
    """
    with (
        interruptible() as prepared,
        managed_run(f"grid of {len(cells)} trainings", prepared=prepared, system_metrics=False) as (
            parent_id,
            writer,
        ),
        said_when_interrupted(lambda: GO_ON),
    ):
        parent = mlflow.active_run()
        if parent is None:
            raise TrackingError(
                f"The grid asks MLflow at {redact(mlflow.get_tracking_uri())} what is already trained, and gets "
                "no answer, for the reason that is logged above; see to that, then give the same command again."
            )
        writer.log_params({"cells": len(cells)})
        open_to_claims(parent_id)
        sync()  # what earlier starts could not send, by which a finished cell is known
        place = Cell(
            config=TrainingConfig(),
            parent=parent_id,
            experiment_id=parent.info.experiment_id,
            tracking_uri=mlflow.get_tracking_uri(),
            folder=Path.cwd(),
        )
        missing = [replace(place, config=config) for config in cells if not _finished(config, place)]
        tally = _Tally(missing, place)
        logger.info("%d of %d cells are to be trained, of %d epochs", len(missing), len(cells), tally.planned)
        with tally.shown():
            while tally.waiting:
                with closing(engine(tally.more)) as outcomes:
                    for outcome in outcomes:
                        tally.add(outcome)
                if tally.waiting:
                    time.sleep(POLL_S)
        if tally.failures:
            raise DynamicsError(
                f"{len(tally.failures)} of the grid's trainings failed: "
                + "; ".join(f"{name}: {reason}" for name, reason in tally.failures.items())
            )
    return parent_id


def _finished(config: TrainingConfig, place: Cell) -> bool:
    """Whether the cell is trained already. Its run is moved under this grid's."""
    runs = tagged_runs(place.experiment_id, TAG_CELL, config.digest())
    run = next((run for run in runs if run.info.status == "FINISHED"), None)
    if run is None:
        return False
    run_id = run.info.run_id
    logger.info("%s: not trained again, finished in run %s", config.title, named(run))
    with failing_as(f"Run {run_id} cannot be moved under this grid's"):
        store = connect_to_read(mlflow.get_tracking_uri())
        store.set_tag(run_id, RunTag(MLFLOW_PARENT_RUN_ID, place.parent))
    return True


class _Tally:
    """Which cells wait, which are handed out, and how the others ended."""

    def __init__(self, cells: Sequence[Cell], place: Cell) -> None:
        self.waiting = deque(cells)
        self.failures: dict[str, str] = {}
        self.planned = sum(cell.config.epochs for cell in cells)
        self._cells = len(cells)
        self._place = place
        self._done = 0
        self._trained = 0
        self._running: list[Claim] = []
        self._tries: Counter[str] = Counter()
        self._watch = Watch()
        self._looked = -math.inf
        self._held: set[str] = set()
        self._dead: frozenset[Claim] = frozenset()
        self._began = time.monotonic()

    def more(self) -> Cell | None:
        """Take a cell that nobody trains; None if there is none at this moment.

        Raises:
            TrackingError: MLflow does not answer, and nothing trains here that would go on without it.
        """
        if self.waiting and time.monotonic() - self._looked > POLL_S:
            try:
                seen = claims(self._place.experiment_id)
            except TrackingError as error:
                if len(self.waiting) + self._ended == self._cells:
                    raise
                logger.warning("No further cell is begun: %s", error)
                return None
            self._dead = self._watch.dead(seen)
            self._held = {claim.what for claim in seen if claim not in self._dead}
            self._looked = time.monotonic()
        free = next((cell for cell in self.waiting if cell.config.digest() not in self._held), None)
        if free is None:
            return None
        self.waiting.remove(free)
        return replace(free, dead=self._dead)

    def add(self, outcome: Outcome) -> None:
        """Note how a cell's turn ended; one that is to be tried again waits once more."""
        config = outcome.cell.config
        digest = config.digest()
        lost = outcome.state == "lost"
        self._tries[digest] += lost
        again = lost and self._tries[digest] < MOST_TRIES
        if again:
            logger.warning("%s: %s; it is tried again", config.title, outcome.reason)
            self.waiting.appendleft(outcome.cell)
        elif outcome.state == "claimed":
            self.waiting.append(outcome.cell)
        if again or outcome.state == "claimed":
            self._held.add(digest)  # until the claims are looked at again
            return
        self.planned += outcome.epochs - config.epochs
        self._trained += outcome.epochs
        if outcome.state == "done":
            self._done += 1
        else:
            self.failures[config.title] = outcome.reason
        self._look()
        logger.info("%s%s", self._said(), self._time_left())

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the cells and the epochs in a terminal during the block."""
        ended = threading.Event()
        with progress_bar(self.planned, unit="epoch") as bar:

            def draw() -> None:
                while not ended.wait(LOOK_S):
                    self._look()
                    bar.n, bar.total = self._epochs, self.planned
                    bar.set_postfix_str(self._said())

            drawing = threading.Thread(target=draw, name="mlflow-dynamics-grid", daemon=True)
            if not bar.disable:
                started(drawing)
            try:
                yield
            finally:
                ended.set()
                if drawing.is_alive():
                    drawing.join(2 * LOOK_S)

    @property
    def _ended(self) -> int:
        return self._done + len(self.failures)

    @property
    def _epochs(self) -> int:
        return self._trained + sum(claim.done for claim in self._running)

    def _look(self) -> None:
        """See in the store what trains: not here, where it may have been handed on to a queue."""
        with suppress(TrackingError):
            parent = self._place.parent
            found = claims(self._place.experiment_id)
            self._running = [one for one in found if one.run_id == parent and not one.is_gone()]

    def _said(self) -> str:
        running = len(self._running)
        waiting = max(0, self._cells - self._ended - running)
        return f"cells: {waiting} waiting, {running} running, {self._done} done, {len(self.failures)} failed"

    def _time_left(self) -> str:
        """The time that is left if all epochs take what those before took, which they need not."""
        seconds = time.monotonic() - self._began
        left = self.planned - self._epochs
        if not self._epochs or not left:
            return ""
        return (
            f"; {self._epochs / seconds:.2g} epochs a second, so about "
            f"{tqdm.format_interval(left * seconds / self._epochs)} for the {left} that are left"
        )
