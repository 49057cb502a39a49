"""Writes a training's epochs into its run. Each epoch is measured, judged, logged, reported to the user and drawn."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping

from mlflow_dynamics.alerts import Alerts, OnEvent, begins
from mlflow_dynamics.config import MeasureConfig, RecordingConfig
from mlflow_dynamics.convergence import ConvergenceMonitor, Schedule, State, Verdict, WarningConfig
from mlflow_dynamics.pipeline import EpochResult, Pipeline
from mlflow_dynamics.records import EpochRecord, Measures
from mlflow_dynamics.report.history import RunHistory
from mlflow_dynamics.report.live import LiveReport
from mlflow_dynamics.tracking import RunWriter, names
from mlflow_dynamics.tracking.settings import recorded_parameters, warning_parameters

logger = logging.getLogger(__name__)


class RunLog:
    """Takes a run's epochs, one after the other. `start` comes first.

    Args:
        writer: writes into the run.
        recording: how activations are recorded.
        measures: how activations are measured.
        warning: the early warning.
        log_every_n_epoch: write every n-th epoch's metrics.
        on_event: is told what the early warning finds; None tells nobody.
        logged_already: keys of the settings that the run holds already, as parameters of other names.
        not_logged_by_script: (run id, metrics) -> the metrics without those that the script logs to the run itself.
    """

    def __init__(
        self,
        writer: RunWriter,
        *,
        recording: RecordingConfig,
        measures: MeasureConfig,
        warning: WarningConfig,
        log_every_n_epoch: int = 1,
        on_event: OnEvent | None = None,
        logged_already: Collection[str] = (),
        not_logged_by_script: Callable[[str | None, Mapping[str, float]], Mapping[str, float]] = (
            lambda _, metrics: metrics
        ),
    ) -> None:
        self.writer = writer
        self._settings = recorded_parameters(recording, measures)
        self._monitor = None if warning.mode == "off" else ConvergenceMonitor(warning)
        self._warning = warning
        self._pipeline = Pipeline(measures, self._monitor)
        self._report = LiveReport(writer, self._pipeline.order)
        self._log_every_n_epoch = log_every_n_epoch
        self._alerts = Alerts(on_event)
        self._logged = set(logged_already)
        self._not_logged_by_script = not_logged_by_script
        self._last: EpochResult | None = None
        self._reason_told = False
        self._dropped_told = False
        self._raised: dict[State, int] = {}

    def start(self) -> None:
        """Log the settings of recording, measuring and judging that are known before the first epoch."""
        self._log_settings(self._settings)
        if self._monitor is not None:
            # Some parameters of the detector depend on the schedule, and are logged when the schedule is known.
            known = self._warning if self._warning.schedule is None else self._monitor
            self._log_settings(warning_parameters(known.parameters))

    def expect(self, schedule: Schedule) -> None:
        """Take in the schedule of the learning rate, once it is known."""
        if self._monitor is not None:
            self._monitor.expect(schedule)
            self._log_settings(warning_parameters(self._monitor.parameters))

    def write(self, record: EpochRecord) -> EpochResult:
        """Measure an epoch, judge it, and write it into the run."""
        if self._last is None:
            self.writer.write_layers(record.activations.layers)
        before = None if self._last is None else self._last.verdict
        result = self._pipeline.update(record)
        changed = self._follow(record, result)
        if result.verdict is not None:
            self._raise(result.verdict, changed, before, {**record.metrics, **result.as_metrics()})
        self._tell_undefined(result.epoch, result.measures)
        logged = result.epoch % self._log_every_n_epoch == 0
        metrics = {**record.metrics, **result.as_metrics()} if logged else {}
        written = self._not_logged_by_script(self.writer.run_id, metrics) if logged else {}
        self.writer.write_epoch(
            result.epoch, record.activations, written, result.measures, result.timestamp_ms
        )
        return result

    def recall(self, record: EpochRecord) -> EpochResult:
        """Take in an epoch that the run already holds, when a training is carried on. Nothing is written."""
        result = self._pipeline.update(record)
        self._follow(record, result)
        self._tell_undefined(result.epoch, result.measures)
        return result

    def redraw(self, *, idle: bool) -> None:
        """Draw the report anew in another process, if the training is idle or enough time has passed."""
        self._report.redraw(idle=idle)

    def conclude(self) -> None:
        """Draw the complete report, and write what happened as the run's description."""
        self._report.conclude()

    def finish_alerts(self) -> None:
        """Wait until the user is told of all events, but not for long."""
        self._alerts.finish()

    def so_far(self) -> RunHistory:
        """Return the run's epochs so far. The copy does not grow."""
        return self._report.so_far()

    def _follow(self, record: EpochRecord, result: EpochResult) -> list[State]:
        """Take an epoch into the report's history; returns the states whose first epoch has changed."""
        history = self._report.history
        history.look_at(record.activations)
        history.add(result.epoch, {**record.metrics, **result.as_metrics()}, result.measures)
        history.same_order = self._pipeline.same_order
        self._last = result
        if self._monitor is None:
            return []
        first = self._monitor.first_epochs
        raised = {state: first[state] for state in first if state in names.STATE_TAGS}
        changed = [state for state in raised | self._raised if raised.get(state) != self._raised.get(state)]
        history.unsettled_epoch = raised.get("unsettled")
        history.diverging_epoch = raised.get("diverging")
        self._raised = raised
        return changed

    def _raise(
        self,
        verdict: Verdict,
        changed: list[State],
        before: Verdict | None,
        metrics: Mapping[str, float],
    ) -> None:
        """Tag the run with the states that the early warning has found, and tell the user."""
        if changed:
            # The tag is empty if the training has gone back to an epoch before the state's first one.
            self.writer.set_tags({names.STATE_TAGS[state]: self._raised.get(state, "") for state in changed})
        if verdict.state in changed:
            # Python shows warnings even if no logging is set up.
            logger.warning("%s", verdict.message)
        elif begins(verdict, before):
            logger.info("%s", verdict.message)
        else:
            return
        self._alerts.tell(verdict, run_id=self.writer.run_id, title=self.writer.title, metrics=metrics)

    def _tell_undefined(self, epoch: int, measures: Measures) -> None:
        """Say once why nothing is measured, and once which layers are left out."""
        if measures.reason is not None:
            if not self._reason_told:
                self._reason_told = True
                logger.info("Epoch %d: %s", epoch, measures.reason)
            return
        if measures.layers_dropped == 0 or self._dropped_told:
            return
        self._dropped_told = True
        layers = self._report.history.layers
        left_out = [
            name for name, exponent in zip(layers, measures.exponents, strict=True) if math.isnan(exponent)
        ]
        logger.info(
            "Epoch %d: %d of %d layers are left out of the measures: constant or not finite in their window, or not "
            "called in each of its steps%s.",
            epoch,
            measures.layers_dropped,
            len(layers),
            f": {', '.join(left_out)}" if len(left_out) == measures.layers_dropped else "",
        )

    def _log_settings(self, settings: Mapping[str, object]) -> None:
        new = {key: value for key, value in settings.items() if key not in self._logged}
        self.writer.log_params(new)
        self._logged |= new.keys()
        words = {key.removeprefix("dynamics/"): str(value) for key, value in settings.items()}
        self._report.history.definitions = {**self._report.history.definitions, **words}
