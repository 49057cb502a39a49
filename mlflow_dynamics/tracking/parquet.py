"""Writes the record as Parquet and reads it back. A file that cannot be used is refused with one clear sentence.

`activations`: one row per layer and step, sorted by layer and then step, with the columns `step` int32, `layer` int16,
`mean` float32 and `std` float32. The epoch is the partition (`epoch=0/`).
`layers`: `index` int16, `name` string, `type` string, `output_shape` list<int32>, `parameters` int64.
`layer_measures`: `layer` int16, `exponent` float32, `phase_coherence` float32. The epoch is the partition.

The metadata of each file hold the schema version and, in an epoch's file, the epoch.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_dynamics.errors import DataError
from mlflow_dynamics.records import EpochActivations, Layer, Measures
from mlflow_dynamics.text import encodable
from mlflow_dynamics.tracking.names import SCHEMA_VERSION

ACTIVATIONS_SCHEMA: Final = pa.schema(
    [("step", pa.int32()), ("layer", pa.int16()), ("mean", pa.float32()), ("std", pa.float32())]
)
LAYERS_SCHEMA: Final = pa.schema(
    [
        ("index", pa.int16()),
        ("name", pa.string()),
        ("type", pa.string()),
        ("output_shape", pa.list_(pa.int32())),
        ("parameters", pa.int64()),
    ]
)
LAYER_MEASURES_SCHEMA: Final = pa.schema(
    [("layer", pa.int16()), ("exponent", pa.float32()), ("phase_coherence", pa.float32())]
)

_VERSION_KEY = b"mlflow_dynamics.schema_version"
_EPOCH_KEY = b"mlflow_dynamics.epoch"


def activations_to_parquet(activations: EpochActivations) -> bytes:
    """Return one epoch's activations as a Parquet file, layer after layer."""
    layers, steps = activations.mean.shape
    table = pa.table(
        {
            "step": np.tile(np.asarray(activations.step, np.int32), layers),
            "layer": np.repeat(np.asarray([layer.index for layer in activations.layers], np.int16), steps),
            "mean": np.ascontiguousarray(activations.mean, np.float32).ravel(),
            "std": np.ascontiguousarray(activations.std, np.float32).ravel(),
        },
        schema=ACTIVATIONS_SCHEMA,
    )
    return _to_bytes(table, activations.epoch)


def layers_to_parquet(layers: Sequence[Layer]) -> bytes:
    """Return the recorded layers as a Parquet file, in forward order."""
    columns = {name: [getattr(layer, name) for layer in layers] for name in LAYERS_SCHEMA.names}
    # Names are stored unchanged where UTF-8 allows it, so that they match those of `model.named_modules()`.
    columns |= {key: [encodable(name) for name in columns[key]] for key in ("name", "type")}
    return _to_bytes(pa.table(columns, schema=LAYERS_SCHEMA), None)


def layer_measures_to_parquet(epoch: int, layers: Sequence[Layer], measures: Measures) -> bytes:
    """Return one epoch's exponent and phase coherence of each layer as a Parquet file."""
    columns = {
        "layer": np.asarray([layer.index for layer in layers], np.int16),
        "exponent": np.asarray(measures.exponents, np.float32),
        "phase_coherence": np.asarray(measures.phase_coherence, np.float32),
    }
    return _to_bytes(pa.table(columns, schema=LAYER_MEASURES_SCHEMA), epoch)


def read_activations(path: Path | pa.NativeFile, layers: Sequence[Layer]) -> EpochActivations:
    """Read one epoch's activations and check them against the layers that they belong to.

    Raises:
        DataError: the file is missing, truncated, not Parquet, of another schema or of a newer version, or does not
            have one row for each layer and step.
    """
    table, epoch = _read(path, ACTIVATIONS_SCHEMA)
    if epoch is None:
        raise DataError(f"{path} does not say which epoch it holds; it was not written by mlflow_dynamics.")
    count = len(layers)
    steps = table.num_rows // count if count else 0
    shape = (count, steps)
    step = table["step"].to_numpy()
    layer = table["layer"].to_numpy()
    expected = np.repeat(np.asarray([one.index for one in layers], np.int16), steps)
    if (
        table.num_rows != count * steps
        or not np.array_equal(layer, expected)
        or not (step.reshape(shape) == step[:steps]).all()
        or not (np.diff(step[:steps]) > 0).all()
    ):
        raise DataError(
            f"{path} holds {table.num_rows} rows that are not one for each of {count} layers and ascending "
            "step; it is damaged or belongs to another network."
        )
    return EpochActivations(
        epoch=epoch,
        step=step[:steps].copy(),
        mean=table["mean"].to_numpy().reshape(shape),
        std=table["std"].to_numpy().reshape(shape),
        layers=tuple(layers),
    )


def read_layers(path: Path | pa.NativeFile) -> tuple[Layer, ...]:
    """Read the layers of a run; raises DataError as `read_activations` does."""
    table, _ = _read(path, LAYERS_SCHEMA)
    return tuple(
        Layer(**{**row, "output_shape": tuple(row["output_shape"] or ())}) for row in table.to_pylist()
    )


def write_file(path: Path, data: bytes) -> None:
    """Write a file atomically: even after a kill at any moment, a reader sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


def _to_bytes(table: pa.Table, epoch: int | None) -> bytes:
    metadata = {_VERSION_KEY: str(SCHEMA_VERSION)}
    if epoch is not None:
        metadata[_EPOCH_KEY] = str(epoch)
    floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    # Floats are stored as byte streams and steps and layers as runs: half the size that Parquet's defaults give.
    others = [
        field.name
        for field in table.schema
        if not pa.types.is_floating(field.type) and not pa.types.is_list(field.type)
    ]
    sink = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata(metadata),
        sink,
        compression="zstd",
        use_dictionary=others,
        use_byte_stream_split=floats,
        write_page_checksum=True,
    )
    return sink.getvalue()


def check_file(path: Path | pa.NativeFile, schema: pa.Schema, name: str | None = None) -> int | None:
    """Check from the footer alone that a file is ours and complete; return its epoch, None for a file of layers.

    Args:
        path: the file's path, or the open file.
        schema: the columns that the file should hold.
        name: the file's name in messages; None is the path.

    Raises:
        DataError: the file is missing, truncated, not ours, or of a newer schema version.
    """
    with _open(path, schema, name or str(path)) as file:
        return _epoch(file)


def _read(path: Path | pa.NativeFile, schema: pa.Schema) -> tuple[pa.Table, int | None]:
    with _open(path, schema, str(path)) as file:
        try:
            return file.read(), _epoch(file)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{path} is damaged: its rows cannot be read; delete it.") from error


def _open(path: Path | pa.NativeFile, schema: pa.Schema, name: str) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except FileNotFoundError as error:
        raise DataError(f"{name} does not exist.") from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{name} is truncated or not a Parquet file; record it again or delete it."
        ) from error
    version = (file.schema_arrow.metadata or {}).get(_VERSION_KEY, b"")
    if version.isdigit() and int(version) > SCHEMA_VERSION:
        file.close()
        raise DataError(
            f"{name} has schema version {int(version)}, newer than the {SCHEMA_VERSION} that this "
            "mlflow-dynamics reads; upgrade mlflow-dynamics."
        )
    if not version.isdigit() or not file.schema_arrow.equals(schema, check_metadata=False):
        file.close()
        raise DataError(
            f"{name} was not written by mlflow_dynamics: it has columns {file.schema_arrow.names}, "
            f"expected {schema.names} with a schema version."
        )
    return file


def _epoch(file: pq.ParquetFile) -> int | None:
    epoch = (file.schema_arrow.metadata or {}).get(_EPOCH_KEY, b"")
    return int(epoch) if epoch.isdigit() else None
