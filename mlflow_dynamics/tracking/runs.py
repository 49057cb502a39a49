"""Which run is recorded: the active one, else one of our own; also where the server does not answer."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

import mlflow
import requests
from mlflow import ActiveRun
from mlflow.entities import Run
from mlflow.environment_variables import (
    MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING,
    MLFLOW_EXPERIMENT_ID,
    MLFLOW_EXPERIMENT_NAME,
    MLFLOW_RUN_ID,
)
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import fluent
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.workspace_context import get_request_workspace

from mlflow_dynamics.errors import TrackingError
from mlflow_dynamics.tracking.names import ENV_SPOOL, LOCAL_PREFIX, TAG_LOCAL_ID
from mlflow_dynamics.tracking.sender import create_run
from mlflow_dynamics.tracking.spool import RunRecord, save_run, spool_root
from mlflow_dynamics.tracking.store import absolute, connect, reason_of, redact
from mlflow_dynamics.tracking.writer import RunWriter

OPEN_TIMEOUT_S: Final = 10.0
"""Training begins without the server where an answer takes longer than this."""

_MODEL_TRAINING: Final = {"workflowType": "machine_learning"}

_logger = logging.getLogger(__name__)


class OwnRun(ActiveRun):
    """On MLflow's stack of active runs: one that was started here, for a recording that ends it."""


class OpenedRun(NamedTuple):
    """A run to record into; `owned` where it was opened here and is to be ended here."""

    run_id: str
    owned: bool


def open_run(
    *,
    experiment_name: str | None = None,
    run_name: str | None = None,
    tags: Mapping[str, str] | None = None,
    spool_dir: Path | None = None,
) -> OpenedRun:
    """The run to record into, for the calling thread.

    The active MLflow run where there is one; else the one that `mlflow run` prepared (MLFLOW_RUN_ID); else a
    new one in `experiment_name` (default: MLflow's active experiment), as `start_run` makes it. So it is where the
    active one is that of another recording, whose epochs are not these.

    Raises:
        TrackingError: the experiment is deleted, or neither the server nor the spool's disk can take a run.
    """
    joined = run_to_join()
    if joined is not None:
        return OpenedRun(joined, owned=False)
    other = mlflow.active_run()
    if other is not None:
        _logger.info("Recorded in a run of its own: another recording is still open, in run %s; close() a tracker, or "
                     "use it in a `with` block, to end its run.", other.info.run_id)  # fmt: skip
    run_id = start_run(experiment_name=experiment_name, run_name=run_name, tags=tags, spool_dir=spool_dir)
    return OpenedRun(run_id, owned=True)


def script_run() -> Run | None:
    """The thread's active run, if it is the script's: not one that a recording has started."""
    active = mlflow.active_run()
    return None if isinstance(active, OwnRun) else active


def run_to_join() -> str | None:
    """The run that is not ours to end: the script's active one, else the one that `mlflow run` prepared, else None."""
    if mlflow.active_run() is None:
        return MLFLOW_RUN_ID.get()
    script = script_run()
    return None if script is None else str(script.info.run_id)


def active_runs() -> list[str]:
    """The thread's active runs, each nested in the one before it."""
    return [run.info.run_id for run in fluent._active_run_stack.get()]


def start_run(
    *,
    experiment_name: str | None = None,
    run_name: str | None = None,
    tags: Mapping[str, str] | None = None,
    spool_dir: Path | None = None,
    prepared: str | None = None,
    system_metrics: bool | None = None,
) -> str:
    """Make a run the calling thread's active one, as `mlflow.start_run` does, without its minutes of retries.

    The user's own `mlflow.log_metric` lands in it. Where the server does not answer within seconds there is no
    active run: a new one gets a local name, is recorded in the spool and is created, with its right start time,
    when the server answers.

    Args:
        experiment_name: default: MLflow's active experiment.
        run_name: default: MLflow makes one up.
        tags: beside those that MLflow sets by itself.
        spool_dir: default: as for `RunWriter`.
        prepared: take up this run instead of creating one.
        system_metrics: let MLflow record the machine's; default: as MLflow is set.

    Returns:
        The run's id, or its local name.

    Raises:
        TrackingError: the experiment is deleted, or neither the server nor the spool's disk can take a run.
    """
    record = new_run(
        resolve_tags(dict(tags or {})), experiment_name=experiment_name, run_name=run_name, prepared=prepared
    )
    try:
        store = connect(mlflow.get_tracking_uri(), read_timeout_s=OPEN_TIMEOUT_S)
        run = create_run(store, record) if prepared is None else store.get_run(prepared)
    except (MlflowException, requests.RequestException, OSError) as error:
        return _open_offline(record, spool_dir, error)
    activate_run(run, system_metrics=system_metrics)
    return str(run.info.run_id)


def new_run(
    tags: Mapping[str, str],
    *,
    experiment_name: str | None = None,
    run_name: str | None = None,
    prepared: str | None = None,
) -> RunRecord:
    """How to create a run that begins now, for whoever does it later: all of its tags, the rest as for `start_run`."""
    return RunRecord(
        tracking_uri=redact(absolute(mlflow.get_tracking_uri())),
        run_id=prepared,
        local_id=uuid.uuid4().hex,
        experiment_id=None if experiment_name else fluent._active_experiment_id or MLFLOW_EXPERIMENT_ID.get(),
        experiment_name=experiment_name or MLFLOW_EXPERIMENT_NAME.get(),
        run_name=run_name,
        start_time=int(time.time() * 1000),
        tags=tags,
    )


def activate_run(run: Run, *, system_metrics: bool | None = None) -> None:
    """Make a run the calling thread's active and last one, as `mlflow.start_run` does, and say which it is."""
    run_id = str(run.info.run_id)
    _logger.info("The run is %s", named(run))
    fluent._active_run_stack.get().append(OwnRun(run))
    fluent._last_active_run_id.set(run_id)
    if MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get() if system_metrics is None else system_metrics:
        monitor = SystemMetricsMonitor(run_id)
        fluent.run_id_to_system_metrics_monitor[run_id] = monitor
        monitor.start()


def named(run: Run) -> str:
    """A run as a log line names it: its id and, behind a server, the link to its charts.

    The link asks for the model-training view: of itself MLflow's UI opens the GenAI one, as do the links that MLflow
    prints.
    """
    run_id = str(run.info.run_id)
    tracking_uri = mlflow.get_tracking_uri()
    if urlsplit(tracking_uri).scheme not in {"http", "https"}:
        return run_id
    workspace = get_request_workspace()
    query = ({} if workspace is None else {"workspace": workspace}) | _MODEL_TRAINING
    return (
        f"{run_id}: {redact(tracking_uri).rstrip('/')}/#/experiments/{run.info.experiment_id}/runs/{run_id}"
        f"/model-metrics?{urlencode(query, quote_via=quote)}"
    )


def end_run(writer: RunWriter, status: str = "FINISHED", timeout_s: float = 30.0) -> int:
    """End a run that `open_run` owns and close its writer; to be called on the thread that opened the run.

    The end is sent after everything recorded before it, so a run that MLflow calls finished is complete.
    Returns how many records could not be sent within `timeout_s`.
    """
    writer.end_run(status)
    unsent = writer.close(timeout_s)
    run_id = writer.run_id
    stack = fluent._active_run_stack.get()
    active = next((run for run in stack if run.info.run_id == run_id), None)
    if active is None:
        if not stack and run_id is not None:  # it was never made active: created after the last step
            fluent._last_active_run_id.set(run_id)
            if writer.created is not None and unsent == 0:
                _logger.info("Ended: run %s", named(writer.created))
        return unsent
    if unsent == 0 and active is stack[-1]:
        mlflow.end_run(status)
    else:
        # MLflow's own end_run ends the last one, and waits minutes for a server that just failed, as its monitor does.
        stack[:] = [run for run in stack if run is not active]
        monitor = fluent.run_id_to_system_metrics_monitor.pop(run_id, None)
        if monitor is not None:
            monitor._shutdown_event.set()
    if unsent == 0:
        _logger.info("Ended: run %s", named(active))
    return unsent


def _open_offline(record: RunRecord, spool_dir: Path | None, error: Exception) -> str:
    name = record.name
    folder = spool_root(spool_dir) / name
    try:
        save_run(folder, record)
    except OSError as disk_error:
        raise TrackingError(
            f"MLflow at {record.tracking_uri} takes no run ({reason_of(error)}) and {folder} cannot be "
            f"written ({disk_error.strerror}): start the server, or set {ENV_SPOOL} to another folder."
        ) from error
    _logger.warning(
        "MLflow at %s takes no run (%s). Training goes on, recorded in %s, to be sent when MLflow answers.",
        record.tracking_uri,
        reason_of(error),
        folder,
    )
    return name


def created_run(name: str) -> str:
    """The id of the MLflow run that a local name has become; an id is returned as it is.

    Raises:
        TrackingError: the run is not created yet.
    """
    if not name.startswith(LOCAL_PREFIX):
        return name
    found = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.`{TAG_LOCAL_ID}` = '{name.removeprefix(LOCAL_PREFIX)}'",
        output_format="list",
        max_results=1,
    )
    if not found:
        raise TrackingError(f"Run {name!r} is not in MLflow yet; send it with: mlflow-dynamics sync")
    return str(found[0].info.run_id)
