"""Opens and ends the run of a recording: the active run or one of our own, even if the server does not answer."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import mlflow
import requests
from mlflow import ActiveRun
from mlflow.entities import Run, RunStatus
from mlflow.environment_variables import (
    MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING,
    MLFLOW_EXPERIMENT_ID,
    MLFLOW_EXPERIMENT_NAME,
    MLFLOW_RUN_ID,
)
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.abstract_store import AbstractStore
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

from mlflow_dynamics.errors import TrackingError
from mlflow_dynamics.redaction import redact
from mlflow_dynamics.text import encodable
from mlflow_dynamics.threads import Result, within
from mlflow_dynamics.tracking import mlflow_private
from mlflow_dynamics.tracking.creation import create_run, found_run
from mlflow_dynamics.tracking.links import charts_of
from mlflow_dynamics.tracking.names import (
    ENV_SPOOL,
    MACHINE_LOAD,
    RUN_ID_WORDS,
    is_run_id,
)
from mlflow_dynamics.tracking.run_record import MAX_ID_LENGTH, RunRecord, save_run
from mlflow_dynamics.tracking.spool import open_folder, spool_root
from mlflow_dynamics.tracking.store import (
    CONNECT_TIMEOUT_S,
    HttpStore,
    RefusedAccess,
    connect,
    reason_of,
    run_of,
    stored_uri,
)
from mlflow_dynamics.tracking.writer import RunWriter

OPEN_TIMEOUT_S: Final = 10.0
"""If an answer takes longer than this, training begins without the server."""

LONGEST_OPEN_S: Final = 3 * (CONNECT_TIMEOUT_S + OPEN_TIMEOUT_S)
"""Bound on the time in which a run is opened, however slowly the answers to its requests come."""

INTERRUPTED_TIMEOUT_S: Final = 5.0
"""If the user interrupts while a run is being created, the run is looked for, to be ended, for at most this long."""

INTERRUPTED_POLL_S: Final = 0.2

MAX_NAME_LENGTH: Final = 250
"""The most characters of a run's name in MLflow's SQL stores (mlflow.store.tracking.dbmodels.models.SqlRun). Some of
them refuse a longer name."""

_logger = logging.getLogger(__name__)


class OwnRun(ActiveRun):
    """An entry on MLflow's stack of active runs: a run that was started here, and that its recording ends."""


def known_id(run_id: str) -> str:
    """Return `run_id` unchanged.

    Raises:
        TrackingError: the id, which comes from MLflow or MLFLOW_RUN_ID, is not the id of a run.
    """
    if not is_run_id(run_id):
        raise TrackingError(
            f"The run to record into is {run_id!r:.100}, which is not {RUN_ID_WORDS}. MLflow at "
            f"{redact(mlflow.get_tracking_uri())} or MLFLOW_RUN_ID says so; end that run, or name another."
        )
    return run_id


def script_run() -> Run | None:
    """Return the thread's active run; None if there is none or a recording has started it."""
    active = mlflow.active_run()
    return None if isinstance(active, OwnRun) else active


def run_to_join() -> str | None:
    """Return the run to join, which is not ours to end.

    It is the script's active run or, if no run is active, the run that `mlflow run` has prepared; otherwise None.
    """
    if mlflow.active_run() is None:
        return MLFLOW_RUN_ID.get()
    script = script_run()
    return None if script is None else str(script.info.run_id)


def active_runs() -> list[str]:
    """Return the ids of the thread's active runs, each nested in the one before it."""
    return [run.info.run_id for run in mlflow_private.run_stack()]


def start_run(
    *,
    experiment_name: str | None = None,
    run_name: str | None = None,
    tags: Mapping[str, str] | None = None,
    spool_dir: Path | None = None,
    prepared: str | None = None,
    system_metrics: bool | None = None,
) -> str:
    """Start a run as the calling thread's active one, as `mlflow.start_run` does, but without minutes of retries.

    The user's own calls of `mlflow.log_metric` then log into this run. If the server does not answer within seconds, no
    run becomes active: a new run gets a local name, is recorded in the spool, and is created with its true start time
    when the server answers.

    Args:
        experiment_name: the experiment; None is MLflow's active one.
        run_name: the run's name; None lets MLflow make one up. A prepared run that somebody has named keeps its name.
        tags: tags besides those that MLflow sets by itself.
        spool_dir: the folder of all runs' folders; None as in `RunWriter`.
        prepared: the id of a run to start instead of creating one.
        system_metrics: let MLflow log the machine's load; None does as MLflow is set.

    Returns:
        The run's id, or its local name if the server has not created it yet.

    Raises:
        TrackingError: the experiment is deleted, the store cannot be used as it is, or neither the server nor the
            spool's disk can take a run.
    """
    if prepared is not None:
        known_id(prepared)
    record = new_run(
        resolve_tags(dict(tags or {})), experiment_name=experiment_name, run_name=run_name, prepared=prepared
    )
    try:
        run = _create_or_look_up(record)
    except (MlflowException, requests.RequestException, OSError) as error:
        return _open_offline(record, spool_dir, error)
    activate_run(run, system_metrics=system_metrics)
    return str(run.info.run_id)


def _create_or_look_up(record: RunRecord) -> Run:
    """Create the run or, if it has an id, look it up, with a bounded wait."""
    tracking_uri, run_id = mlflow.get_tracking_uri(), record.run_id
    store = connect(tracking_uri, read_timeout_s=OPEN_TIMEOUT_S)

    def ask() -> Run:
        if run_id is None:
            return create_run(store, record)
        return _look_up(store, run_id, record.run_name)

    try:
        return bounded(store, ask)
    except KeyboardInterrupt:
        if run_id is None:
            _end_interrupted(store, record)
        raise


def _end_interrupted(store: AbstractStore, record: RunRecord) -> None:
    """End the run of a record, which the server may be creating at this moment. Nobody else will end it."""

    def end() -> None:
        deadline = time.monotonic() + INTERRUPTED_TIMEOUT_S
        while (found := found_run(store, record)) is None and time.monotonic() < deadline:
            time.sleep(INTERRUPTED_POLL_S)
        if found is not None:
            store.update_run_info(found.info.run_id, RunStatus.KILLED, int(time.time() * 1000), None)

    with suppress(MlflowException, TrackingError, requests.RequestException, OSError):
        within(2 * INTERRUPTED_TIMEOUT_S, end)


def bounded(store: AbstractStore, ask: Callable[[], Result]) -> Result:
    """Return what `ask` returns, before a training begins. A server gets limited time; a database has its own limits.

    Raises:
        TimeoutError: the server took longer than `LONGEST_OPEN_S`.
    """
    return within(LONGEST_OPEN_S, ask) if isinstance(store, HttpStore) else ask()


def new_run(
    tags: Mapping[str, str],
    *,
    experiment_name: str | None = None,
    run_name: str | None = None,
    prepared: str | None = None,
) -> RunRecord:
    """Return the record of a run that begins now, by which the run can be created later.

    `tags` are all tags of the run; the other arguments are as in `start_run`.
    """
    chosen = mlflow_private.chosen_experiment_id() or MLFLOW_EXPERIMENT_ID.get()
    experiment_id = None if experiment_name else chosen
    experiment_name = experiment_name or MLFLOW_EXPERIMENT_NAME.get()
    # Every text may come from an environment that is not UTF-8, but run.json must be read back as it was written.
    return RunRecord(
        tracking_uri=stored_uri(mlflow.get_tracking_uri()),
        run_id=prepared,
        local_id=uuid.uuid4().hex,
        experiment_id=None if experiment_id is None else encodable(experiment_id)[:MAX_ID_LENGTH],
        experiment_name=None if experiment_name is None else encodable(experiment_name),
        run_name=None if run_name is None else encodable(run_name)[:MAX_NAME_LENGTH],
        start_time=int(time.time() * 1000),
        tags={encodable(key): _tag_value(key, value) for key, value in tags.items()},
        owned=prepared is None,
    )


def _tag_value(key: str, value: str) -> str:
    # MLflow's tags of the source hold where the script's code comes from, which may be a URI with a password.
    return encodable(redact(value) if key.startswith("mlflow.source.") else value)[:MAX_TAG_VAL_LENGTH]


def activate_run(run: Run, *, system_metrics: bool | None = None) -> None:
    """Make a run the calling thread's active and last one, as `mlflow.start_run` does, and log which run it is."""
    run_id = str(run.info.run_id)
    _logger.info("The run is %s", named(run))
    mlflow_private.run_stack().append(OwnRun(run))
    mlflow_private.set_last_active_run(run_id)
    if MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get() if system_metrics is None else system_metrics:
        try:
            mlflow_private.start_monitor(
                run_id, goes_on=any(key.startswith(MACHINE_LOAD) for key in run.data.metrics)
            )
        except ImportError as error:
            _logger.warning(
                "The machine's load is not logged: MLflow needs %s for it; pip install %s", *[error.name] * 2
            )


def named(run: Run) -> str:
    """Return the run's id for a log line and, for a server, the link to the run's charts."""
    run_id = str(run.info.run_id)
    charts = charts_of(run, mlflow.get_tracking_uri())
    return run_id if charts is None else f"{run_id}: {charts}"


def end_run(writer: RunWriter, status: str = "FINISHED", timeout_s: float = 30.0) -> int:
    """End a run that is ours to end, and close its writer. No thread has it as an active run afterwards.

    The end is sent after everything recorded before it, so a run that MLflow calls finished is complete.

    Args:
        writer: the run's writer.
        status: FINISHED, FAILED or KILLED.
        timeout_s: how long to send records, in seconds.

    Returns:
        The number of records that could not be sent.
    """
    writer.end_run(status)
    unsent = writer.close(timeout_s)
    run_id = writer.run_id
    here, *_ = stacks = mlflow_private.run_stacks()
    stack, active = next(
        ((stack, run) for stack in stacks for run in stack if run.info.run_id == run_id), (here, None)
    )
    if active is None:
        if not stack and run_id is not None:  # it was created after the last step, and so never made active
            mlflow_private.set_last_active_run(run_id)
            if writer.created is not None and unsent == 0:
                _logger.info("Ended: run %s", named(writer.created))
        return unsent
    # MLflow's own end_run would send the end once more, wait minutes for a server that just failed, and print lines.
    if stack is here and active is stack[-1]:
        MLFLOW_RUN_ID.unset()
        mlflow_private.set_last_active_run(run_id)
    stack[:] = [run for run in stack if run is not active]
    monitor = mlflow_private.monitors.pop(run_id, None)
    if monitor is not None:
        mlflow_private.stop_without_waiting(monitor)
    if unsent == 0:
        _logger.info("Ended: run %s", named(active))
    return unsent


def _open_offline(record: RunRecord, spool_dir: Path | None, error: Exception) -> str:
    name = record.name
    folder = spool_root(spool_dir) / name
    try:
        save_run(open_folder(folder, create=True), record)
    except OSError as disk_error:
        raise TrackingError(
            f"MLflow at {record.tracking_uri} takes no run ({reason_of(error)}) and {folder} cannot be "
            f"written ({disk_error.strerror}): start the server, or set {ENV_SPOOL} to another folder."
        ) from error
    if isinstance(error, RefusedAccess):
        _logger.error(
            "MLflow at %s takes no run: %s. Training goes on, recorded in %s, to be sent then by: mlflow-dynamics sync",
            record.tracking_uri,
            reason_of(error),
            folder,
        )
    else:
        _logger.warning(
            "MLflow at %s takes no run (%s). Training goes on, recorded in %s, to be sent when MLflow answers.",
            record.tracking_uri,
            reason_of(error),
            folder,
        )
    return name


def _look_up(store: AbstractStore, run_id: str, run_name: str | None) -> Run:
    run = run_of(store, run_id)
    if run_name is None or _has_chosen_name(run):
        return run
    store.update_run_info(run_id, RunStatus.from_string(run.info.status), run.info.end_time, run_name)
    return run_of(store, run_id)


def _has_chosen_name(run: Run) -> bool:
    """Whether somebody chose the run's name, rather than MLflow making it up of its words."""
    predicate, _, rest = str(run.info.run_name).partition("-")
    noun, _, number = rest.rpartition("-")
    return not (
        predicate in mlflow_private.PREDICATES and noun in mlflow_private.NOUNS and number.isdecimal()
    )
