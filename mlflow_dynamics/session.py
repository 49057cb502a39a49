"""`track()` and its tracker: what a training calls, and the thread that takes each epoch from it."""

from __future__ import annotations

import atexit
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final

from mlflow_dynamics.config import EarlyStopping, MeasureConfig, RecordingConfig
from mlflow_dynamics.convergence import Schedule
from mlflow_dynamics.convergence.detectors import OURS
from mlflow_dynamics.convergence.monitor import monitor_for
from mlflow_dynamics.errors import DynamicsError, TrackingError
from mlflow_dynamics.measuring import EndedEpoch, EpochSummary, Measuring
from mlflow_dynamics.recording import Recorder
from mlflow_dynamics.recording.boundary import Boundary
from mlflow_dynamics.recording.distributed import writes_run
from mlflow_dynamics.recording.schedule import SchedulerWatch, read_schedule
from mlflow_dynamics.threads import started
from mlflow_dynamics.tracking import OpenedRun, RunWriter, end_run, names, open_run
from mlflow_dynamics.tracking.replay import recorded_epochs

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

logger = logging.getLogger(__name__)

MAX_PENDING_EPOCHS: Final = 64
"""Epochs waiting to be measured; beyond it an epoch goes unrecorded, because training must not wait."""

VERDICT_TIMEOUT_S: Final = 5.0
"""`should_stop` waits at most this long for the last epoch's verdict."""

CLOSE_TIMEOUT_S: Final = 30.0
"""At the end of training, wait at most this long for what is unsent."""


def track(
    model: nn.Module,
    *,
    optimizer: Optimizer | None = None,
    recording: RecordingConfig | None = None,
    measures: MeasureConfig | None = None,
    early_stopping: EarlyStopping = "warn",
    stop_before_last_phase: bool = False,
    detector: str = OURS,
    schedule: Schedule | None = None,
    log_every_n_epoch: int = 1,
    run_id: str | None = None,
    tracking_uri: str | None = None,
) -> Tracker:
    """Record the dynamics of a training of `model` in an MLflow run: the active one, else one of its own.

    The active one is not joined while it is that of another tracker, which was not closed.

    Where several processes train the model, call it on every rank: the first of them writes the run, the others hand
    it their parts and have no run.

    ```python
    with mlflow_dynamics.track(model) as tracker:
        for epoch in range(epochs):
            train_one_epoch(model)
            tracker.end_epoch()
    ```

    Args:
        model: the model, before or after torch.compile and DistributedDataParallel.
        optimizer: count only its steps; None counts those of any optimizer that owns parameters of the model.
        recording: which activations; None takes the defaults.
        measures: how they are measured; None takes the defaults.
        early_stopping: "warn" logs the convergence signal, "stop" also raises `Tracker.should_stop`, "off" neither.
        stop_before_last_phase: under a smooth schedule (such as cosine or one-cycle) let the stop not wait for the
            last phase; for a known step of the rate it waits all the same.
        detector: the name of an installed convergence detector.
        schedule: what is known of the learning rate ahead; None reads it, when the first epoch ends, from the
            scheduler of the optimizer as far as that is certain (docs/early-warning.md).
        log_every_n_epoch: write every n-th epoch's metrics (activations are always kept).
        run_id: record into this run, which stays the caller's to end.
        tracking_uri: where that run lives; None is MLflow's own.

    Raises:
        ConfigError: an argument is not usable.
        RecordingError: the model has no layer that could be recorded.
    """
    measures = measures or MeasureConfig()
    monitor = monitor_for(
        early_stopping,
        detector=detector,
        schedule=schedule,
        stop_before_last_phase=stop_before_last_phase,
    )
    recorder = Recorder(model, recording or RecordingConfig(), optimizer=optimizer)
    if not writes_run(model):
        return Tracker(recorder, None, close=None)
    try:
        run = open_run() if run_id is None else OpenedRun(run_id, owned=False)
        writer = RunWriter(run.run_id, tracking_uri=tracking_uri)
    except DynamicsError:
        recorder.remove()
        raise
    measuring = Measuring(
        writer,
        recording=recorder.config,
        measures=measures,
        monitor=monitor,
        log_every_n_epoch=log_every_n_epoch,
    )
    close = closing(writer, owned=run.owned)
    schedulers = (
        None if monitor is None or monitor.schedule_given else SchedulerWatch(Boundary(recorder.remove))
    )

    def close_all(status: str) -> None:
        if schedulers is not None:
            schedulers.remove()
        close(status)

    tracker = Tracker(recorder, measuring, close=close_all, schedulers=schedulers)
    tracker.close_at_exit()
    return tracker


def closing(writer: RunWriter, *, owned: bool) -> Callable[[str], object]:
    """What ends a recording with a status: ends the run if it is ours, and closes the writer."""
    if owned:
        return partial(end_run, writer, timeout_s=CLOSE_TIMEOUT_S)
    return lambda _status: writer.close(CLOSE_TIMEOUT_S)


def status_after(error: BaseException | None) -> str:
    """How a run ends whose training `error` has ended: FINISHED, FAILED or KILLED."""
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "FINISHED"
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


def last_error() -> BaseException | None:
    """The exception that Python printed last."""
    error: BaseException | None = vars(sys).get("last_value")
    return error


class Tracker:
    """Follows one training. Made by `track`; ended by `close()`, by leaving its `with` block, or with the process.

    Args:
        recorder: of the model.
        measuring: what takes the epochs; None where another process of the training does, to which each epoch's part
            is handed over.
        close: called with the status when all is written; None leaves the writer to whoever made it.
        schedulers: among which that of the training is, to be read; None where the schedule is given or not asked for.

    No method raises because of a failure of ours: it is logged once, recording stops, training goes on.
    """

    def __init__(
        self,
        recorder: Recorder,
        measuring: Measuring | None,
        *,
        close: Callable[[str], object] | None,
        schedulers: SchedulerWatch | None = None,
    ) -> None:
        self._recorder = recorder
        self._measuring = measuring
        self._end = close
        self._next_epoch = 0
        self._schedulers = schedulers
        self._boundary = Boundary(recorder.remove)
        self._measured = threading.Condition()
        self._summary: EpochSummary | None = None
        self._overflowed = False
        self._at_exit: Callable[[], None] | None = None
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue(MAX_PENDING_EPOCHS)
        self._worker = threading.Thread(target=self._work, name="mlflow_dynamics-measuring", daemon=True)
        started(self._worker)

    def close_at_exit(self) -> None:
        """Let Python close it where the script does not: the last epochs may not be measured or sent by then."""
        process, earlier = os.getpid(), last_error()

        def close() -> None:
            if os.getpid() != process:  # a fork of it, without the threads
                return
            error = last_error()
            typed = hasattr(sys, "ps1")  # at a prompt an error ends nothing
            self.close(status_after(None if typed or error is earlier else error))

        atexit.register(close)
        self._at_exit = close

    def start_at(self, epoch: int, *, step: int) -> None:
        """Count on from `epoch` and from training step `step`: the training has been resumed from a checkpoint."""
        self._next_epoch = epoch
        self._recorder.start_at(step)

    def carry_on(self, run_id: str, *, epochs: int) -> None:
        """Begin with the first `epochs` epochs of an earlier run: this run will hold them as if it had trained them.

        Raises:
            TrackingError: the earlier run cannot be read or lacks one of these epochs.
            DataError: one of its files is damaged.
        """
        for recorded in recorded_epochs(run_id):
            activations = recorded.activations
            if activations.epoch >= epochs:
                break
            self._take(
                EndedEpoch(
                    activations=lambda: activations,  # noqa: B023
                    metrics=lambda: recorded.metrics,  # noqa: B023
                    timestamp_ms=recorded.timestamp_ms,
                )
            )
            self._next_epoch = activations.epoch + 1
            if len(activations.step):
                self._recorder.start_at(int(activations.step[-1]) + self._recorder.config.record_every)
        if self._next_epoch < epochs:
            raise TrackingError(
                f"Run {run_id!r} holds {self._next_epoch} epochs and {epochs} are needed to carry it on; send what "
                f"it left behind with: mlflow-dynamics sync"
            )

    # ---- called by the training ----

    @property
    def run_id(self) -> str | None:
        """The MLflow run; None while no tracking server has answered that could create it, and on other ranks."""
        return None if self._measuring is None else self._measuring.writer.run_id

    def end_epoch(self, epoch: int | None = None, /, **metrics: float) -> None:
        """End an epoch: hand its activations to the background, to be measured and logged with `metrics`.

        Args:
            epoch: its number, from 0; None is the one after the last.
            metrics: logged beside the dynamics with step = epoch, under their own names.
        """
        self._boundary.run(self._end_epoch, epoch, metrics)

    @contextmanager
    def epoch(self, number: int) -> Iterator[None]:
        """`with tracker.epoch(n):` around one epoch; left by an exception, the epoch is not recorded."""
        try:
            yield
        except BaseException:
            self._recorder.discard()
            raise
        self.end_epoch(number)

    def pause(self) -> None:
        """The training waits for its user: time to draw the report."""
        with suppress(queue.Full):
            self._waiting.put_nowait(partial(self._redraw, idle=True))

    def wait(self, epoch: int, *, timeout: float = VERDICT_TIMEOUT_S) -> EpochSummary | None:
        """The summary of `epoch` once it is measured; None if that takes longer than `timeout` seconds."""
        with self._measured:
            self._measured.wait_for(
                lambda: (
                    self._boundary.failure or (self._summary is not None and self._summary.epoch >= epoch)
                ),
                timeout,
            )
            return self._summary

    @property
    def should_stop(self) -> bool:
        """Whether to stop after the last ended epoch: the convergence signal says so (only with "stop"), or
        `mlflow-dynamics watch --stop` has asked for it. Where several processes train, ask on every rank: all get the
        same answer."""
        stop = False
        if self._measuring is not None and self._next_epoch > 0:
            stop = self._measuring.writer.stop_requested or self._verdict_says_stop()
        if self._recorder.exchange is not None:
            stop = self._recorder.exchange.agree(self._next_epoch - 1, stop)
        if stop and self._measuring is not None:
            self._boundary.run(self._measuring.writer.set_tags, {names.TAG_STOPPED_EARLY: "true"})
        return stop

    def close(self, status: str = "FINISHED") -> None:
        """Measure and send what is left, detach from the model, and end the run if it is ours."""
        if self._at_exit is not None:
            atexit.unregister(self._at_exit)
        self._recorder.remove()
        if self._worker.ident is None:  # it could not be started
            self._waiting.put(None)
            self._work()
        elif self._worker.is_alive():
            self._waiting.put(None)
            self._worker.join()
        if self._recorder.exchange is not None:
            self._recorder.exchange.close()
        # A boundary of its own: the run is ended also where recording failed before.
        Boundary(self._recorder.remove).run(self._close, status)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(status_after(error))

    def _verdict_says_stop(self) -> bool:
        summary = self.wait(self._next_epoch - 1)
        return summary is not None and summary.verdict is not None and summary.verdict.should_stop

    def _end_epoch(self, epoch: int | None, metrics: dict[str, float]) -> None:
        number = self._next_epoch if epoch is None else epoch
        self._next_epoch = number + 1
        schedule = self._read_schedule(number)
        pending = self._recorder.end_epoch(number)
        ended = EndedEpoch(
            activations=pending.result,
            metrics=lambda: pending.averages | metrics,
            timestamp_ms=time.time_ns() // 1_000_000,
            schedule=schedule,
        )
        try:
            self._waiting.put_nowait(partial(self._take, ended))
        except queue.Full:
            if not self._overflowed:
                logger.warning(
                    "Epoch %d is not recorded, nor will later ones be that end as fast: %d epochs wait to be measured "
                    "and training must not. Record longer epochs: call tracker.end_epoch() less often.",
                    number,
                    MAX_PENDING_EPOCHS,
                )
            self._overflowed = True

    def _read_schedule(self, epoch: int) -> Schedule | None:
        """Once, with the first epoch; in the training's own thread, with which the scheduler moves on."""
        schedulers, self._schedulers = self._schedulers, None
        if schedulers is None:
            return None
        recorder = self._recorder
        return read_schedule(schedulers.of(recorder.optimizers), epoch=epoch, steps=recorder.open_steps)

    # ---- in the background ----

    def _work(self) -> None:
        while (work := self._waiting.get()) is not None:
            self._boundary.run(work)
            with self._measured:
                self._measured.notify_all()
            self._boundary.run(self._redraw)

    def _take(self, ended: EndedEpoch) -> None:
        if self._measuring is None:
            ended.activations()  # hands them over
            return
        summary = self._measuring.take(ended)
        with self._measured:
            self._summary = summary

    def _redraw(self, *, idle: bool = False) -> None:
        if self._measuring is not None:
            self._measuring.redraw(idle=idle)

    def _close(self, status: str) -> None:
        Boundary(self._recorder.remove).run(self._conclude)
        if self._end is not None:
            self._end(status)

    def _conclude(self) -> None:
        if self._boundary.failure is None and self._measuring is not None:
            self._measuring.conclude()
