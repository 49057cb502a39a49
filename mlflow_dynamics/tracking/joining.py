"""Which run a training is recorded in. A run holds one training: another has its own, one that goes on takes it up."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import mlflow
import requests
from mlflow.entities import LifecycleStage, Run, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from mlflow_dynamics.errors import ConfigError, TrackingError
from mlflow_dynamics.redaction import redact
from mlflow_dynamics.tracking.names import (
    TAG_SCHEMA_VERSION,
)
from mlflow_dynamics.tracking.run_record import RunRecord
from mlflow_dynamics.tracking.runs import (
    OPEN_TIMEOUT_S,
    activate_run,
    bounded,
    known_id,
    new_run,
    run_to_join,
    start_run,
)
from mlflow_dynamics.tracking.spool import spool_root
from mlflow_dynamics.tracking.store import (
    connect,
    lacks_database,
    reason_of,
    run_of,
    stored_uri,
)
from mlflow_dynamics.tracking.sync import sync_run

HOLDS_ANOTHER: Final = (
    "Run %s holds another training: this one has a run of its own, nested under it. To carry on the training that "
    "it holds: mlflow_dynamics.track(model, resume=%r)."
)

_NO_SUCH_RUN: Final = tuple(map(ErrorCode.Name, (RESOURCE_DOES_NOT_EXIST, INVALID_PARAMETER_VALUE)))

_logger = logging.getLogger(__name__)


class OpenedRun(NamedTuple):
    """A run to record into: its id, its local name or how to create it; `owned` if it is to be ended here."""

    run: str | RunRecord
    owned: bool


def open_run(
    given: str | None = None,
    *,
    tracking_uri: str | None = None,
    experiment_name: str | None = None,
    run_name: str | None = None,
    tags: Mapping[str, str] | None = None,
    spool_dir: Path | None = None,
) -> OpenedRun:
    """The run for a training that begins, for the calling thread. A run holds one training.

    The run is the given one, else the active MLflow run, else the one that `mlflow run` prepared (MLFLOW_RUN_ID). If
    that run holds a training already, this training gets a run nested under it. Where there is none of the three, and
    where the active run is that of another recording, `start_run` makes a new one.

    Args:
        given: an MLflow run's id.
        tracking_uri: where the given run lives; default: MLflow's own.
        experiment_name, run_name, tags, spool_dir: of a new run, as for `start_run`.

    Raises:
        TrackingError: the experiment is deleted, neither the server nor the spool's disk can take a run, or the run to
            join has an id that is none.
    """
    joined = given or run_to_join()
    if joined is not None:
        joined = known_id(joined)
        found = _run_in_store(joined, tracking_uri)
        waiting = (spool_root(spool_dir) / joined).exists()
        if not waiting and (found is None or not holds_training(found)):
            return OpenedRun(joined, owned=False)
        _logger.info(HOLDS_ANOTHER, joined, joined)
        return beside_run(joined, found, tracking_uri=tracking_uri)
    other = mlflow.active_run()
    if other is not None:
        _logger.info("Recorded in a run of its own: another recording is still open, in run %s; close() a tracker, or "
                     "use it in a `with` block, to end its run.", other.info.run_id)  # fmt: skip
    name = start_run(experiment_name=experiment_name, run_name=run_name, tags=tags, spool_dir=spool_dir)
    return OpenedRun(name, owned=True)


def run_to_carry_on(given: str | None = None, *, tracking_uri: str | None = None) -> str | None:
    """The run that `open_run` would take if it held no training: for a training that goes on where that one ended."""
    joined = given or run_to_join()
    found = None if joined is None else _run_in_store(joined, tracking_uri)
    return joined if found is not None and holds_training(found) else None


def run_to_resume(run_id: str, *, tracking_uri: str | None = None) -> Run | None:
    """The run of a training that is carried on; None, with a warning, where the store does not answer.

    Raises:
        ConfigError: the store has no such run, or it is deleted.
    """
    tracking_uri = tracking_uri or mlflow.get_tracking_uri()
    try:
        run = _ask_for(run_id, tracking_uri)
    except MlflowException as error:
        if error.error_code in _NO_SUCH_RUN:
            raise ConfigError(f"resume={run_id!r} is no run of MLflow at {redact(tracking_uri)}; give the id of the "
                              f"run to carry on, or leave resume out.") from error  # fmt: skip
        reason = reason_of(error)
    except (requests.RequestException, OSError) as error:
        reason = reason_of(error)
    else:
        if run.info.lifecycle_stage == LifecycleStage.DELETED:
            raise ConfigError(f"resume={run_id!r} is a deleted run; mlflow runs restore --run-id {run_id} brings it "
                              f"back.")  # fmt: skip
        return run
    _logger.warning("Run %s cannot be carried on (%s): this training has a run of its own.", run_id, reason)
    return None


def whole_record(run: Run, *, tracking_uri: str | None = None) -> Run:
    """The run that is to be carried on, once what waits here of it is sent.

    Raises:
        TrackingError: it is being recorded, or some of it cannot be sent, so that its record would have a gap.
    """
    run_id = str(run.info.run_id)
    left = sync_run(run_id, tracking_uri=tracking_uri)
    if left is not None and left.in_use:
        raise TrackingError(f"Run {run_id!r} cannot be carried on: another tracker or process records it at this "
                            f"moment, or sends it ({left.folder}); end that one first.")  # fmt: skip
    if left is not None and left.left:
        raise TrackingError(f"Run {run_id!r} cannot be carried on: {left.left} records of it wait in {left.folder} "
                            f"({left.reason}); send them with: mlflow-dynamics sync")  # fmt: skip
    sent = None if left is None else _run_in_store(run_id, tracking_uri)
    return run if sent is None else sent


def reopen_run(run: Run, *, joined: bool) -> OpenedRun:
    """Take up the run of a training that is carried on.

    It stays the caller's to end where it is `joined` or the active run. Else it is running again, as the calling
    thread's active run, and is to be ended here.
    """
    run_id = str(run.info.run_id)
    active = mlflow.active_run()
    if joined or (active is not None and active.info.run_id == run_id):
        return OpenedRun(run_id, owned=False)
    with suppress(MlflowException, requests.RequestException, OSError):  # it is ended all the same
        store = connect(mlflow.get_tracking_uri(), read_timeout_s=OPEN_TIMEOUT_S)
        bounded(store, partial(store.update_run_info, run_id, RunStatus.RUNNING, None, None))
    activate_run(run)
    return OpenedRun(run_id, owned=True)


def holds_training(run: Run) -> bool:
    """Whether epochs of a training are recorded in this run, by whichever process."""
    return TAG_SCHEMA_VERSION in run.data.tags


def beside_run(parent: str, found: Run | None = None, *, tracking_uri: str | None = None) -> OpenedRun:
    """A run nested under `parent`, `found` in the store if it answered; to be created in the background."""
    record = nested_run(parent, resolve_tags())
    return OpenedRun(
        replace(
            record,
            experiment_id=record.experiment_id if found is None else str(found.info.experiment_id),
            tracking_uri=stored_uri(tracking_uri) if tracking_uri else record.tracking_uri,
        ),
        owned=True,
    )


def nested_run(parent: str, tags: Mapping[str, str]) -> RunRecord:
    """How to create a run nested under `parent`; all of its other tags."""
    record = new_run({**tags, MLFLOW_PARENT_RUN_ID: parent})
    active = mlflow.active_run()
    if active is None or active.info.run_id != parent:
        return record
    return replace(record, experiment_id=str(active.info.experiment_id))


def _run_in_store(run_id: str, tracking_uri: str | None) -> Run | None:
    """The run as the store has it; None where the store does not answer within seconds."""
    try:
        return _ask_for(run_id, tracking_uri or mlflow.get_tracking_uri())
    except (MlflowException, requests.RequestException, OSError):
        return None


def _ask_for(run_id: str, tracking_uri: str) -> Run:
    if lacks_database(tracking_uri):
        raise MlflowException("there is no database yet", RESOURCE_DOES_NOT_EXIST)
    store = connect(tracking_uri, read_timeout_s=OPEN_TIMEOUT_S)

    return bounded(store, lambda: run_of(store, run_id))
