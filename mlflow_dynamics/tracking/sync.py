"""Sending what earlier runs left behind: for `mlflow-dynamics sync` and when the next training starts."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import mlflow

from mlflow_dynamics.errors import DataError, TrackingError
from mlflow_dynamics.threads import started
from mlflow_dynamics.tracking.sender import FIRST_PAUSE_S, Delivery
from mlflow_dynamics.tracking.spool import Spool, spool_root
from mlflow_dynamics.tracking.store import absolute, reason_of, redact

TRIES: Final = 3
"""Passes over a run's records before the rest is left for the next call."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SyncedRun:
    """What came of one run's folder.

    Attributes:
        folder: the run's spool folder; it is gone where everything was sent.
        run_id: the MLflow run; None where it could not be created yet.
        sent: records sent now.
        left: records that are still to be sent.
        reason: why some are left, or None.
    """

    folder: Path
    run_id: str | None
    sent: int
    left: int
    reason: str | None


def sync(spool_dir: Path | None = None) -> tuple[SyncedRun, ...]:
    """Send the records of all runs in a spool, oldest run first, each value once.

    May be killed and called again at any time. A folder that another process records into or sends from is left
    to it. What cannot be sent or read is reported and does not keep the other runs from being sent.

    Args:
        spool_dir: default MLFLOW_DYNAMICS_SPOOL, else `.mlflow_dynamics` in the working folder. Passwords in
            tracking URIs are not kept there: set MLFLOW_TRACKING_URI where the store needs one.
    """
    folders = _run_folders(spool_root(spool_dir))
    runs = (_sync_run(folder) for folder in sorted(folders, key=_modified))
    return tuple(run for run in runs if run is not None)


def sync_in_background(root: Path, *, own: Path) -> threading.Thread | None:
    """Start `sync` beside the training that records into `own`, where earlier runs left something."""
    if not set(_run_folders(root)) - {own}:
        return None
    thread = threading.Thread(target=_sync_quietly, args=(root,), name="mlflow-dynamics-sync", daemon=True)
    return thread if started(thread) else None


def _sync_quietly(root: Path) -> None:
    for run in sync(root):
        if run.sent:
            _logger.info("Sent %d records of the earlier run %s.", run.sent, run.run_id)
        if run.left:
            _logger.info("%d records of %s are still not sent: %s", run.left, run.folder, run.reason)


def _sync_run(folder: Path) -> SyncedRun | None:
    """What came of a folder; None where another process has sent and removed it meanwhile."""
    try:
        spool = Spool(folder)
    except (TrackingError, DataError, OSError) as error:
        if not (folder / "run.json").exists():
            return None
        return SyncedRun(folder=folder, run_id=None, sent=0, left=0, reason=str(error))
    try:
        delivery = Delivery(spool, _with_credentials(spool.run.tracking_uri))
        before = len(spool.entries())
        failure = delivery.run_once()
        for attempt in range(TRIES - 1):
            if failure is None:
                break
            time.sleep(FIRST_PAUSE_S * 2**attempt)
            failure = delivery.run_once()
        left = len(spool.entries())
        return SyncedRun(
            folder=folder,
            run_id=spool.run.run_id,
            sent=before - left,
            left=left,
            reason=delivery.refusal if failure is None else reason_of(failure),
        )
    finally:
        spool.close()


def _modified(folder: Path) -> float:
    """When the folder was last written; 0 where another process has just sent and removed it."""
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _run_folders(root: Path) -> list[Path]:
    return [path.parent for path in root.glob("*/run.json")]


def _with_credentials(tracking_uri: str) -> str:
    current = mlflow.get_tracking_uri()
    return current if redact(absolute(current)) == tracking_uri else tracking_uri
