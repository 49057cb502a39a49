"""What becomes of an epoch once training has left it, on one screen: measured, judged, written, drawn."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np

from mlflow_dynamics.config import MeasureConfig, RecordingConfig
from mlflow_dynamics.convergence import ConvergenceMonitor, Schedule, State, Verdict
from mlflow_dynamics.measures import SignalWindow, volatility
from mlflow_dynamics.records import EpochActivations, Measures
from mlflow_dynamics.report.aside import render_aside
from mlflow_dynamics.report.clock import RedrawClock
from mlflow_dynamics.report.history import RunHistory, last_order
from mlflow_dynamics.report.summary import summary as describe
from mlflow_dynamics.threads import started
from mlflow_dynamics.tracking import RunWriter, names

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EndedEpoch:
    """An epoch that training has left behind.

    Attributes:
        activations: waits for them to arrive from the device and from other processes.
        metrics: logged beside the dynamics; to be asked after `activations`.
        timestamp_ms: milliseconds since 1970, when the epoch ended.
        schedule: what has become known, with this epoch, of the learning rate ahead.
    """

    activations: Callable[[], EpochActivations]
    metrics: Callable[[], dict[str, float]]
    timestamp_ms: int
    schedule: Schedule | None = None


@dataclass(frozen=True, kw_only=True)
class EpochSummary:
    """What one epoch came to: its measures, the volatility of stability so far, the detector's verdict."""

    epoch: int
    measures: Measures
    volatility: float
    verdict: Verdict | None


class Measuring:
    """Takes a run's epochs, one after the other.

    Args:
        writer: of the run.
        recording: how activations were recorded.
        measures: how they are measured.
        monitor: the early warning; None is none.
        log_every_n_epoch: write every n-th epoch's metrics.
        beside: of metrics for this run, those that nobody else logs to it.
    """

    def __init__(
        self,
        writer: RunWriter,
        *,
        recording: RecordingConfig,
        measures: MeasureConfig,
        monitor: ConvergenceMonitor | None,
        log_every_n_epoch: int = 1,
        beside: Callable[[str | None, Mapping[str, float]], Mapping[str, float]] = lambda _, metrics: metrics,
    ) -> None:
        self.writer = writer
        self.monitor = monitor
        self._config = measures
        self._log_every_n_epoch = log_every_n_epoch
        self._beside = beside
        self._window = SignalWindow(measures)
        self._stability: list[float] = []
        self._history = RunHistory(title=writer.title, definitions={})
        self._clock = RedrawClock()
        self._drawing: threading.Thread | None = None
        self._page = threading.Lock()
        self._concluded = False
        self._drawn: bytes | None = None
        self._before: EpochSummary | None = None
        self._reason_told = False
        self._dropped_told = False
        self._raised: dict[State, int] = {}
        self._log_settings(_recorded_parameters(recording, measures))
        if monitor is not None and monitor.schedule_given:
            self._log_settings(_warning_parameters(monitor))

    def take(self, ended: EndedEpoch) -> EpochSummary:
        """Measure an epoch, judge it, and write it down."""
        activations, given = ended.activations(), ended.metrics()
        if self._before is None:
            self.writer.write_layers(activations.layers)
            self._history.layers = tuple(names.encodable(layer.name) for layer in activations.layers)
        if self.monitor is not None and ended.schedule is not None:
            self.monitor.expect(ended.schedule)
            self._log_settings(_warning_parameters(self.monitor))
        self._window.append(activations)
        measures = self._window.measure()
        self._stability.append(measures.stability)
        spread = volatility(np.array(self._stability), window=self._config.volatility_window)
        summary = EpochSummary(
            epoch=activations.epoch,
            measures=measures,
            volatility=float(spread),
            verdict=self._judge(activations.epoch, measures.stability, given),
        )
        metrics = given | self._dynamics(summary)
        logged = activations.epoch % self._log_every_n_epoch == 0
        written = self._beside(self.writer.run_id, metrics) if logged else {}
        self.writer.write_epoch(activations.epoch, activations, written, measures, ended.timestamp_ms)
        self._history.add(activations.epoch, metrics, measures)
        self._before = summary
        return summary

    def redraw(self, *, idle: bool) -> None:
        """Have the report drawn anew beside the training, where it is idle or enough time has passed."""
        busy = self._drawing is not None and self._drawing.is_alive()
        if busy or not (idle or self._clock.due) or not self._history.measured:
            return
        self._complete_history()
        packed = self._history.packed()
        if packed != self._drawn:
            self._drawing = threading.Thread(
                target=self._draw_aside, args=(packed,), name="mlflow_dynamics-drawing", daemon=True
            )
            started(self._drawing)

    def conclude(self) -> None:
        """The complete report, and what happened as the run's description."""
        with self._page:
            self._concluded = True
        if not self._history.measured:
            return
        self._complete_history()
        if self._history.packed() != self._drawn:
            # Drawing libraries are loaded by whoever draws, not by every training that begins.
            from mlflow_dynamics.report.artifacts import render

            self.writer.write_files(render(self._history, pictures=True))
        # Paragraphs: Markdown joins single lines.
        lines = "\n\n".join(describe(self._history))
        self.writer.set_tags({names.TAG_DESCRIPTION: f"{names.DESCRIPTION}{lines}"})

    def _complete_history(self) -> None:
        self._history.title = self.writer.title
        self._history.order = last_order(self._window)

    def _draw_aside(self, packed: bytes) -> None:
        with self._clock:
            files = render_aside(packed)
        with self._page:
            if files is not None and not self._concluded:
                self.writer.write_files(files)
                self._drawn = packed

    def _judge(self, epoch: int, stability: float, metrics: dict[str, float]) -> Verdict | None:
        if self.monitor is None:
            return None
        verdict = self.monitor.update(
            epoch,
            stability,
            loss=metrics.get(names.TRAIN_LOSS),
            learning_rate=metrics.get(names.LEARNING_RATE),
        )
        raised = {
            state: first for state, first in self.monitor.first_epochs.items() if state in names.STATE_TAGS
        }
        changed = [state for state in raised | self._raised if raised.get(state) != self._raised.get(state)]
        if changed:
            # Without an epoch where the training has gone back to one before it.
            self.writer.set_tags({names.STATE_TAGS[state]: raised.get(state, "") for state in changed})
            self._history.unsettled_epoch = raised.get("unsettled")
            self._history.diverging_epoch = raised.get("diverging")
            self._raised = raised
        before = self._before.verdict.state if self._before is not None and self._before.verdict else None
        if verdict.state in changed:
            # Python shows warnings also to who has set up no logging.
            logger.warning("%s", verdict.message)
        elif verdict.state in raised and verdict.state != before:
            logger.info("%s", verdict.message)
        return verdict

    def _dynamics(self, summary: EpochSummary) -> dict[str, float]:
        if summary.measures.reason is not None and not self._reason_told:
            self._reason_told = True
            logger.info("Epoch %d: %s", summary.epoch, summary.measures.reason)
        self._tell_dropped(summary)
        metrics = names.measure_metrics(summary.measures)
        if math.isfinite(summary.volatility):
            metrics[names.VOLATILITY] = summary.volatility
        if summary.verdict is not None:
            metrics[names.CONVERGENCE_SIGNAL] = float(summary.verdict.signal)
            if math.isfinite(summary.verdict.score):
                metrics[names.CONVERGENCE_SCORE] = summary.verdict.score
        return metrics

    def _tell_dropped(self, summary: EpochSummary) -> None:
        measures = summary.measures
        if measures.reason is not None or measures.layers_dropped == 0 or self._dropped_told:
            return
        self._dropped_told = True
        left_out = [
            name
            for name, exponent in zip(self._history.layers, measures.exponents, strict=True)
            if math.isnan(exponent)
        ]
        logger.info(
            "Epoch %d: %d of %d layers are left out of the measures: constant or not finite in their window, or not "
            "called in each of its steps%s.",
            summary.epoch,
            measures.layers_dropped,
            len(self._history.layers),
            f": {', '.join(left_out)}" if len(left_out) == measures.layers_dropped else "",
        )

    def _log_settings(self, settings: Mapping[str, object]) -> None:
        self.writer.log_params(settings)
        words = {key.removeprefix("dynamics/"): str(value) for key, value in settings.items()}
        self._history.definitions = {**self._history.definitions, **words}


def _recorded_parameters(recording: RecordingConfig, measures: MeasureConfig) -> dict[str, object]:
    """What the recorded numbers depend on, as parameters of the run."""
    values: dict[str, object] = asdict(recording) | asdict(measures)
    values["estimator"] = measures.resolved_estimator
    return {f"dynamics/{key}": value for key, value in values.items()}


def _warning_parameters(monitor: ConvergenceMonitor) -> dict[str, object]:
    """What the warning depends on, likewise."""
    return {f"dynamics/warning/{key}": value for key, value in monitor.parameters.items()}
