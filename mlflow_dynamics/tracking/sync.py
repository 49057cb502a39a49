"""Sends the records that earlier runs have left, for `mlflow-dynamics sync` and when the next training starts."""

from __future__ import annotations

import logging
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import mlflow
import requests
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from mlflow_dynamics.errors import DataError, TrackingError
from mlflow_dynamics.redaction import redact
from mlflow_dynamics.threads import started
from mlflow_dynamics.tracking.folder import Folder, NotOursError
from mlflow_dynamics.tracking.mlflow_private import latest_metrics
from mlflow_dynamics.tracking.queue_entry import Batch
from mlflow_dynamics.tracking.run_record import FILE, RunRecord, read_run
from mlflow_dynamics.tracking.sender import FIRST_PAUSE_S, Delivery
from mlflow_dynamics.tracking.spool import InUseError, Spool, last_change, numbers, open_folder, spool_root
from mlflow_dynamics.tracking.store import RefusedAccess, connect, reason_of, stored_uri

STORE_ERRORS: Final = (MlflowException, requests.RequestException, OSError)

TRIES: Final = 3
"""The number of passes over a run's records before the rest is left for the next call."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SyncedRun:
    """The result for one run's folder.

    Attributes:
        folder: the run's spool folder, which is removed once everything is sent.
        run_id: the MLflow run's id; None if the run could not be created yet.
        sent: the number of records sent now.
        left: the number of records that are still to be sent.
        reason: why records are left; None if none are.
        ended: the run was ended now, because its process is dead.
        tried: sending was tried. It is not tried for a run of another store, nor after the store has not answered.
        running: the run's process is dead and has left the run RUNNING.
        in_use: another process records into the folder or sends it at this moment.
    """

    folder: Path
    run_id: str | None
    sent: int
    left: int
    reason: str | None
    ended: bool = False
    tried: bool = True
    running: bool = False
    in_use: bool = False


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A run's folder as it was found, before anything is changed.

    Attributes:
        folder: the folder.
        run: the run that it belongs to; None if the folder is left alone.
        waiting: the number of records in it.
        modified: when a record was last added or removed, in seconds since 1970.
        reason: why the folder is left alone; None if it is not.
    """

    folder: Path
    run: RunRecord | None = None
    waiting: int = 0
    modified: float = 0.0
    reason: str | None = None


def sync(
    spool_dir: Path | None = None,
    *,
    tracking_uri: str | None = None,
    end_stale: bool = False,
    tell: Callable[[SyncedRun], None] = lambda run: None,
) -> tuple[SyncedRun, ...]:
    """Send the records of the runs of one store, oldest run first, each value once.

    It may be killed and called again at any time. A folder that another process records into or sends from is left
    alone. If a run cannot be read or sent, this is reported, and the other runs are sent. But if the store itself does
    not answer, the remaining runs are not tried. The content of a spool is not trusted: it does not decide where
    records or credentials are sent.

    Args:
        spool_dir: the spool; None is MLFLOW_DYNAMICS_SPOOL or, if that is not set, `.mlflow_dynamics` in the working
            folder.
        tracking_uri: the store, with its password, which is not kept in the spool; None is MLflow's own. The password
            may be left out if the store is MLflow's own. Runs of another store are counted as left.
        end_stale: also end runs as KILLED, at the time of their last record, if they were begun for their recording,
            their process is dead, and the store still calls them RUNNING.
        tell: called with the result of each run as soon as it is known.

    Returns:
        The result of each run's folder.
    """
    uri = _with_credentials(tracking_uri or mlflow.get_tracking_uri())
    done: list[SyncedRun] = []
    for run in _synced(spool_root(spool_dir), uri, end_stale=end_stale):
        done.append(run)
        tell(run)
    return tuple(done)


def sync_run(
    run_id: str, spool_dir: Path | None = None, *, tracking_uri: str | None = None
) -> SyncedRun | None:
    """Send the records of one run, as `sync` does; return None if the run has no folder."""
    found = _look_into(spool_root(spool_dir) / run_id)
    if found is None:
        return None
    if found.run is None:
        return _not_sent(found, found.reason, tried=True)
    return _sync_run(found, tracking_uri or mlflow.get_tracking_uri(), end_stale=False)


def sync_in_background(root: Path, *, own: Path, tracking_uri: str) -> threading.Thread | None:
    """Start a thread that does what `sync` does, if the spool holds another run's folder than `own`.

    The folders are read in that thread, because a spool that came with a checkout may hold many large ones.

    Returns:
        The thread; None if it was not started.
    """
    try:
        home = Folder.open(root)
        others = any(root / name != own and home.holds(f"{name}/{FILE}") for name in home.names())
    except OSError:
        return None
    if not others:
        return None
    thread = threading.Thread(
        target=_sync_quietly, args=(root, tracking_uri), name="mlflow-dynamics-sync", daemon=True
    )
    return thread if started(thread) else None


def _sync_quietly(root: Path, tracking_uri: str) -> None:
    if isinstance(_store_failure(tracking_uri), RefusedAccess):
        return  # the training's own sender logs this
    for run in _synced(root, tracking_uri, end_stale=False):
        if run.sent:
            _logger.info("Sent %d records of the earlier run %s.", run.sent, run.run_id)
        if run.left and run.tried:
            _logger.info("%d records of %s are still not sent: %s", run.left, run.folder, run.reason)


def _synced(root: Path, tracking_uri: str, *, end_stale: bool) -> Iterator[SyncedRun]:
    unanswered: str | None = None
    for found in sorted(_look(root), key=lambda found: found.modified):
        if found.run is None:
            yield _not_sent(found, found.reason, tried=True)
        elif not _belongs_to(found.run, tracking_uri):
            other = shlex.quote(found.run.tracking_uri)
            yield _not_sent(
                found, f"of another store; `mlflow-dynamics sync --tracking-uri {other}` sends them"
            )
        elif unanswered is not None:
            yield _not_sent(found, unanswered)
        else:
            run = _sync_run(found, tracking_uri, end_stale=end_stale)
            if run is not None:
                failure = _store_failure(tracking_uri) if run.left else None
                if failure is not None:
                    refused = isinstance(failure, RefusedAccess)
                    reason = f": {reason_of(failure)}" if refused else " does not answer"
                    unanswered = redact(tracking_uri) + reason
                yield run


def _not_sent(found: _Found, reason: str | None, *, tried: bool = False) -> SyncedRun:
    run_id = None if found.run is None else found.run.run_id
    return SyncedRun(
        folder=found.folder, run_id=run_id, sent=0, left=found.waiting, reason=reason, tried=tried
    )


def _sync_run(found: _Found, tracking_uri: str, *, end_stale: bool) -> SyncedRun | None:
    """Send a folder and return the result; None if another process has sent and removed the folder meanwhile."""
    try:
        return _send_folder(found, tracking_uri, end_stale=end_stale)
    except OSError as error:  # somebody changes the folder meanwhile, or its disk fails
        return _not_sent(found, _left_alone(found.folder, error), tried=True)


def _send_folder(found: _Found, tracking_uri: str, *, end_stale: bool) -> SyncedRun | None:
    try:
        spool = Spool(found.folder)
    except (TrackingError, DataError) as error:
        still = _look_into(found.folder)
        if still is None:
            return None
        return replace(_not_sent(still, str(error), tried=True), in_use=isinstance(error, InUseError))
    try:
        delivery = Delivery(spool, tracking_uri)
        before = len(spool.entries())
        failure = _send(delivery)
        sent = before - len(spool.entries())
        ended = running = False
        if failure is None and not spool.entries() and spool.awaits_end:
            try:
                last_sign = _last_sign(spool.run, tracking_uri, found.modified)
            except STORE_ERRORS as error:
                failure = error
            else:
                running = last_sign is not None
                if last_sign is None:
                    spool.ended()
                elif end_stale:
                    spool.put(Batch(status="KILLED", end_time=last_sign))
                    failure = _send(delivery)
                    ended = failure is None
        return SyncedRun(
            folder=found.folder,
            run_id=spool.run.run_id,
            sent=sent,
            left=len(spool.entries()),
            reason=delivery.refusal if failure is None else reason_of(failure),
            ended=ended,
            running=running and not ended,
        )
    finally:
        spool.close()


def _send(delivery: Delivery) -> Exception | None:
    """Send a queue with some tries; return the error that remains, or None."""
    failure = delivery.run_once()
    for attempt in range(TRIES - 1):
        if failure is None or isinstance(failure, RefusedAccess):
            break
        time.sleep(FIRST_PAUSE_S * 2**attempt)
        failure = delivery.run_once()
    return failure


def _last_sign(run: RunRecord, tracking_uri: str, modified: float) -> int | None:
    """Return when a run last recorded something, in milliseconds since 1970; None if its status is not RUNNING."""
    try:
        stored = connect(tracking_uri).get_run(str(run.run_id))
    except MlflowException as error:
        if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            return None
        raise
    if stored.info.status != "RUNNING" or stored.info.lifecycle_stage == LifecycleStage.DELETED:
        return None
    return max((metric.timestamp for metric in latest_metrics(stored)), default=int(modified * 1000))


def _store_failure(tracking_uri: str) -> Exception | None:
    """Return the error with which the store itself does not answer; None if it answers."""
    try:
        connect(tracking_uri).search_experiments(max_results=1)
    except STORE_ERRORS as error:
        return error
    return None


def _look(root: Path) -> list[_Found]:
    """Find the runs' folders in a spool, without changing anything."""
    try:
        home = Folder.open(root)
    except FileNotFoundError:
        return []
    except OSError as error:
        return [_Found(folder=root, reason=_left_alone(root, error))]
    found = [_look_into(root / name) for name in home.names() if home.holds(f"{name}/{FILE}")]
    return [one for one in found if one is not None]


def _look_into(folder: Path) -> _Found | None:
    """Look into a run's folder; None if it is gone or holds no run."""
    try:
        home = open_folder(folder)
        run = read_run(home)
        if run is None:
            return None
        return _Found(folder=folder, run=run, waiting=len(numbers(home)), modified=last_change(home))
    except FileNotFoundError:
        return None
    except DataError as error:
        return _Found(folder=folder, reason=str(error))
    except OSError as error:
        return _Found(folder=folder, reason=_left_alone(folder, error))


def _left_alone(folder: Path, error: OSError) -> str:
    path = error.filename if isinstance(error, NotOursError) else folder
    return f"{path} is left alone: {error.strerror}."


def _belongs_to(run: RunRecord, tracking_uri: str) -> bool:
    return run.tracking_uri.rstrip("/") == stored_uri(tracking_uri).rstrip("/")


def _with_credentials(tracking_uri: str) -> str:
    current = mlflow.get_tracking_uri()
    return current if stored_uri(current) == tracking_uri else tracking_uri
