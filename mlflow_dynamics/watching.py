"""Watching a run from outside, or looking back at one: each epoch's verdict, from what the run has logged."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import mlflow
from mlflow.entities import Run, RunStatus, RunTag

from mlflow_dynamics.checks import require
from mlflow_dynamics.config import WarningMode
from mlflow_dynamics.convergence import ConvergenceMonitor, Verdict, WarningConfig
from mlflow_dynamics.convergence.installed import OURS
from mlflow_dynamics.convergence.schedule import schedule_of
from mlflow_dynamics.errors import TrackingError
from mlflow_dynamics.pipeline import judge
from mlflow_dynamics.tracking import names
from mlflow_dynamics.tracking.query import find_runs, load_metrics
from mlflow_dynamics.tracking.settings import warning_in
from mlflow_dynamics.tracking.store import connect_to_read, reason_of
from mlflow_dynamics.tracking.sync import STORE_ERRORS

LONGEST_POLL_S = 10**6
"""More than a week; what `time.sleep` takes has an end."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WatchedEpoch:
    """One epoch as the run logged it, metric key -> value, and what the monitor says of it."""

    metrics: Mapping[str, float]
    verdict: Verdict


def watch(
    run_id: str, *, stop: bool = False, stop_before_last_phase: bool = False, poll_s: float = 10.0
) -> Iterator[WatchedEpoch]:
    """Every epoch of a run with its verdict, as it comes, until the run ends; those of an ended run at once.

    The verdicts are those that the run itself gives or would have given: the monitor's detector and schedule are
    read from the run's parameters. On the signal a live run gets the tag `dynamics.converged_epoch` (where volatility
    rises `dynamics.unsettled_epoch`, where training diverges `dynamics.diverging_epoch`), with `stop` also
    `dynamics.stop_requested`, which a tracked run obeys after its next epoch. A server that has given the run once and
    is away for a while is waited for.

    Args:
        run_id: an MLflow run that logs stability.
        stop: ask the run to stop once the monitor would.
        stop_before_last_phase: under a smooth schedule do not wait for the last phase, also where the run itself would.
        poll_s: seconds between two looks at a live run.

    Raises:
        TrackingError: the run is unknown, deleted, ended without dynamics, or cannot be read from the beginning.
        ConfigError: `poll_s` is not above 0, or the run names a detector that is not installed here.
    """
    try:
        holds = not isinstance(poll_s, str | bool) and 0 < float(poll_s) < LONGEST_POLL_S
    except (TypeError, ValueError, OverflowError):
        holds = False
    require(holds, "poll", poll_s, f"a number of seconds above 0 and below {LONGEST_POLL_S:,}")
    mode: WarningMode = "stop" if stop else "warn"
    known = _warning_parameters(run_id)
    monitor = _monitor_of(known, mode, stop_before_last_phase)
    seen = -1
    away = met = False
    while True:
        try:
            (run,) = find_runs([run_id])
            epochs = _epochs_of(run_id)
            # What a run reads from its scheduler it logs before the epoch from which on it knows it.
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
        if parameters != known:
            known, monitor = parameters, _monitor_of(parameters, mode, stop_before_last_phase)
            for epoch in [epoch for epoch in epochs if epoch <= seen]:
                judge(monitor, epoch, epochs[epoch])
        for epoch in [epoch for epoch in epochs if epoch > seen]:
            verdict = judge(monitor, epoch, epochs[epoch])
            seen = epoch
            if not RunStatus.is_terminated(RunStatus.from_string(run.info.status)):
                _tag(run, monitor, verdict)
            yield WatchedEpoch(metrics=epochs[epoch], verdict=verdict)
        if RunStatus.is_terminated(RunStatus.from_string(run.info.status)):
            break
        time.sleep(poll_s)
    if not any(names.STABILITY in metrics for metrics in epochs.values()):
        raise TrackingError(
            f"Run {run_id!r} has ended and holds no {names.STABILITY}: record it with mlflow_dynamics.autolog(), or "
            f"watch another run."
        )


def _epochs_of(run_id: str) -> dict[int, dict[str, float]]:
    """The metrics of each epoch, without the steps at which only others have logged; no epoch where there is none."""
    frame = load_metrics([run_id])
    ours = [key for key in frame if key.startswith("dynamics/")]
    logged = frame[frame[ours].notna().any(axis=1)].drop(columns="run_id").set_index("epoch")
    epochs = {
        int(epoch): {str(key): float(value) for key, value in row.dropna().items()}
        for epoch, row in logged.iterrows()
    }
    if names.TRAIN_LOSS in frame:
        # A loss that was logged as NaN is divergence, one that was not logged is nothing.
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
        # Not by MLflow's client, which follows a redirect with the tag, and believes what answers there.
        connect_to_read(mlflow.get_tracking_uri()).set_tag(run.info.run_id, RunTag(key, value))
    except (*STORE_ERRORS, TrackingError) as error:
        logger.warning("The tag %s could not be set: %s", key, reason_of(error))
    else:
        run.data.tags[key] = value
