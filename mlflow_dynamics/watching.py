"""Watching a run from outside, or looking back at one: each epoch's verdict, from what the run has logged."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import mlflow
import pandas as pd
from mlflow.entities import Run, RunStatus
from mlflow.exceptions import MlflowException

from mlflow_dynamics.convergence import ConvergenceMonitor, Verdict
from mlflow_dynamics.convergence.detectors import OURS
from mlflow_dynamics.convergence.monitor import Mode
from mlflow_dynamics.convergence.schedule import schedule_of
from mlflow_dynamics.errors import ConfigError, TrackingError
from mlflow_dynamics.tracking import names
from mlflow_dynamics.tracking.query import find_runs, load_metrics

logger = logging.getLogger(__name__)

_PREFIX: Final = "dynamics/warning/"

_LOSS_KNOWN: Final = "loss known"


@dataclass(frozen=True, kw_only=True)
class WatchedEpoch:
    """One epoch as the run logged it, and what the monitor says of it."""

    stability: float
    volatility: float
    validation_accuracy: float
    verdict: Verdict


def watch(
    run_id: str, *, stop: bool = False, stop_before_last_phase: bool = False, poll_s: float = 10.0
) -> Iterator[WatchedEpoch]:
    """Every epoch of a run with its verdict, as it comes, until the run ends; those of an ended run at once.

    The verdicts are those that the run itself gives or would have given: the monitor's detector and schedule are
    read from the run's parameters. On the signal a live run gets the tag `dynamics.converged_epoch` (where volatility
    rises `dynamics.unsettled_epoch`, where training diverges `dynamics.diverging_epoch`), with `stop` also
    `dynamics.stop_requested`, which a tracked run obeys after its next epoch. A server that is away for a while is
    waited for.

    Args:
        run_id: an MLflow run that logs stability.
        stop: ask the run to stop once the monitor would.
        stop_before_last_phase: under a smooth schedule do not wait for the last phase, also where the run itself would.
        poll_s: seconds between two looks at a live run.

    Raises:
        TrackingError: the run is unknown, deleted, or ended without dynamics.
        ConfigError: `poll_s` is not above 0, or the run names a detector that is not installed here.
    """
    if not (math.isfinite(poll_s) and poll_s > 0):
        raise ConfigError(f"poll={poll_s!r} must be a number of seconds above 0.")
    mode: Mode = "stop" if stop else "warn"
    known = _warning_parameters(run_id)
    monitor = _monitor_of(known, mode, stop_before_last_phase)
    seen = -1
    away = False
    while True:
        try:
            (run,) = find_runs([run_id])
            frame = _epochs_of(run_id)
            # What a run reads from its scheduler it logs before the epoch from which on it knows it.
            parameters = _warning_parameters(run_id)
        except TrackingError as error:
            if not away:
                logger.warning("%s Watching goes on when the run can be read again.", error)
            away = True
            time.sleep(poll_s)
            continue
        away = False
        if parameters != known:
            known, monitor = parameters, _monitor_of(parameters, mode, stop_before_last_phase)
            for _, row in frame[frame["epoch"] <= seen].iterrows():
                _judge(monitor, row)
        for _, row in frame[frame["epoch"] > seen].iterrows():
            epoch = _judge(monitor, row)
            seen = epoch.verdict.epoch
            if RunStatus.is_terminated(RunStatus.from_string(run.info.status)):
                yield epoch
                continue
            state = epoch.verdict.state
            if state in names.STATE_TAGS:
                _tag_once(run, names.STATE_TAGS[state], str(monitor.first_epochs[state]))
            if epoch.verdict.should_stop:
                _tag_once(run, names.TAG_STOP_REQUESTED, str(seen))
            yield epoch
        if RunStatus.is_terminated(RunStatus.from_string(run.info.status)):
            break
        time.sleep(poll_s)
    if frame[names.STABILITY].isna().all():
        raise TrackingError(
            f"Run {run_id!r} has ended and holds no {names.STABILITY}: record it with mlflow_dynamics.autolog(), or "
            f"watch another run."
        )


def _epochs_of(run_id: str) -> pd.DataFrame:
    """The run's metrics without the steps at which only others have logged: epochs to be measured, or no epochs."""
    frame = load_metrics([run_id])
    ours = [key for key in frame if key.startswith("dynamics/")]
    frame = frame[frame[ours].notna().any(axis=1)].copy()
    frame[_LOSS_KNOWN] = False
    if names.TRAIN_LOSS in frame:
        # A loss that was logged as NaN is divergence, one that was not logged is nothing.
        told = load_metrics([run_id], metrics=[names.TRAIN_LOSS])["epoch"]
        frame[_LOSS_KNOWN] = frame[names.TRAIN_LOSS].notna() | frame["epoch"].isin(told)
    return frame


def _warning_parameters(run_id: str) -> dict[str, str]:
    (run,) = find_runs([run_id])
    return {
        key.removeprefix(_PREFIX): value for key, value in run.data.params.items() if key.startswith(_PREFIX)
    }


def _monitor_of(parameters: dict[str, str], mode: Mode, stop_before_last_phase: bool) -> ConvergenceMonitor:
    return ConvergenceMonitor(
        parameters.get("detector", OURS),
        mode=mode,
        schedule=schedule_of(parameters),
        stop_before_last_phase=stop_before_last_phase or parameters.get("stop_before_last_phase") == "True",
    )


def _judge(monitor: ConvergenceMonitor, row: pd.Series) -> WatchedEpoch:
    def value(key: str) -> float:
        return float(row.get(key, math.nan))

    loss, rate = value(names.TRAIN_LOSS), value(names.LEARNING_RATE)
    verdict = monitor.update(
        int(row["epoch"]),
        value(names.STABILITY),
        loss=loss if row[_LOSS_KNOWN] else None,
        learning_rate=None if math.isnan(rate) else rate,
    )
    return WatchedEpoch(
        stability=value(names.STABILITY),
        volatility=value(names.VOLATILITY),
        validation_accuracy=value(names.VALIDATION_ACCURACY),
        verdict=verdict,
    )


def _tag_once(run: Run, key: str, value: str) -> None:
    if key in run.data.tags:
        return
    try:
        mlflow.MlflowClient().set_tag(run.info.run_id, key, value)
    except MlflowException as error:
        logger.warning("The tag %s could not be set: %s", key, error.message)
    else:
        run.data.tags[key] = value
