"""RunWriter records one run. Its methods return as soon as the record is on local disk."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlflow
from mlflow.data.dataset import Dataset
from mlflow.entities import Run
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH

from mlflow_dynamics.errors import ConfigError, unknown_choice
from mlflow_dynamics.records import EpochActivations, Layer, Measures
from mlflow_dynamics.text import encodable
from mlflow_dynamics.threads import started
from mlflow_dynamics.tracking import names, parquet
from mlflow_dynamics.tracking.links import links_of
from mlflow_dynamics.tracking.mlflow_private import dataset_fields
from mlflow_dynamics.tracking.queue_entry import END_STATUSES, Batch, InputDataset
from mlflow_dynamics.tracking.run_record import RunRecord
from mlflow_dynamics.tracking.sender import Sender
from mlflow_dynamics.tracking.spool import open_spool, spool_root
from mlflow_dynamics.tracking.store import stored_uri
from mlflow_dynamics.tracking.sync import sync_in_background

_logger = logging.getLogger(__name__)


class RunWriter:
    """Records one run, first into its spool folder, and from there in the background into MLflow.

    If the tracking store fails, no method raises, and none but `created_within`, `all_sent` and `close` waits for it. A
    failure is logged once when it begins and once when it ends. NaN and infinity are passed on unchanged (SQL stores
    keep NaN, and store infinity as the largest double), because a loss that became NaN is worth seeing.

    Args:
        run: an MLflow run's id; or the local name that `start_run` gives to a run whose server did not answer; or the
            record of a new run, which is created in the background.
        tracking_uri: the store that holds the run; None is MLflow's own.
        spool_dir: the folder of all runs' folders; None is MLFLOW_DYNAMICS_SPOOL or, if that is not set,
            `.mlflow_dynamics`.
        owned: the run of this id is ours to end. `mlflow-dynamics sync --end-stale` may end it once this process is
            dead.

    Raises:
        ConfigError: `run` is a text that is not the id of a run.
        DataError: `run` is a local name and its folder is missing or damaged.
    """

    def __init__(
        self,
        run: str | RunRecord,
        *,
        tracking_uri: str | None = None,
        spool_dir: Path | None = None,
        owned: bool = False,
    ) -> None:
        if not isinstance(run, RunRecord):
            names.check_run_id(run)
        self._root = spool_root(spool_dir)
        self._tracking_uri = tracking_uri = tracking_uri or mlflow.get_tracking_uri()
        offline = isinstance(run, str) and run.startswith(names.LOCAL_PREFIX)
        if isinstance(run, RunRecord):
            self._spool = open_spool(self._root, run.name, run)
        elif offline:
            self._spool = open_spool(self._root, run, None)
        else:
            record = RunRecord(tracking_uri=stored_uri(tracking_uri), run_id=run, owned=owned)
            self._spool = open_spool(self._root, run, record)
        self._layers: Sequence[Layer] = ()
        self._sender = Sender(self._spool, tracking_uri, failed_before=offline)

    def start(self) -> RunWriter:
        """Begin to send, in a thread, and to send what earlier runs have left. Returns the writer itself."""
        started(self._sender)  # if no thread can be started, `finish` sends
        sync_in_background(self._root, own=self._spool.folder, tracking_uri=self._tracking_uri)
        return self

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id; None as long as the run waits to be created."""
        return self._spool.run.run_id

    @property
    def created(self) -> Run | None:
        """The run, once it has been created for this writer."""
        return self._sender.created

    def created_within(self, timeout_s: float) -> Run | None:
        """Wait up to `timeout_s` seconds for the run to be created for this writer; None if it is not."""
        return self._sender.created_within(timeout_s)

    @property
    def title(self) -> str:
        """The run's name as it was when something was last sent, if that is known here; otherwise its id."""
        seen = self._sender.seen
        if seen is not None:
            return str(seen.info.run_name or seen.info.run_id)
        active = mlflow.active_run()
        if active is not None and active.info.run_id == self.run_id:
            return str(active.info.run_name)
        return self._spool.run.run_name or self._spool.folder.name

    @property
    def links(self) -> dict[str, str]:
        """What is linked -> address in MLflow's UI; empty without a server, and until something is sent."""
        return links_of(self._sender.seen, self._tracking_uri)

    @property
    def stop_requested(self) -> bool:
        """Whether the run had been asked from outside to stop when something was last sent."""
        return self._sender.stop_requested

    def write_layers(self, layers: Sequence[Layer]) -> None:
        """Record the layers, to which the rows of the other files refer, as `dynamics/layers.parquet`.

        This also marks the run as one that holds a training.
        """
        self._layers = tuple(layers)
        self.set_tags({names.TAG_SCHEMA_VERSION: str(names.SCHEMA_VERSION)})
        self._put(files={names.LAYERS: parquet.layers_to_parquet(layers)})

    def write_epoch(
        self,
        epoch: int,
        activations: EpochActivations | None,
        metrics: Mapping[str, float],
        measures: Measures | None,
        timestamp_ms: int,
    ) -> None:
        """Record an epoch as one unit: after a kill at any moment, either all of it or nothing is recorded.

        Args:
            epoch: the epoch's number, from 0, which is the step of every metric.
            activations: written to `dynamics/activations/epoch=.../part-0.parquet`; None writes no such file.
            metrics: metric key -> value, logged unchanged.
            measures: each layer's are written to `dynamics/layer_measures.parquet/epoch=.../part-0.parquet`; None
                writes no such file. (`names.measure_metrics` turns the others into metrics.)
            timestamp_ms: when the epoch ended, in milliseconds since 1970.
        """
        names.check_keys("metric", metrics)
        files: dict[str, bytes] = {}
        if activations is not None:
            self._layers = activations.layers
            files[names.activations_path(epoch)] = parquet.activations_to_parquet(activations)
        if measures is not None and self._layers:
            files[names.layer_measures_path(epoch)] = parquet.layer_measures_to_parquet(
                epoch, self._layers, measures
            )
        rows = tuple((key, float(value), timestamp_ms, epoch) for key, value in metrics.items())
        self._put(Batch(metrics=rows), files)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record parameters. Values become text, cut at MLflow's limit of 6,000 characters."""
        names.check_keys("parameter", params)
        self._put(
            Batch(params={key: encodable(str(value))[:MAX_PARAM_VAL_LENGTH] for key, value in params.items()})
        )

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags. Values become text, cut at MLflow's limit of 8,000 characters."""
        names.check_keys("tag", tags)
        self._put(
            Batch(tags={key: encodable(str(value))[:MAX_TAG_VAL_LENGTH] for key, value in tags.items()})
        )

    def log_dataset(self, dataset: Dataset, *, context: str) -> None:
        """Record a data set as an input of the run; `context` is its purpose, such as "training"."""
        fields = {key: value and encodable(value) for key, value in dataset_fields(dataset).items()}
        self._put(Batch(datasets=(InputDataset(context=context, **fields),)))

    def log_artifact(self, local_path: Path, artifact_dir: str = names.ARTIFACT_ROOT) -> None:
        """Record a file's present content under `artifact_dir`. It replaces an older version that still waits.

        Raises:
            ConfigError: the file cannot be read, or the artifact path leaves the run's folder.
        """
        path = names.check_artifact_path(
            f"{artifact_dir}/{local_path.name}" if artifact_dir else local_path.name
        )
        try:
            data = local_path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{local_path} cannot be recorded as an artifact: {error.strerror}.") from error
        self._put(files={path: data})

    def write_files(self, files: Mapping[str, bytes]) -> None:
        """Record artifacts, artifact path -> content. Each replaces an older version that still waits."""
        self._put(files={names.check_artifact_path(path): data for path, data in files.items()})

    def end_run(self, status: str = "FINISHED", end_time_ms: int | None = None) -> None:
        """Record the end of a run that is ours to end. The end is sent after everything recorded before it.

        Args:
            status: FINISHED, FAILED or KILLED.
            end_time_ms: when the run ended, in milliseconds since 1970; None is now.

        Raises:
            ConfigError: the status is not one of these.
        """
        if status not in END_STATUSES:
            raise unknown_choice("status", status, END_STATUSES)
        self._put(Batch(status=status, end_time=end_time_ms or int(time.time() * 1000)))

    def all_sent(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` seconds, but not while sending fails; return whether MLflow has all records so far."""
        deadline = time.monotonic() + timeout_s
        while self._spool.entries():
            if self._sender.failing is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return self.run_id is not None

    def close(self, timeout_s: float = 30.0) -> int:
        """Send what is left for at most `timeout_s` seconds; return how many records could not be sent.

        These records stay in the spool folder, and a warning names the command that sends them. An empty folder is
        deleted.
        """
        self._sender.finish(timeout_s)
        left = len(self._spool.entries())
        lost = self._spool.in_memory()
        if left:
            _logger.warning(
                "%d records of run %s are not sent (%s). Send them with: mlflow-dynamics sync %s --tracking-uri %s",
                left,
                self._spool.folder.name,
                self._sender.reason,
                shlex.quote(str(self._root)),
                shlex.quote(self._spool.run.tracking_uri),
            )
        if lost:
            _logger.error(
                "%d of them are lost with this process: %s took no files.", lost, self._spool.folder
            )
        return left

    def _put(self, batch: Batch | None = None, files: Mapping[str, bytes] | None = None) -> None:
        self._spool.put(batch, files or {})
        self._sender.wake()
