"""One epoch, on one screen: record, measure, warn, write."""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final

import numpy as np

from mlflow_dynamics.config import EarlyStopping, MeasureConfig, RecordingConfig
from mlflow_dynamics.convergence import ConvergenceMonitor, Schedule, Verdict
from mlflow_dynamics.errors import DynamicsError, TrackingError
from mlflow_dynamics.measures import SignalWindow, volatility
from mlflow_dynamics.recording import Recorder
from mlflow_dynamics.recording.boundary import Boundary
from mlflow_dynamics.records import EpochActivations, Measures
from mlflow_dynamics.report.clock import RedrawClock
from mlflow_dynamics.report.history import RunHistory, last_order
from mlflow_dynamics.report.summary import summary as describe
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


@dataclass(frozen=True, kw_only=True)
class EpochSummary:
    """What one epoch came to: its measures, the volatility of stability so far, the detector's verdict."""

    epoch: int
    measures: Measures
    volatility: float
    verdict: Verdict | None


@dataclass(frozen=True)
class _EndedEpoch:
    """An epoch that training has left behind and that is still to be measured."""

    activations: Callable[[], EpochActivations]
    metrics: dict[str, float]
    timestamp_ms: int


def track(
    model: nn.Module,
    *,
    optimizer: Optimizer | None = None,
    recording: RecordingConfig | None = None,
    measures: MeasureConfig | None = None,
    early_stopping: EarlyStopping = "warn",
    schedule: Schedule | None = None,
    log_every_n_epoch: int = 1,
    run_id: str | None = None,
    tracking_uri: str | None = None,
) -> Tracker:
    """Record the dynamics of a training of `model` in an MLflow run: the active one, else one of its own.

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
        schedule: what is known of the learning rate ahead; without it a stop is never held back for a coming drop.
        log_every_n_epoch: write every n-th epoch's metrics (activations are always kept).
        run_id: record into this run, which stays the caller's to end.
        tracking_uri: where that run lives; None is MLflow's own.

    Raises:
        ConfigError: an argument is not usable.
        RecordingError: the model has no layer that could be recorded.
    """
    measures = measures or MeasureConfig()
    monitor = None if early_stopping == "off" else ConvergenceMonitor(mode=early_stopping, schedule=schedule)
    recorder = Recorder(model, recording or RecordingConfig(), optimizer=optimizer)
    try:
        run = open_run() if run_id is None else OpenedRun(run_id, owned=False)
        writer = RunWriter(run.run_id, tracking_uri=tracking_uri)
    except DynamicsError:
        recorder.remove()
        raise
    return Tracker(
        recorder,
        writer,
        measures=measures,
        monitor=monitor,
        close=closing(writer, owned=run.owned),
        log_every_n_epoch=log_every_n_epoch,
    )


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


def recorded_parameters(
    recording: RecordingConfig, measures: MeasureConfig, monitor: ConvergenceMonitor | None
) -> dict[str, object]:
    """What the recorded numbers and the warning depend on, as parameters of the run."""
    values: dict[str, object] = asdict(recording) | asdict(measures)
    values["estimator"] = measures.resolved_estimator
    if monitor is not None:
        values |= {f"warning/{key}": value for key, value in monitor.parameters.items()}
    return {f"dynamics/{key}": value for key, value in values.items()}


class Tracker:
    """Follows one training. Made by `track`; ended by `close()` or by leaving its `with` block.

    Args:
        recorder: of the model.
        writer: of the run.
        measures: how activations are measured.
        monitor: the early warning; None is none.
        close: called with the status when all is written; None leaves the writer to whoever made it.
        log_every_n_epoch: write every n-th epoch's metrics.

    No method raises because of a failure of ours: it is logged once, recording stops, training goes on.
    """

    def __init__(
        self,
        recorder: Recorder,
        writer: RunWriter,
        *,
        measures: MeasureConfig,
        monitor: ConvergenceMonitor | None,
        close: Callable[[str], object] | None,
        log_every_n_epoch: int = 1,
    ) -> None:
        self._recorder = recorder
        self._writer = writer
        self._config = measures
        self._monitor = monitor
        self._end = close
        self._log_every_n_epoch = log_every_n_epoch
        self._window = SignalWindow(measures)
        self._stability: list[float] = []
        self._next_epoch = 0
        self._reason_told = False
        self._converged_told = False
        definitions = recorded_parameters(recorder.config, measures, monitor)
        writer.log_params(definitions)
        self._history = RunHistory(
            title=writer.title,
            definitions={key.removeprefix("dynamics/"): str(value) for key, value in definitions.items()},
        )
        self._clock = RedrawClock()
        self._boundary = Boundary(recorder.remove)
        self._measured = threading.Condition()
        self._summary: EpochSummary | None = None
        self._ended: queue.Queue[_EndedEpoch | None] = queue.Queue(MAX_PENDING_EPOCHS)
        self._worker = threading.Thread(target=self._work, name="mlflow_dynamics-measuring", daemon=True)
        self._worker.start()

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
            self._measure(_EndedEpoch(lambda: activations, recorded.metrics, recorded.timestamp_ms))  # noqa: B023
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
        """The MLflow run; None while no tracking server has answered that could create it."""
        return self._writer.run_id

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
        `mlflow-dynamics watch --stop` has asked for it."""
        stop = self._writer.stop_requested
        if not stop and self._monitor is not None and self._next_epoch > 0:
            summary = self.wait(self._next_epoch - 1)
            stop = summary is not None and summary.verdict is not None and summary.verdict.should_stop
        if stop:
            self._boundary.run(self._writer.set_tags, {names.TAG_STOPPED_EARLY: "true"})
        return stop

    def close(self, status: str = "FINISHED") -> None:
        """Measure and send what is left, detach from the model, and end the run if it is ours."""
        self._recorder.remove()
        if self._worker.is_alive():
            self._ended.put(None)
            self._worker.join()
        # A boundary of its own: the run is ended also where recording failed before.
        Boundary(self._recorder.remove).run(self._close, status)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(status_after(error))

    def _end_epoch(self, epoch: int | None, metrics: dict[str, float]) -> None:
        number = self._next_epoch if epoch is None else epoch
        self._next_epoch = number + 1
        ended = _EndedEpoch(self._recorder.end_epoch(number).result, metrics, time.time_ns() // 1_000_000)
        try:
            self._ended.put_nowait(ended)
        except queue.Full:
            logger.warning(
                "Epoch %d is not recorded: %d epochs wait to be measured and training must not.",
                number,
                MAX_PENDING_EPOCHS,
            )

    # ---- in the background: measure, warn, write ----

    def _work(self) -> None:
        while (ended := self._ended.get()) is not None:
            self._boundary.run(self._measure, ended)
            with self._measured:
                self._measured.notify_all()

    def _measure(self, ended: _EndedEpoch) -> None:
        activations = ended.activations()
        if self._summary is None:
            self._writer.write_layers(activations.layers)
            self._history.layers = tuple(names.encodable(layer.name) for layer in activations.layers)
        self._window.append(activations)
        measures = self._window.measure()
        self._stability.append(measures.stability)
        spread = volatility(np.array(self._stability), window=self._config.volatility_window)
        summary = EpochSummary(
            epoch=activations.epoch,
            measures=measures,
            volatility=float(spread),
            verdict=self._judge(activations.epoch, measures.stability, ended.metrics),
        )
        metrics = ended.metrics | self._dynamics(summary)
        logged = activations.epoch % self._log_every_n_epoch == 0
        self._writer.write_epoch(
            activations.epoch, activations, metrics if logged else {}, measures, ended.timestamp_ms
        )
        self._history.add(activations.epoch, metrics, measures)
        with self._measured:
            self._summary = summary
        if self._clock.due:
            self._draw(pictures=False)

    def _draw(self, *, pictures: bool) -> None:
        if not self._history.measured:
            return
        with self._clock:
            # Drawing libraries are loaded by whoever draws, not by every training that begins.
            from mlflow_dynamics.report.artifacts import render

            self._history.order = last_order(self._window)
            self._writer.write_files(render(self._history, pictures=pictures))

    def _judge(self, epoch: int, stability: float, metrics: dict[str, float]) -> Verdict | None:
        if self._monitor is None:
            return None
        verdict = self._monitor.update(
            epoch,
            stability,
            loss=metrics.get(names.TRAIN_LOSS),
            learning_rate=metrics.get(names.LEARNING_RATE),
        )
        before = self._summary.verdict.state if self._summary is not None and self._summary.verdict else None
        if verdict.state != before and verdict.state in ("converging", "unsettled", "diverging"):
            logger.info("%s", verdict.message)
        if verdict.signal and not self._converged_told:
            self._converged_told = True
            self._writer.set_tags({names.TAG_CONVERGED_EPOCH: str(self._monitor.converged_epoch)})
        return verdict

    def _dynamics(self, summary: EpochSummary) -> dict[str, float]:
        if summary.measures.reason is not None and not self._reason_told:
            self._reason_told = True
            logger.info("Epoch %d: %s", summary.epoch, summary.measures.reason)
        metrics = names.measure_metrics(summary.measures)
        if math.isfinite(summary.volatility):
            metrics[names.VOLATILITY] = summary.volatility
        if summary.verdict is not None:
            metrics[names.CONVERGENCE_SIGNAL] = float(summary.verdict.signal)
            if math.isfinite(summary.verdict.score):
                metrics[names.CONVERGENCE_SCORE] = summary.verdict.score
        return metrics

    def _close(self, status: str) -> None:
        Boundary(self._recorder.remove).run(self._conclude)
        if self._end is not None:
            self._end(status)

    def _conclude(self) -> None:
        """The complete report, and what happened as the run's description."""
        if self._boundary.failure is None and self._history.measured:
            self._draw(pictures=True)
            sentences = " ".join(describe(self._history))
            self._writer.set_tags({names.TAG_DESCRIPTION: f"{names.DESCRIPTION}{sentences}"})
