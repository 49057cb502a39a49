"""RunWriter: what a session calls to record one run; returns as soon as it is on local disk."""

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
from mlflow_dynamics.tracking.mlflow_private import dataset_fields
from mlflow_dynamics.tracking.queue_entry import END_STATUSES, Batch, InputDataset
from mlflow_dynamics.tracking.run_record import RunRecord
from mlflow_dynamics.tracking.sender import Sender
from mlflow_dynamics.tracking.spool import open_spool, spool_root
from mlflow_dynamics.tracking.store import stored_uri
from mlflow_dynamics.tracking.sync import sync_in_background

_logger = logging.getLogger(__name__)


class RunWriter:
    """Records one run: first into its spool folder, from there in the background to MLflow.

    No method waits for the tracking store or raises for its sake: trouble is logged once when it begins and
    once when it ends. Values that are not finite are passed on as they are (SQL stores keep NaN, and infinity
    as the largest double): a loss that became NaN is worth seeing.

    Args:
        run: an MLflow run's id, or the local name that `start_run` gives a run whose server did not answer; or a record
            of a new one, which is created in the background.
        tracking_uri: where that run lives; default: MLflow's own.
        spool_dir: the folder of all runs' folders; default: MLFLOW_DYNAMICS_SPOOL, else `.mlflow_dynamics`.
        owned: whether the run of this id is ours to end, also by `mlflow-dynamics sync --end-stale` once we are dead.

    Raises:
        ConfigError: `run` is a text that is no run's id.
        DataError: `run` is a local name and its folder is not there or damaged.
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
        """Begin to send, in a thread; what earlier runs have left is sent beside it. Returns the writer itself."""
        started(self._sender)  # where no thread starts, the sender sends when it is to finish
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
        """Likewise, waited for."""
        return self._sender.created_within(timeout_s)

    @property
    def title(self) -> str:
        """The run's name where it is known here, else its id."""
        if self.created is not None:
            return str(self.created.info.run_name)
        active = mlflow.active_run()
        if active is not None and active.info.run_id == self.run_id:
            return str(active.info.run_name)
        return self._spool.run.run_name or self._spool.folder.name

    @property
    def stop_requested(self) -> bool:
        """Whether, when last something was sent, the run had been asked from outside to stop."""
        return self._sender.stop_requested

    def write_layers(self, layers: Sequence[Layer]) -> None:
        """Record the layers, to which the rows of the other files refer: `dynamics/layers.parquet`.

        With them the run is marked as one that holds a training.
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
        """Record an epoch as one unit: after a kill at any moment either all of it is there or none.

        Args:
            epoch: from 0; the step of every metric.
            activations: become `dynamics/activations/epoch=.../part-0.parquet`.
            metrics: metric key -> value, logged as they are.
            measures: those of each layer become `dynamics/layer_measures.parquet/epoch=.../part-0.parquet`; for the
                metrics see `names.measure_metrics`.
            timestamp_ms: milliseconds since 1970, when the epoch ended.
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
        """Record parameters; values become text, cut at MLflow's limit of 6,000 characters."""
        names.check_keys("parameter", params)
        self._put(
            Batch(params={key: encodable(str(value))[:MAX_PARAM_VAL_LENGTH] for key, value in params.items()})
        )

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags; values become text, cut at MLflow's limit of 8,000 characters."""
        names.check_keys("tag", tags)
        self._put(
            Batch(tags={key: encodable(str(value))[:MAX_TAG_VAL_LENGTH] for key, value in tags.items()})
        )

    def log_dataset(self, dataset: Dataset, *, context: str) -> None:
        """Record a data set as an input of the run; `context` says what for, such as "training"."""
        fields = {key: value and encodable(value) for key, value in dataset_fields(dataset).items()}
        self._put(Batch(datasets=(InputDataset(context=context, **fields),)))

    def log_artifact(self, local_path: Path, artifact_dir: str = names.ARTIFACT_ROOT) -> None:
        """Record a file's present content under `artifact_dir`; it replaces an older one that still waits.

        Raises:
            ConfigError: there is no such file, or the artifact path leaves the run's folder.
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
        """Record artifacts, artifact path -> content; each replaces an older one of its path that still waits."""
        self._put(files={names.check_artifact_path(path): data for path, data in files.items()})

    def end_run(self, status: str = "FINISHED", end_time_ms: int | None = None) -> None:
        """Record the end of a run that we opened: the store learns of it after everything before it."""
        if status not in END_STATUSES:
            raise unknown_choice("status", status, END_STATUSES)
        self._put(Batch(status=status, end_time=end_time_ms or int(time.time() * 1000)))

    def all_sent(self, timeout_s: float) -> bool:
        """Whether MLflow has everything recorded so far; waits for it, but not while sending fails."""
        deadline = time.monotonic() + timeout_s
        while self._spool.entries():
            if self._sender.failing is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return self.run_id is not None

    def close(self, timeout_s: float = 30.0) -> int:
        """Send what is left for at most `timeout_s` seconds; returns how many records could not be sent.

        These stay in the spool folder and a warning names the command that sends them. A folder with nothing
        left is deleted.
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
