"""Reads the recorded activations of one run or many, as an Arrow table or as a data set that is scanned lazily."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from mlflow.entities import Run
from mlflow.environment_variables import MLFLOW_S3_ENDPOINT_URL
from mlflow.utils.file_utils import local_file_uri_to_path
from pyarrow import fs

from mlflow_dynamics.errors import DataError, TrackingError, unknown_choice
from mlflow_dynamics.records import Layer
from mlflow_dynamics.text import encodable, printable
from mlflow_dynamics.tracking import names
from mlflow_dynamics.tracking.artifacts import download, list_folder
from mlflow_dynamics.tracking.parquet import ACTIVATIONS_SCHEMA, check_file, read_layers, write_file
from mlflow_dynamics.tracking.query import find_runs
from mlflow_dynamics.tracking.store import reason_of

SCHEMA: Final = pa.schema([("run_id", pa.string()), ("epoch", pa.int32()), *ACTIVATIONS_SCHEMA])
"""The columns of activations that are read back: one row for each run, epoch, layer and training step."""

_DOWNLOADS_AT_ONCE: Final = 8

_logger = logging.getLogger(__name__)


def load_activations(
    runs: str | Sequence[str],
    *,
    epochs: Collection[int] | None = None,
    layers: Sequence[int | str] | None = None,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Load the recorded activations of one run or several as an Arrow table.

    Only the files of the chosen epochs are read, and in a local or cloud store only the needed columns and row groups
    of these files. A store behind an MLflow server hands over whole files (12 kB for an epoch of 21 layers x 79 steps).

    Args:
        runs: a run id, or several.
        epochs: the epochs to load; None means all.
        layers: the layers to load, by index or by name (as in `load_layers`); None means all.
        columns: the columns to load, among run_id, epoch, step (int32), layer (int16), mean and std (float32); None
            means all.

    Returns:
        One row for each run, epoch, layer and step. Runs without activations give no rows. A run that still trains
        gives its epochs so far. A damaged file is named in a warning and left out.

    Raises:
        TrackingError: a run is unknown or deleted, or the store cannot be read.
        ConfigError: a layer or column is unknown.
    """
    chosen = list(SCHEMA.names if columns is None else columns)
    for column in chosen:
        if column not in SCHEMA.names:
            raise unknown_choice("columns", column, SCHEMA.names)
    with tempfile.TemporaryDirectory(prefix="mlflow_dynamics_") as folder:
        found = find_runs(runs)
        condition = _layer_condition(found, layers) if layers is not None else None
        with _reading():
            return _data_set(found, epochs, Path(folder)).to_table(columns=chosen, filter=condition)


def scan_activations(
    runs: str | Sequence[str], *, epochs: Collection[int] | None = None, folder: Path | None = None
) -> ds.Dataset:
    """Open the recorded activations of many runs as one data set, which pyarrow, DuckDB or Polars scan lazily.

    The columns are those of `load_activations`. run_id and epoch are partitions, so that a query on them reads only the
    files it needs.

    Args:
        runs: a run id, or several.
        epochs: the epochs to scan; None means all.
        folder: the folder to which files are downloaded from a store behind an MLflow server; it must exist as long as
            the data set is in use. Local and cloud stores are read in place and do not need it.

    Raises:
        TrackingError: a run is unknown or deleted, the store cannot be read, or the store needs `folder`.
    """
    with _reading():
        return _data_set(find_runs(runs), epochs, folder)


def load_layers(run_id: str) -> tuple[Layer, ...]:
    """Load the layers of a run, to whose indices the column `layer` of the activations refers.

    Raises:
        TrackingError: the run is unknown or deleted, or holds no layers.
        DataError: the file is damaged.
    """
    return _layers(find_runs(run_id)[0])


@contextmanager
def _reading() -> Iterator[None]:
    """Raise TrackingError if the store cannot be reached or read inside the block."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise TrackingError(f"The activations cannot be read: {reason_of(error)}") from error


def _layers(run: Run) -> tuple[Layer, ...]:
    return read_layers(pa.BufferReader(download(run, names.LAYERS)))


def _layer_condition(runs: Sequence[Run], layers: Sequence[int | str]) -> pc.Expression:
    condition = pc.scalar(False)
    for run in runs:
        indices = [layer for layer in layers if isinstance(layer, int)]
        if len(indices) < len(layers):
            by_name = {layer.name: layer.index for layer in _layers(run)}
            for name in layers:
                if isinstance(name, str):
                    if encodable(name) not in by_name:
                        raise unknown_choice("layers", name, map(printable, by_name))
                    indices.append(by_name[encodable(name)])
        condition |= (ds.field("run_id") == run.info.run_id) & ds.field("layer").isin(indices)
    return condition


def _data_set(runs: Sequence[Run], epochs: Collection[int] | None, folder: Path | None) -> ds.Dataset:
    parquet = ds.ParquetFileFormat()
    fragments = []
    for run in runs:
        run_id = run.info.run_id
        for epoch, file_system, path in _files(run, epochs, folder):
            try:
                with file_system.open_input_file(path) as file:
                    check_file(file, ACTIVATIONS_SCHEMA, path)
            except DataError as error:
                _logger.warning("Epoch %d of run %s is left out: %s", epoch, run_id, error)
                continue
            where = (ds.field("run_id") == run_id) & (ds.field("epoch") == pa.scalar(epoch, pa.int32()))
            fragments.append(parquet.make_fragment(path, file_system, where))
    return ds.FileSystemDataset(fragments, SCHEMA, parquet)


def _files(
    run: Run, epochs: Collection[int] | None, folder: Path | None
) -> Iterator[tuple[int, fs.FileSystem, str]]:
    """Yield (epoch, file system, path) for each wanted epoch of a run, in order."""
    run_id = run.info.run_id
    partitions = [one.path for one in list_folder(run, names.ACTIVATIONS) if one.is_dir]
    paths = {names.epoch_of(f"{one}/part-0.parquet"): f"{one}/part-0.parquet" for one in partitions}
    wanted = {epoch: path for epoch, path in sorted(paths.items()) if epochs is None or epoch in epochs}
    file_system, root = _file_system(run.info.artifact_uri)
    if file_system is not None:
        yield from ((epoch, file_system, f"{root}/{path}") for epoch, path in wanted.items())
        return
    if folder is None:
        raise TrackingError(
            f"The artifacts of run {run_id!r} lie behind an MLflow server: give scan_activations a folder for them."
        )

    def fetch(path: str) -> str:
        target = folder / f"run_id={run_id}" / path
        write_file(target, download(run, path))
        return str(target)

    with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool:
        local = list(pool.map(fetch, wanted.values()))
    yield from ((epoch, fs.LocalFileSystem(), path) for epoch, path in zip(wanted, local, strict=True))


def _file_system(artifact_uri: str) -> tuple[fs.FileSystem | None, str]:
    """Return the file system and path at which files can be read in place; (None, "") if only MLflow can read them."""
    scheme = urlsplit(artifact_uri).scheme
    if scheme in {"", "file"}:
        return fs.LocalFileSystem(), local_file_uri_to_path(artifact_uri)
    endpoint = urlsplit(MLFLOW_S3_ENDPOINT_URL.get() or "")
    if scheme == "s3" and endpoint.netloc:
        # pyarrow does not know MLflow's variable for the address of a store that is not Amazon's.
        bucket = urlsplit(artifact_uri)
        store = fs.S3FileSystem(endpoint_override=endpoint.netloc, scheme=endpoint.scheme)
        return store, bucket.netloc + bucket.path
    if scheme in {"s3", "gs", "gcs", "abfs", "abfss"}:
        return fs.FileSystem.from_uri(artifact_uri)
    return None, ""
