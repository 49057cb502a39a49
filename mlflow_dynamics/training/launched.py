"""Handles the run that `mlflow run` makes for every entry point, even one that trains nothing or is refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import mlflow
from mlflow.entities import Run, RunStatus, SourceType
from mlflow.environment_variables import MLFLOW_RUN_ID
from mlflow.utils.mlflow_tags import MLFLOW_PROJECT_ENTRY_POINT, MLFLOW_SOURCE_TYPE

from mlflow_dynamics.errors import DynamicsError, TrackingError
from mlflow_dynamics.text import encodable
from mlflow_dynamics.tracking import names
from mlflow_dynamics.tracking.artifacts import artifact_root, upload_all
from mlflow_dynamics.tracking.runs import OPEN_TIMEOUT_S, bounded
from mlflow_dynamics.tracking.store import connect, failing_as, reading, run_of
from mlflow_dynamics.training.interruption import after_launcher


def launched_run(entry_point: str, run_id: str | None = None) -> Run | None:
    """Return the run that `mlflow run -e ENTRY_POINT` has made for this process.

    None is returned if there is no such run, if the run has ended or holds metrics, or if the store does not answer
    within seconds.
    """
    run_id = run_id or MLFLOW_RUN_ID.get()
    if run_id is None:
        return None
    try:
        with reading(f"Run {run_id!r:.100}"):
            store = connect(mlflow.get_tracking_uri(), read_timeout_s=OPEN_TIMEOUT_S)
            run = bounded(store, partial(run_of, store, run_id))
    except TrackingError:
        return None
    made_for = run.data.tags.get(MLFLOW_SOURCE_TYPE), run.data.tags.get(MLFLOW_PROJECT_ENTRY_POINT)
    ours = made_for == (SourceType.to_string(SourceType.PROJECT), entry_point)
    return run if ours and run.info.status == "RUNNING" and not run.data.metrics else None


@contextmanager
def nothing_left_if_refused(entry_point: str) -> Iterator[None]:
    """Delete the launched run if the block raises a DynamicsError, which is told to the user."""
    run = launched_run(entry_point)
    try:
        yield
    except DynamicsError:
        # A training that has begun has ended its run, which then must not be deleted.
        if run is not None and launched_run(entry_point, run.info.run_id) is not None:
            after_launcher(run.info.run_id, "delete")
        raise


@contextmanager
def nothing_left(entry_point: str) -> Iterator[None]:
    """Delete the launched run when the block has ended, however it ended."""
    run = launched_run(entry_point)
    try:
        yield
    finally:
        if run is not None:
            after_launcher(run.info.run_id, "delete")


def keep_in_launched_run(entry_point: str, files: Iterable[Path], *, title: str) -> None:
    """Store files as artifacts of the launched run, if there is one, and give the run this title.

    Raises:
        TrackingError: the store refuses the files or fails.
    """
    run = launched_run(entry_point)
    if run is None:
        return
    uri = mlflow.get_tracking_uri()
    status = RunStatus.from_string(run.info.status)
    content = {f"{names.ARTIFACT_ROOT}/{file.name}": file.read_bytes() for file in files}
    with failing_as(f"{title!r} is drawn and cannot be kept in run {run.info.run_id}"):
        connect(uri).update_run_info(run.info.run_id, status, run.info.end_time, encodable(title))
        upload_all(artifact_root(run, uri), uri, content)
