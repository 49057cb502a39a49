"""The tracker: the methods that a training calls, and the thread that takes each epoch from the training."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from numbers import Integral
from types import TracebackType
from typing import Final

from mlflow_dynamics.config import OnSigterm
from mlflow_dynamics.convergence import Schedule
from mlflow_dynamics.deprecation import warn_of_old_name
from mlflow_dynamics.epoch_metrics import EpochMetrics, Intake
from mlflow_dynamics.errors import unknown_choice
from mlflow_dynamics.pipeline import EpochResult
from mlflow_dynamics.process_end import ProcessEnd, status_after
from mlflow_dynamics.recording import Recorder
from mlflow_dynamics.recording.boundary import Boundary
from mlflow_dynamics.recording.pending_epoch import PendingEpoch
from mlflow_dynamics.recording.schedule_reader import ScheduleReader
from mlflow_dynamics.records import EpochActivations, EpochRecord
from mlflow_dynamics.report.at_a_glance import html_of
from mlflow_dynamics.report.notebook import LiveFigure
from mlflow_dynamics.run_log import RunLog
from mlflow_dynamics.termination import TERMINATIONS
from mlflow_dynamics.threads import started
from mlflow_dynamics.tracking import names
from mlflow_dynamics.tracking.queue_entry import END_STATUSES
from mlflow_dynamics.tracking.recorded_epochs import recorded_epochs

logger = logging.getLogger(__name__)

MAX_PENDING_EPOCHS: Final = 64
"""The most epochs that wait to be measured; a further epoch goes unrecorded, because training must not wait."""

VERDICT_TIMEOUT_S: Final = 5.0
"""`should_stop()` waits at most this long for the last epoch's verdict."""

CLOSE_TIMEOUT_S: Final = 30.0
"""At the end of training, wait at most this long until the remaining records are sent."""

MEASURED_TIMEOUT_S: Final = 3.0
"""Before a signal ends the process, wait at most this long for epochs to be measured, and draw no report."""


class ShouldStop:
    """The question `tracker.should_stop()`, in the form of a method.

    The answer is True if the convergence signal says so (only with "stop"), or `mlflow-dynamics watch --stop` has asked
    for it. It waits up to 5 s for the verdict of the last ended epoch. Where several processes train, ask on every
    rank: all get the same answer.

    Until 0.1 it was asked as a property, `if tracker.should_stop:`. A method's name alone is always true, which would
    end that training after one epoch: so it asks too, with a warning.
    """

    def __init__(self, ask: Callable[[], bool]) -> None:
        self._ask = ask

    def __call__(self) -> bool:
        """Ask."""
        return self._ask()

    def __bool__(self) -> bool:
        warn_of_old_name("tracker.should_stop as a property", "tracker.should_stop()", stacklevel=2)
        return self._ask()


class Tracker:
    """Follows one training. Made by `track`; ended by `close()`, by leaving its `with` block, or with the process.

    Args:
        recorder: the model's recorder.
        run_log: takes the epochs; None if another process of the training writes the run, to which this process hands
            over its part of each epoch.
        close: called with the status and a timeout in seconds when all is written; None leaves the writer open for
            whoever made it.
        reads_schedule: read the schedule from the training's scheduler.
        figure: the run's figure in a notebook.

    No method raises because of a failure of ours: the failure is logged once, recording stops, training goes on.
    """

    def __init__(
        self,
        recorder: Recorder,
        run_log: RunLog | None,
        *,
        close: Callable[[str, float], object] | None,
        reads_schedule: bool = False,
        figure: LiveFigure | None = None,
    ) -> None:
        self._recorder = recorder
        self._run_log = run_log
        self._end = close
        self._figure = figure
        self._next_epoch = 0
        self._held = 0
        # `carry_on` sets both to False. `_begun`: an epoch has ended since then. `_placed`: the script has said at
        # which epoch the training goes on.
        self._begun = self._placed = True
        self._schedule = ScheduleReader() if reads_schedule else None
        self._boundary = Boundary(recorder.remove)
        self._measured = threading.Condition()
        self._result: EpochResult | None = None
        self._overflowed = False
        self._intake = Intake()
        self._global_step: dict[str, float] = {}
        self._process: ProcessEnd | None = None
        self._closing = threading.RLock()
        self._closed = False
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue(MAX_PENDING_EPOCHS)
        self._worker = threading.Thread(target=self._work, name="mlflow_dynamics-measuring", daemon=True)

    def start(self) -> Tracker:
        """Begin to take epochs, in a thread; returns the tracker itself."""
        if self._run_log is not None:
            self._run_log.start()
        started(self._worker)
        return self

    def close_at_exit(self, on_sigterm: OnSigterm = None) -> None:
        """Close the tracker when the process ends, if the script has not: epochs may be unmeasured or unsent then."""
        self._process = ProcessEnd(self._close_as_process_ends, on_sigterm=on_sigterm)

    def start_at(self, epoch: int, *, step: int) -> None:
        """Count on from `epoch` and from training step `step`: the training has been resumed from a checkpoint."""
        self._next_epoch = epoch
        self._placed = True
        self._recorder.start_at(step)

    def at_global_step(self, step: int) -> None:
        """Log the framework's own count of the last step with the epoch that ends next."""
        self._global_step = {names.GLOBAL_STEP: float(step)}

    def carry_on(self, run_id: str, *, tracking_uri: str | None = None) -> None:
        """Go on where the training that this run holds has ended.

        Raises:
            TrackingError: the run cannot be read.
            DataError: a file of the run is damaged.
        """
        assert self._run_log is not None
        for recorded in recorded_epochs(run_id, tracking_uri=tracking_uri):
            self._result = self._run_log.recall(recorded)
            self._count_on(recorded.activations)
        self._held = self._next_epoch
        self._begun = self._placed = False
        logger.info("Run %s is carried on: its record ends with epoch %d.", run_id, self._held - 1)

    def _count_on(self, activations: EpochActivations) -> None:
        self._next_epoch = activations.epoch + 1
        if len(activations.step):
            self._recorder.start_at(int(activations.step[-1]) + self._recorder.config.record_every)

    # ---- called by the training ----

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id; None until a tracking server has created the run, and on ranks that have no run."""
        return None if self._run_log is None else self._run_log.writer.run_id

    def _repr_html_(self) -> str:
        """Return what a notebook shows of the tracker: the run's name with a link, the verdict so far, its charts."""
        if self._run_log is None:
            return "Another process of this training writes its run."
        return html_of(self._run_log.so_far())

    def end_epoch(
        self,
        metrics: Mapping[str, object] | int | None = None,
        /,
        *,
        epoch: int | None = None,
        **values: object,
    ) -> None:
        """End an epoch: hand its activations to the background, to be measured and logged with the metrics.

        `end_epoch({"train/loss": loss})` and `end_epoch(accuracy=accuracy)` log beside the dynamics with step = epoch.
        Each value is read at the time of the call; a tensor on a GPU is copied without waiting for it. A value that is
        not a number, or whose key MLflow does not accept, is left out and named in one log line.

        Args:
            metrics: metric key -> number. (Until 0.1, this was the epoch's number, which is still accepted.)
            epoch: the epoch's number, from 0; None is the number after the last epoch's.
            values: more metrics, by key.
        """
        if self._process is not None:
            self._process.not_yet()
        if isinstance(metrics, Integral):
            metrics, epoch = None, int(metrics) if epoch is None else epoch
        if self._figure is not None:
            self._figure.show()
        self._boundary.run(self._end_epoch, epoch, metrics, values)

    @contextmanager
    def epoch(self, number: int) -> Iterator[None]:
        """`with tracker.epoch(n):` stands around one epoch. If an exception leaves it, the epoch is not recorded."""
        with ExitStack() as left_by_an_exception:
            left_by_an_exception.callback(self._recorder.discard)
            yield
            left_by_an_exception.pop_all()
        self.end_epoch(epoch=number)

    def pause(self) -> None:
        """Draw the report, because the training is waiting for its user."""
        with suppress(queue.Full):
            self._waiting.put_nowait(partial(self._redraw, idle=True))

    def wait(self, epoch: int, *, timeout: float = VERDICT_TIMEOUT_S) -> EpochResult | None:
        """Wait up to `timeout` seconds for `epoch` to be measured; returns the latest result, of whichever epoch."""
        with self._measured:
            self._measured.wait_for(
                lambda: self._boundary.failure or (self._result is not None and self._result.epoch >= epoch),
                timeout,
            )
            return self._result

    @property
    def should_stop(self) -> ShouldStop:
        """`tracker.should_stop()`: whether to stop after the last ended epoch. See `ShouldStop`."""
        return ShouldStop(self._ask_whether_to_stop)

    def _ask_whether_to_stop(self) -> bool:
        stop = False
        if self._run_log is not None and self._next_epoch > 0:
            stop = self._run_log.writer.stop_requested or self._verdict_says_stop()
        if self._recorder.exchange is not None:
            stop = self._recorder.exchange.agree(self._recorder.epochs_ended, stop)
        if stop and self._run_log is not None:
            self._boundary.run(self._run_log.writer.set_tags, {names.TAG_STOPPED_EARLY: "true"})
        return stop

    def close(self, status: str = "FINISHED") -> None:
        """Measure and send what is left, detach from the model, and end the run if it is ours.

        A second call does nothing.

        Raises:
            KeyboardInterrupt: the user has interrupted this call. After one interrupt the report is not drawn; after
                one during sending, the rest is kept, to be sent later.
            ConfigError: the status is not one of MLflow's.
        """
        if status not in END_STATUSES:
            raise unknown_choice("status", status, END_STATUSES)
        try:
            # The lock waits for a close that goes on in another thread.
            with TERMINATIONS.hurrying(), self._closing:
                if not self._closed:
                    self._closed = True
                    self._close(status)
        finally:
            if self._process is not None:
                self._process.remove()

    def _close(self, status: str) -> None:
        self._recorder.remove()
        # The report and the run's end have boundaries of their own, so that an earlier failure does not prevent them.
        ending = Boundary(self._recorder.remove)
        interrupt: KeyboardInterrupt | None = None
        try:
            self._finish_measuring()
            Boundary(self._recorder.remove).run(self._conclude)
        except KeyboardInterrupt as error:  # the report is given up, but nothing that was recorded
            interrupt = error
        try:
            if interrupt is not None:
                self._finish_measuring()
            ending.run(self._end_run, status, TERMINATIONS.left_s if TERMINATIONS.begun else CLOSE_TIMEOUT_S)
        except KeyboardInterrupt as error:
            interrupt = error
            ending.run(self._end_run, status, TERMINATIONS.left_s)
        if interrupt is not None:
            raise interrupt

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(status_after(error))

    def _verdict_says_stop(self) -> bool:
        result = self.wait(self._next_epoch - 1)
        return result is not None and result.verdict is not None and result.verdict.should_stop

    def _end_epoch(self, epoch: object, metrics: object, values: Mapping[str, object]) -> None:
        number = self._intake.number(epoch, expected=self._next_epoch)
        if not self._begun:
            self._tell_where_it_goes_on(number, placed=self._placed or epoch is not None)
        self._next_epoch = number + 1
        # If another process writes the run, it logs its own metrics and not these.
        logged = EpochMetrics() if self._run_log is None else self._intake.metrics(metrics, values)
        schedule = self._read_schedule(number, metrics)
        pending = self._recorder.end_epoch(number)
        if number < self._held:
            logger.info("Epoch %d is in the run already, and is not recorded again.", number)
            self._put(partial(self._let_go, pending), number)
            return
        ended_ms = time.time_ns() // 1_000_000
        logged = replace(logged, values={**logged.values, **self._global_step})
        self._put(partial(self._take, pending, logged, ended_ms, schedule), number)

    def _tell_where_it_goes_on(self, number: int, *, placed: bool) -> None:
        self._begun = True
        if not placed:
            logger.warning(
                "The first epoch since the training was resumed is counted as epoch %d, the one after the last of the "
                "record; if your training goes on from another epoch, give end_epoch(..., epoch=n) or "
                "tracker.epoch(n).",
                number,
            )
        elif number > self._held:
            missing = (
                f"Epoch {self._held}" if number == self._held + 1 else f"Epochs {self._held} to {number - 1}"
            )
            logger.warning(
                "%s: not in the run's record, which ends with epoch %d; the training goes on with epoch %d. "
                "Resume from an earlier checkpoint, or give the number of the epoch if it is another.",
                missing,
                self._held - 1,
                number,
            )

    def _put(self, work: Callable[[], None], number: int) -> None:
        try:
            self._waiting.put_nowait(work)
        except queue.Full:
            if not self._overflowed:
                logger.warning(
                    "Epoch %d is not recorded, nor will later ones be that end as fast: %d epochs wait to be measured "
                    "and training must not. Record longer epochs: call tracker.end_epoch() less often.",
                    number,
                    MAX_PENDING_EPOCHS,
                )
            self._overflowed = True

    def _read_schedule(self, epoch: int, metrics: object) -> Schedule | None:
        """Return the schedule, if it can be read at the end of this epoch.

        Called in the training's own thread, because that thread steps the scheduler.
        """
        if self._schedule is None or epoch < self._held:
            return None
        recorder = self._recorder
        rate = metrics.get(names.LEARNING_RATE) if isinstance(metrics, dict) else None
        return self._schedule.read(
            recorder.optimizers, epoch=epoch, steps=recorder.open_steps, trained_with=rate
        )

    # ---- in the background ----

    def _work(self) -> None:
        while (work := self._waiting.get()) is not None:
            self._boundary.run(work)
            with self._measured:
                self._measured.notify_all()
            self._boundary.run(self._redraw)

    def _take(
        self, pending: PendingEpoch, logged: EpochMetrics, ended_ms: int, schedule: Schedule | None
    ) -> None:
        activations = pending.result()  # hands them over, if another process writes the run
        if self._run_log is None:
            return
        if schedule is not None:
            self._run_log.expect(schedule)
        metrics = pending.averages | logged.numbers()
        self._write(EpochRecord(activations=activations, metrics=metrics, timestamp_ms=ended_ms))

    def _write(self, record: EpochRecord) -> None:
        assert self._run_log is not None
        result = self._run_log.write(record)
        with self._measured:
            self._result = result

    def _let_go(self, pending: PendingEpoch) -> None:
        pending.result()  # fetches the other processes' parts, so that these do not pile up

    def _redraw(self, *, idle: bool = False) -> None:
        if self._run_log is not None:
            self._run_log.redraw(idle=idle)
        if self._figure is not None:
            self._figure.redraw()

    def _finish_measuring(self) -> None:
        timeout_s = MEASURED_TIMEOUT_S if TERMINATIONS.begun else None
        if self._worker.ident is None:  # the thread could not be started
            self._waiting.put(None)
            self._work()
        elif self._worker.is_alive():
            with suppress(queue.Full):
                self._waiting.put(None, timeout=timeout_s)
            self._worker.join(timeout_s)
        if self._recorder.exchange is not None:
            self._recorder.exchange.close()

    def _conclude(self) -> None:
        if self._boundary.failure is None and self._run_log is not None and not TERMINATIONS.begun:
            if self._schedule is not None and (schedule := self._schedule.ended()) is not None:
                self._run_log.expect(schedule)
            self._run_log.conclude()
        if self._run_log is not None and not TERMINATIONS.begun:
            self._run_log.finish_alerts()
            if self._figure is not None:
                self._figure.finish()

    def _end_run(self, status: str, timeout_s: float) -> None:
        if self._end is not None:
            self._end(status, timeout_s)

    def _close_as_process_ends(self, status: str | None) -> None:
        cut = self._recorder.open_steps > 0
        self.close(status or ("FAILED" if cut else "FINISHED"))
