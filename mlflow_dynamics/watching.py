"""Watches a live run from outside, or looks back at an ended one: the verdict of each epoch, from the run's metrics."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import mlflow
from mlflow.entities import Run, RunStatus, RunTag

from mlflow_dynamics.alerts import Alerts, OnEvent, begins, check_on_event
from mlflow_dynamics.checks import require
from mlflow_dynamics.config import WarningMode
from mlflow_dynamics.convergence import ConvergenceMonitor, Verdict, WarningConfig
from mlflow_dynamics.convergence.installed import OURS
from mlflow_dynamics.convergence.schedule import schedule_of
from mlflow_dynamics.errors import TrackingError
from mlflow_dynamics.pipeline import judge
from mlflow_dynamics.report.history import RunHistory
from mlflow_dynamics.report.notebook import LiveFigure
from mlflow_dynamics.tracking import names
from mlflow_dynamics.tracking.links import links_of
from mlflow_dynamics.tracking.query import find_runs, load_metrics
from mlflow_dynamics.tracking.settings import warning_in
from mlflow_dynamics.tracking.store import connect_to_read, reason_of
from mlflow_dynamics.tracking.sync import STORE_ERRORS

LONGEST_POLL_S = 10**6
"""The longest pause, more than a week. `time.sleep` does not accept numbers of any size."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WatchedEpoch:
    """One epoch of a watched run.

    Attributes:
        metrics: the metrics that the run logged, key -> value.
        verdict: the monitor's verdict.
    """

    metrics: Mapping[str, float]
    verdict: Verdict


def watch(
    run_id: str,
    *,
    stop: bool = False,
    stop_before_last_phase: bool = False,
    poll_s: float = 10.0,
    on_event: OnEvent | None = None,
) -> Iterator[WatchedEpoch]:
    """Give each epoch of a run with its verdict, as soon as it is logged, until the run ends.

    The epochs of an ended run are given at once. The verdicts are those that the run itself gives or would have given:
    the monitor's detector and schedule are read from the run's parameters.

    A live run is tagged with the first epoch of a state: `dynamics.converged_epoch` on the convergence signal,
    `dynamics.unsettled_epoch` if volatility rises, `dynamics.diverging_epoch` if training diverges. With `stop`, the
    run is also tagged `dynamics.stop_requested`, which a tracked run obeys after its next epoch. If a server that has
    given the run before does not answer, this function waits until it answers again. In a notebook, a figure of the run
    is drawn anew after each epoch.

    Args:
        run_id: an MLflow run that logs stability.
        stop: ask the run to stop when the monitor's verdict is to stop.
        stop_before_last_phase: do not wait for the last phase of a smooth schedule, even if the run itself waits.
        poll_s: seconds between two requests for a live run, above 0 and below 1,000,000.
        on_event: as in `mlflow_dynamics.track`, of a run that is live when it is first seen: also of what was raised
            before. Whether the run itself tells somebody makes no difference.

    Raises:
        TrackingError: the run is unknown, is deleted, has ended without dynamics, or could not be read even once.
        ConfigError: `poll_s` is out of its range, or the run names a detector that is not installed here.
    """
    try:
        holds = not isinstance(poll_s, str | bool) and 0 < float(poll_s) < LONGEST_POLL_S
    except (TypeError, ValueError, OverflowError):
        holds = False
    require(holds, "poll", poll_s, f"a number of seconds above 0 and below {LONGEST_POLL_S:,}")
    check_on_event("on_event", on_event)
    history = RunHistory(title=run_id, definitions={}, running=True)
    figure = LiveFigure(lambda: replace(history, metrics=list(history.metrics)))
    alerts = Alerts(on_event)
    before: Verdict | None = None
    try:
        followed = _followed(run_id, "stop" if stop else "warn", stop_before_last_phase, poll_s)
        for run, live, monitor, epoch in followed:
            _take_in(history, run, monitor, epoch)
            if live and begins(epoch.verdict, before):
                alerts.tell(epoch.verdict, run_id=run_id, title=history.title, metrics=epoch.metrics)
            before = epoch.verdict
            figure.show()
            figure.redraw()
            yield epoch
        history.running = False
    finally:
        alerts.finish()
        figure.finish()


def _take_in(history: RunHistory, run: Run, monitor: ConvergenceMonitor, epoch: WatchedEpoch) -> None:
    """Take an epoch into what a notebook's figure is drawn from."""
    verdict, first = epoch.verdict, monitor.first_epochs
    history.title = str(run.info.run_name or run.info.run_id)
    history.links = links_of(run, mlflow.get_tracking_uri())
    history.definitions = {f"warning/{key}": value for key, value in warning_in(run.data.params).items()}
    judged = {names.CONVERGENCE_SIGNAL: float(verdict.signal), names.CONVERGENCE_SCORE: verdict.score}
    told = {key: value for key, value in judged.items() if math.isfinite(value)}
    history.metrics.append({"epoch": verdict.epoch, **epoch.metrics, **told})
    history.converged_epoch = first.get("converging")
    history.unsettled_epoch = first.get("unsettled")
    history.diverging_epoch = first.get("diverging")


def _followed(
    run_id: str, mode: WarningMode, stop_before_last_phase: bool, poll_s: float
) -> Iterator[tuple[Run, bool, ConvergenceMonitor, WatchedEpoch]]:
    """Give the run, whether it was live when it was first seen, its monitor and the next epoch."""
    known = _warning_parameters(run_id)
    monitor = _monitor_of(known, mode, stop_before_last_phase)
    seen = -1
    away = met = live = False
    while True:
        try:
            (run,) = find_runs([run_id])
            epochs = _epochs_of(run_id)
            # A run logs the parameters that it reads from its scheduler before the first epoch judged with them.
            parameters = _warning_parameters(run_id)
        except TrackingError as error:
            if not met:
                raise
            if not away:
                logger.warning("%s Watching goes on when the run can be read again.", error)
            away = True
            time.sleep(poll_s)
            continue
        away, met = False, True
        ended = RunStatus.is_terminated(RunStatus.from_string(run.info.status))
        live = live or not ended
        if parameters != known:
            known, monitor = parameters, _monitor_of(parameters, mode, stop_before_last_phase)
            for epoch in [epoch for epoch in epochs if epoch <= seen]:
                judge(monitor, epoch, epochs[epoch])
        for epoch in [epoch for epoch in epochs if epoch > seen]:
            verdict = judge(monitor, epoch, epochs[epoch])
            seen = epoch
            if not ended:
                _tag(run, monitor, verdict)
            yield run, live, monitor, WatchedEpoch(metrics=epochs[epoch], verdict=verdict)
        if ended:
            break
        time.sleep(poll_s)
    if not any(names.STABILITY in metrics for metrics in epochs.values()):
        raise TrackingError(
            f"Run {run_id!r} has ended and holds no {names.STABILITY}: record it with mlflow_dynamics.autolog(), or "
            f"watch another run."
        )


def _epochs_of(run_id: str) -> dict[int, dict[str, float]]:
    """Return epoch -> metric key -> value, without the steps at which only others than mlflow_dynamics have logged."""
    frame = load_metrics([run_id])
    ours = [key for key in frame if key.startswith("dynamics/")]
    logged = frame[frame[ours].notna().any(axis=1)].drop(columns="run_id").set_index("epoch")
    epochs = {
        int(epoch): {str(key): float(value) for key, value in row.dropna().items()}
        for epoch, row in logged.iterrows()
    }
    if names.TRAIN_LOSS in frame:
        # A loss that was logged as NaN means divergence, and must differ from a loss that was not logged.
        for epoch in load_metrics([run_id], metrics=[names.TRAIN_LOSS])["epoch"]:
            if epoch in epochs:
                epochs[epoch].setdefault(names.TRAIN_LOSS, math.nan)
    return epochs


def _warning_parameters(run_id: str) -> dict[str, str]:
    (run,) = find_runs([run_id])
    return warning_in(run.data.params)


def _monitor_of(
    parameters: dict[str, str], mode: WarningMode, stop_before_last_phase: bool
) -> ConvergenceMonitor:
    config = WarningConfig(
        mode=mode,
        detector=parameters.get("detector", OURS),
        schedule=schedule_of(parameters),
        stop_before_last_phase=stop_before_last_phase or parameters.get("stop_before_last_phase") == "True",
    )
    return ConvergenceMonitor(config)


def _tag(run: Run, monitor: ConvergenceMonitor, verdict: Verdict) -> None:
    if verdict.state in names.STATE_TAGS:
        _tag_once(run, names.STATE_TAGS[verdict.state], str(monitor.first_epochs[verdict.state]))
    if verdict.should_stop:
        _tag_once(run, names.TAG_STOP_REQUESTED, str(verdict.epoch))


def _tag_once(run: Run, key: str, value: str) -> None:
    if key in run.data.tags:
        return
    try:
        # MLflow's own client would follow a redirect, send the tag there and trust the answer.
        connect_to_read(mlflow.get_tracking_uri()).set_tag(run.info.run_id, RunTag(key, value))
    except (*STORE_ERRORS, TrackingError) as error:
        logger.warning("The tag %s could not be set: %s", key, reason_of(error))
    else:
        run.data.tags[key] = value
