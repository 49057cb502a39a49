"""Sends a spool to MLflow: one pass over the queue, and the thread that repeats passes until everything is sent."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final

import requests
from mlflow.entities import (
    Dataset,
    DatasetInput,
    ExperimentTag,
    InputTag,
    LifecycleStage,
    Metric,
    Param,
    Run,
    RunStatus,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, ErrorCode
from mlflow.store.tracking.abstract_store import AbstractStore
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT
from mlflow.utils.validation import MAX_METRICS_PER_BATCH, MAX_PARAMS_TAGS_PER_BATCH

from mlflow_dynamics.errors import DataError, TrackingError
from mlflow_dynamics.redaction import redact
from mlflow_dynamics.tracking import names
from mlflow_dynamics.tracking.artifacts import artifact_root, confirm, upload
from mlflow_dynamics.tracking.creation import create_run
from mlflow_dynamics.tracking.links import filled_in
from mlflow_dynamics.tracking.mlflow_private import latest_metrics
from mlflow_dynamics.tracking.queue_entry import Batch, Entry
from mlflow_dynamics.tracking.spool import Spool
from mlflow_dynamics.tracking.store import (
    NOT_MLFLOW,
    RefusedAccess,
    UnusableStore,
    connect,
    reason_of,
    run_of,
    whole_experiment,
)

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
LONGEST_PAUSE_IF_REFUSED_S: Final = 300.0
"""Pause between tries with refused credentials. They may be renewed while a training goes on, but a server that counts
wrong ones may lock the user out."""

CREATED_POLL_S: Final = 0.05

TOO_LARGE: Final = 413
"""HTTP status with which a server or a proxy before it (nginx by default above 1 MB) refuses a file for its size."""

_logger = logging.getLogger(__name__)


class Delivery:
    """Sends the queue of one spool, in order, each value once.

    After a start or a failure, the store is asked which steps of a metric it already has, and these are not sent again.
    This covers both a record whose first sending had an unknown outcome and a resumed run that repeats an epoch. A
    record is deleted only when the run, read back from the store, holds it, because an answer alone does not prove that
    MLflow has stored the record.

    Args:
        spool: the spool to send.
        tracking_uri: the store, with credentials.

    Attributes:
        created: the run, if it was created here.
        seen: the run as it was when something was last sent.
        refusal: why a file waits for the next `sync`; None if none does.
        stop_requested: the run had been asked from outside to stop when something was last sent.
    """

    def __init__(self, spool: Spool, tracking_uri: str) -> None:
        self.created: Run | None = None
        self.seen: Run | None = None
        self._spool = spool
        self._tracking_uri = tracking_uri
        self._store: AbstractStore | None = None
        self._run: Run | None = None
        self._sent_steps: dict[str, set[int]] = {}
        self._refused: set[tuple[int, str]] = set()
        self.refusal: str | None = None
        self.stop_requested = False

    def run_once(self) -> Exception | None:
        """Send what can be sent now; return the error that keeps the rest from being sent, or None.

        If the artifact store fails, metrics are still sent. If metrics fail, nothing else is tried. A file that is
        refused for its size (see `refusal`) stays in the queue for the next `sync` and holds nothing back.
        """
        artifact_error: Exception | None = None
        for entry in self._spool.entries():
            try:
                run_id = self._ready()
                self._send_batch(run_id, entry)
            except Exception as error:  # noqa: BLE001 - stores are plug-ins and raise errors of their own
                self._sent_steps.clear()
                return error
            if artifact_error is None:
                try:
                    complete = self._send_artifacts(entry)
                except Exception as error:  # noqa: BLE001 - cloud clients raise errors of their own too
                    artifact_error = error
                    continue
                if complete:
                    self._spool.finish(entry)
        return artifact_error

    def _ready(self) -> str:
        if self._store is None:
            self._store = connect(self._tracking_uri)
        if self._spool.run.run_id is None:
            created = create_run(self._store, self._spool.run)
            self._spool.set_run_id(str(created.info.run_id))
            self.created = created
        run_id = self._spool.run.run_id
        assert run_id is not None
        if self._run is None:
            run = self._get_run(run_id)
            experiment_id = run.info.experiment_id
            experiment = whole_experiment(self._store.get_experiment(experiment_id), asked=experiment_id)
            if names.MODEL_TRAINING_KIND[0] not in experiment.tags:
                self._store.set_experiment_tag(experiment_id, ExperimentTag(*names.MODEL_TRAINING_KIND))
            self._run = self.seen = run
        return run_id

    def _get_run(self, run_id: str) -> Run:
        assert self._store is not None
        return run_of(self._store, run_id)

    def _send_batch(self, run_id: str, entry: Entry) -> None:
        assert self._store is not None
        try:
            batch = entry.batch()
            if batch is None:
                return
            metrics = self._unsent(run_id, batch)
            for start in range(0, len(metrics), MAX_METRICS_PER_BATCH // 2):
                self._store.log_batch(run_id, metrics[start : start + MAX_METRICS_PER_BATCH // 2], [], [])
            params = [Param(key, value) for key, value in batch.params.items()]
            tags = [RunTag(key, value) for key, value in self._ours(run_id, batch.tags).items()]
            for start in range(0, max(len(params), len(tags)), MAX_PARAMS_TAGS_PER_BATCH):
                part = slice(start, start + MAX_PARAMS_TAGS_PER_BATCH)
                self._store.log_batch(run_id, [], params[part], tags[part])
            if batch.datasets:
                self._store.log_inputs(
                    run_id, [_dataset_input(**asdict(dataset)) for dataset in batch.datasets]
                )
            if batch.status is not None:
                self._store.update_run_info(run_id, RunStatus.from_string(batch.status), batch.end_time, None)
            self._confirm(run_id, batch, metrics, tags)
        except DataError as error:
            self._reject(entry, str(error))
        except MlflowException as error:
            if self._is_deleted(run_id):
                raise TrackingError(
                    f"the run is deleted: mlflow runs restore --run-id {run_id} brings it back"
                ) from error
            if error.error_code != ErrorCode.Name(INVALID_PARAMETER_VALUE):
                raise
            self._reject(entry, reason_of(error))
        else:
            for metric in metrics:
                self._sent_steps[metric.key].add(metric.step)
            self._spool.batch_sent(entry)
            if batch.status is not None:
                self._spool.ended()

    def _ours(self, run_id: str, tags: Mapping[str, str]) -> Mapping[str, str]:
        """Return the tags. A description gets its links; it is left out if the run has a description by the user."""
        if names.TAG_DESCRIPTION not in tags:
            return tags
        run = self._get_run(run_id)
        if run.data.tags.get(names.TAG_DESCRIPTION, names.DESCRIPTION).startswith(names.DESCRIPTION):
            return {**tags, names.TAG_DESCRIPTION: filled_in(tags[names.TAG_DESCRIPTION], run)}
        return {key: value for key, value in tags.items() if key != names.TAG_DESCRIPTION}

    def _unsent(self, run_id: str, batch: Batch) -> list[Metric]:
        assert self._store is not None
        unknown = {metric[0] for metric in batch.metrics} - self._sent_steps.keys()
        latest = _latest_steps(self._get_run(run_id)) if unknown else {}
        for key in unknown:
            steps = {metric.step for metric in self._store.get_metric_history(run_id, key)}
            if key in latest and latest[key] not in steps:
                raise MlflowException(f"{NOT_MLFLOW}: the history of {key} lacks step {latest[key]}")
            self._sent_steps[key] = steps
        return [
            Metric(key, value, timestamp, step)
            for key, value, timestamp, step in batch.metrics
            if step not in self._sent_steps[key]
        ]

    def _confirm(self, run_id: str, batch: Batch, metrics: Sequence[Metric], tags: Sequence[RunTag]) -> None:
        """Read the run back; raise MlflowException if it does not hold what was sent."""
        self.seen = run = self._get_run(run_id)
        self.stop_requested = self.stop_requested or names.TAG_STOP_REQUESTED in run.data.tags
        latest = _latest_steps(run)
        known = run.inputs.dataset_inputs if run.inputs is not None else []
        inputs = {(one.dataset.name, one.dataset.digest) for one in known}
        missing = [
            *(metric.key for metric in metrics if latest.get(metric.key, -math.inf) < metric.step),
            *(key for key in batch.params if key not in run.data.params),
            *(tag.key for tag in tags if tag.key not in run.data.tags),
            *(one.name for one in batch.datasets if (one.name, one.digest) not in inputs),
            *([batch.status] if batch.status not in (None, run.info.status) else []),
        ]
        if missing:
            raise MlflowException(
                f"MLflow took a record and does not have it: {missing[0]} is not in the run"
            )

    def _send_artifacts(self, entry: Entry) -> bool:
        """Send the record's files; return whether MLflow has all of them now."""
        assert self._run is not None
        folders: dict[str, dict[str, bytes]] = {}
        for path in entry.artifact_paths():
            data = None if (entry.number, path) in self._refused else entry.read_artifact(path)
            if data is not None:
                folders.setdefault(path.rpartition("/")[0], {})[path] = data
        for folder, files in folders.items():
            self._send_folder(entry, folder, files)
        return not any((entry.number, path) in self._refused for path in entry.artifact_paths())

    def _send_folder(self, entry: Entry, folder: str, files: Mapping[str, bytes]) -> None:
        assert self._run is not None
        root = artifact_root(self._run, self._tracking_uri)
        taken: dict[str, int] = {}
        for path, data in files.items():
            try:
                upload(root, self._tracking_uri, path, data)
            except requests.HTTPError as error:
                if error.response is None or error.response.status_code != TOO_LARGE:
                    raise
                self._refuse(entry, path, len(data))
            else:
                taken[path] = len(data)
        confirm(root, self._tracking_uri, folder, taken)
        for path in taken:
            self._spool.artifact_sent(entry, path)

    def _refuse(self, entry: Entry, path: str, size: int) -> None:
        self._refused.add((entry.number, path))
        if self.refusal is None:
            self.refusal = f"413: a file of {size:,} bytes is too large for the server"
            _logger.warning(
                "MLflow at %s refuses %s (%s, or for a proxy before it). It waits in %s; everything else is sent.",
                redact(self._tracking_uri),
                path,
                self.refusal,
                self._spool.folder,
            )

    def _reject(self, entry: Entry, reason: str) -> None:
        self._spool.reject(entry, reason)
        _logger.error(
            "MLflow refused a record of run %s for good (%s): it is set aside in %s.",
            self._spool.run.run_id,
            reason,
            self._spool.folder / "rejected",
        )

    def _is_deleted(self, run_id: str) -> bool:
        return self._get_run(run_id).info.lifecycle_stage == LifecycleStage.DELETED


class Sender(threading.Thread):
    """The one thread that sends a run's spool. It logs once when sending fails and once when sending works again.

    Args:
        spool: the spool to send.
        tracking_uri: the store, with credentials.
        failed_before: `start_run` has failed to create the run, and has logged so.
    """

    def __init__(self, spool: Spool, tracking_uri: str, *, failed_before: bool = False) -> None:
        super().__init__(name="mlflow-dynamics-sender", daemon=True)
        self._spool = spool
        self._delivery = Delivery(spool, tracking_uri)
        self._where = redact(tracking_uri)
        self._work = threading.Event()
        self._closing = threading.Event()
        self._deadline = math.inf
        self._random = random.Random()  # the module's own numbers are the training's
        self._said_at_start = failed_before
        self.failing: Exception | None = (
            TrackingError("the run is not created yet") if failed_before else None
        )

    @property
    def created(self) -> Run | None:
        """The run, once this thread has created it."""
        return self._delivery.created

    @property
    def seen(self) -> Run | None:
        """The run as it was when last something was sent."""
        return self._delivery.seen

    def created_within(self, timeout_s: float) -> Run | None:
        """Wait for this thread to create the run; return the run, or None if it is not created in time.

        Does not wait while sending fails, or if this thread has ended.
        """
        deadline = time.monotonic() + timeout_s
        while (
            self.created is None and self.failing is None and self.is_alive() and time.monotonic() < deadline
        ):
            time.sleep(CREATED_POLL_S)
        return self.created

    @property
    def stop_requested(self) -> bool:
        """Whether the run had been asked from outside to stop when something was last sent."""
        return self._delivery.stop_requested

    @property
    def reason(self) -> str:
        """Why records are left unsent."""
        if self.failing is not None:
            return reason_of(self.failing)
        return self._delivery.refusal or "there was no time"

    def wake(self) -> None:
        """Send new records now."""
        self._work.set()

    def finish(self, timeout_s: float) -> None:
        """Send what is left, for at most `timeout_s` seconds; then give up after the pass that is under way."""
        self._deadline = time.monotonic() + timeout_s
        self._closing.set()
        self._work.set()
        if self.ident is None:  # the thread could not be started
            self.run()
        else:
            self.join(timeout_s)

    def run(self) -> None:
        """Repeat passes over the queue: at once after `wake`, and after growing pauses while passes fail."""
        pause = FIRST_PAUSE_S
        while time.monotonic() < self._deadline:
            self._work.clear()
            closing = self._closing.is_set()
            # A pass over an empty queue does not reach the store, so its success must not be reported.
            waiting = bool(self._spool.entries())
            error = self._delivery.run_once()
            if waiting or error is not None:
                self._report(error)
            if closing and (error is None or isinstance(error, RefusedAccess)):
                break
            if isinstance(error, UnusableStore):  # a second try would not help
                self._closing.wait()
                break
            if error is None:
                pause = FIRST_PAUSE_S
                self._work.wait()
            else:
                self._sleep(pause * self._random.uniform(0.8, 1.2))
                refused = isinstance(error, RefusedAccess)
                longest = LONGEST_PAUSE_IF_REFUSED_S if refused else LONGEST_PAUSE_S
                pause = min(2 * pause, longest)
        self._spool.close()

    def _sleep(self, seconds: float) -> None:
        # New records do not cut a pause short. Closing does, because it is the last chance to send.
        if self._closing.is_set():
            time.sleep(min(seconds, 1.0))
        else:
            self._closing.wait(seconds)

    def _report(self, error: Exception | None) -> None:
        said = self._said_at_start or isinstance(self.failing, RefusedAccess)
        if isinstance(error, RefusedAccess) and not said:
            _logger.error(
                "MLflow at %s takes nothing of this training: %s. Training goes on; records wait in %s.",
                self._where,
                reason_of(error),
                self._spool.folder,
            )
        elif error is not None and self.failing is None:
            _logger.warning(
                "Sending to MLflow at %s fails (%s). Training goes on; records wait in %s.",
                self._where,
                reason_of(error),
                self._spool.folder,
            )
        elif error is None and self.failing is not None:
            _logger.warning(
                "MLflow at %s takes records again; everything recorded so far is sent.", self._where
            )
        self.failing = error
        self._said_at_start = False


def _latest_steps(run: Run) -> dict[str, int]:
    """Return metric key -> the last step at which the run has the metric."""
    return {metric.key: metric.step for metric in latest_metrics(run)}


def _dataset_input(context: str, **dataset: str) -> DatasetInput:
    return DatasetInput(Dataset(**dataset), [InputTag(MLFLOW_DATASET_CONTEXT, context)])
