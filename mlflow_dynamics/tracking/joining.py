"""Chooses the run in which a training is recorded. A run holds one training.

A second training gets a run of its own. A training that is carried on goes on in the run that holds it.
"""

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
    """A run to record into.

    Attributes:
        run: the run's id, its local name, or the record by which it is created.
        owned: the run is ours to end.
    """

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
    """Open the run for a training that begins in the calling thread. A run holds one training.

    The run is the given one; if none is given, the active MLflow run; if none is active, the run that `mlflow run` has
    prepared (MLFLOW_RUN_ID). If that run already holds a training, this training gets a run nested under it. If there
    is no such run, or the active run belongs to another recording, `start_run` makes a new one.

    Args:
        given: an MLflow run's id.
        tracking_uri: the store that holds the given run; None is MLflow's own.
        experiment_name, run_name, tags, spool_dir: for a new run, as in `start_run`.

    Raises:
        TrackingError: the experiment is deleted, neither the server nor the spool's disk can take a run, or the id of
            the run to join is not valid.
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
    """Return the run to carry on: the one that `open_run` looks at first, if it holds a training; otherwise None."""
    joined = given or run_to_join()
    found = None if joined is None else _run_in_store(joined, tracking_uri)
    return joined if found is not None and holds_training(found) else None


def run_to_resume(run_id: str, *, tracking_uri: str | None = None) -> Run | None:
    """Return the run of a training that is carried on; None, with a warning, if the store does not answer.

    Raises:
        ConfigError: the store has no such run, or the run is deleted.
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
    """Send the records of a run that wait here, and return the run as it is then, to be carried on.

    Raises:
        TrackingError: the run is being recorded, or some of its records cannot be sent, which would leave a gap.
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


def reopen_run(run: Run, *, joined: bool, system_metrics: bool | None = None) -> OpenedRun:
    """Reopen the run of a training that is carried on.

    If the run is `joined` or is the active run, the caller ends it. Otherwise its status becomes RUNNING, it becomes
    the calling thread's active run, and it is ours to end. `system_metrics` is as in `start_run`.
    """
    run_id = str(run.info.run_id)
    active = mlflow.active_run()
    if joined or (active is not None and active.info.run_id == run_id):
        return OpenedRun(run_id, owned=False)
    with suppress(MlflowException, requests.RequestException, OSError):  # the run's end is recorded even so
        store = connect(mlflow.get_tracking_uri(), read_timeout_s=OPEN_TIMEOUT_S)
        bounded(store, partial(store.update_run_info, run_id, RunStatus.RUNNING, None, None))
    activate_run(run, system_metrics=system_metrics)
    return OpenedRun(run_id, owned=True)


def holds_training(run: Run) -> bool:
    """Whether epochs of a training are recorded in this run, by whichever process."""
    return TAG_SCHEMA_VERSION in run.data.tags


def beside_run(parent: str, found: Run | None = None, *, tracking_uri: str | None = None) -> OpenedRun:
    """Return a run nested under `parent`, which is created in the background.

    Args:
        parent: the parent's id.
        found: the parent as the store has it; None if the store did not answer.
        tracking_uri: the store; None is MLflow's own.
    """
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
    """Return the record of a run nested under `parent`. `tags` are all tags of the run but that of its parent."""
    record = new_run({**tags, MLFLOW_PARENT_RUN_ID: parent})
    active = mlflow.active_run()
    if active is None or active.info.run_id != parent:
        return record
    return replace(record, experiment_id=str(active.info.experiment_id))


def _run_in_store(run_id: str, tracking_uri: str | None) -> Run | None:
    """Return the run as the store has it; None if the store does not answer within seconds or has no such run."""
    try:
        return _ask_for(run_id, tracking_uri or mlflow.get_tracking_uri())
    except (MlflowException, requests.RequestException, OSError):
        return None


def _ask_for(run_id: str, tracking_uri: str) -> Run:
    if lacks_database(tracking_uri):
        raise MlflowException("there is no database yet", RESOURCE_DOES_NOT_EXIST)
    store = connect(tracking_uri, read_timeout_s=OPEN_TIMEOUT_S)

    return bounded(store, lambda: run_of(store, run_id))
