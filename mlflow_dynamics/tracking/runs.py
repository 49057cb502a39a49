"""Which run is recorded: the active one, else one of our own; also where the server does not answer."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import mlflow
import requests
from mlflow.environment_variables import MLFLOW_EXPERIMENT_ID, MLFLOW_EXPERIMENT_NAME, MLFLOW_RUN_ID
from mlflow.exceptions import MlflowException
from mlflow.tracking import fluent
from mlflow.tracking.context.registry import resolve_tags

from mlflow_dynamics.errors import TrackingError
from mlflow_dynamics.tracking.names import ENV_SPOOL, LOCAL_PREFIX
from mlflow_dynamics.tracking.sender import create_run, reason_of
from mlflow_dynamics.tracking.spool import RunRecord, save_run, spool_root
from mlflow_dynamics.tracking.store import absolute, connect, redact
from mlflow_dynamics.tracking.writer import RunWriter

OPEN_TIMEOUT_S: Final = 10.0
"""Training begins without the server where an answer takes longer than this."""

_logger = logging.getLogger(__name__)


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
    new one in `experiment_name` (default: MLflow's active experiment), which becomes the active run: the
    user's own `mlflow.log_metric` lands in it. Where the server does not answer within seconds the run gets a
    local name, is recorded in the spool and is created, with its right start time, when the server answers.

    Raises:
        TrackingError: the experiment is deleted, or neither the server nor the spool's disk can take a run.
    """
    active = mlflow.active_run()
    if active is not None:
        return OpenedRun(active.info.run_id, owned=False)
    prepared = MLFLOW_RUN_ID.get()
    if prepared:
        return OpenedRun(prepared, owned=False)
    tracking_uri = mlflow.get_tracking_uri()
    record = RunRecord(
        tracking_uri=redact(absolute(tracking_uri)),
        run_id=None,
        local_id=uuid.uuid4().hex,
        experiment_id=None if experiment_name else fluent._active_experiment_id or MLFLOW_EXPERIMENT_ID.get(),
        experiment_name=experiment_name or MLFLOW_EXPERIMENT_NAME.get(),
        run_name=run_name,
        start_time=int(time.time() * 1000),
        tags=resolve_tags(dict(tags or {})),
    )
    try:
        run_id = create_run(connect(tracking_uri, read_timeout_s=OPEN_TIMEOUT_S), record)
        mlflow.start_run(run_id=run_id)
    except (MlflowException, requests.RequestException, OSError) as error:
        return OpenedRun(_open_offline(record, spool_dir, error), owned=True)
    return OpenedRun(run_id, owned=True)


def end_run(writer: RunWriter, status: str = "FINISHED", timeout_s: float = 30.0) -> int:
    """End a run that `open_run` owns and close its writer; to be called on the thread that opened the run.

    The end is sent after everything recorded before it, so a run that MLflow calls finished is complete.
    Returns how many records could not be sent within `timeout_s`.
    """
    run_id = writer.run_id
    writer.end_run(status)
    unsent = writer.close(timeout_s)
    active = mlflow.active_run()
    if active is not None and active.info.run_id == run_id:
        if unsent == 0:
            mlflow.end_run(status)
        else:
            # MLflow's own end_run would wait minutes for the server that just failed.
            fluent._active_run_stack.get().pop()
    return unsent


def _open_offline(record: RunRecord, spool_dir: Path | None, error: Exception) -> str:
    name = f"{LOCAL_PREFIX}{record.local_id}"
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
