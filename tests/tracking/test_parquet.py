"""Parquet: other tools read the files, and a bad file is refused in one sentence."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tracking_records import activations, layers, measures

from mlflow_dynamics.errors import DataError
from mlflow_dynamics.records import EpochActivations
from mlflow_dynamics.tracking import names, parquet


def write(path: Path, data: bytes) -> Path:
    parquet.write_file(path, data)
    return path


@given(
    values=hnp.arrays(
        np.float32, st.tuples(st.integers(1, 4), st.integers(1, 30)), elements=st.floats(width=32)
    ),
    first=st.integers(0, 2**30),
)
def test_any_activations_come_back_bit_for_bit(values: np.ndarray, first: int) -> None:
    count, steps = values.shape
    written = EpochActivations(
        epoch=7,
        step=np.arange(first, first + steps, dtype=np.int32),
        mean=values,
        std=values[::-1],
        layers=layers(count),
    )
    read = parquet.read_activations(pa.BufferReader(parquet.activations_to_parquet(written)), layers(count))
    assert read.epoch == 7
    assert read.layers == written.layers
    np.testing.assert_array_equal(read.step, written.step)
    assert read.mean.tobytes() == written.mean.tobytes()
    assert read.std.tobytes() == np.ascontiguousarray(written.std).tobytes()


def test_the_schema_is_the_documented_one(tmp_path: Path) -> None:
    path = write(tmp_path / "part-0.parquet", parquet.activations_to_parquet(activations(0)))
    schema = pq.read_schema(path)
    assert [(field.name, str(field.type)) for field in schema] == [
        ("step", "int32"),
        ("layer", "int16"),
        ("mean", "float"),
        ("std", "float"),
    ]


def test_the_epochs_are_one_hive_partitioned_data_set(tmp_path: Path) -> None:
    for epoch in (0, 1, 10):
        write(tmp_path / names.activations_path(epoch), parquet.activations_to_parquet(activations(epoch)))
    data_set = ds.dataset(tmp_path / names.ACTIVATIONS, partitioning="hive")
    table = data_set.to_table(filter=ds.field("epoch") == 10)
    assert table.num_rows == 100
    assert data_set.count_rows() == 300
    assert set(table["epoch"].to_pylist()) == {10}


def test_layers_and_layer_measures_come_back(tmp_path: Path) -> None:
    assert parquet.read_layers(write(tmp_path / "l", parquet.layers_to_parquet(layers()))) == layers()
    empty = parquet.read_layers(write(tmp_path / "e", parquet.layers_to_parquet([])))
    assert empty == ()
    data = parquet.layer_measures_to_parquet(4, layers(), measures(4))
    table = pq.read_table(write(tmp_path / "m", data))
    assert table.column_names == ["layer", "exponent", "phase_coherence"]
    assert table["layer"].to_pylist() == [0, 1, 2, 3, 4]
    assert table["exponent"].to_pylist() == [0.5, 0.75, 1.0, 1.25, 1.5]


def test_a_file_cut_anywhere_is_one_clear_sentence(tmp_path: Path) -> None:
    data = parquet.activations_to_parquet(activations(0))
    for size in (0, 1, 4, len(data) // 2, len(data) - 1):
        path = write(tmp_path / "cut.parquet", data[:size])
        with pytest.raises(DataError, match=r"cut\.parquet is truncated or not a Parquet file"):
            parquet.read_activations(path, layers())


def test_a_damaged_byte_is_noticed_or_without_effect(tmp_path: Path) -> None:
    original = activations(0)
    data = parquet.activations_to_parquet(original)
    noticed = 0
    for position in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[position] ^= 0xFF
        path = write(tmp_path / "damaged.parquet", bytes(damaged))
        try:
            read = parquet.read_activations(path, layers())
        except DataError:
            noticed += 1
        else:
            assert read.mean.tobytes() == original.mean.tobytes()
            assert read.std.tobytes() == original.std.tobytes()
    assert noticed > 50


def test_a_missing_a_foreign_and_a_newer_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        parquet.read_layers(tmp_path / "absent.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "foreign.parquet")
    with pytest.raises(DataError, match=r"not written by mlflow_dynamics: it has columns \['x'\]"):
        parquet.read_layers(tmp_path / "foreign.parquet")
    newer = pq.read_table(pa.BufferReader(parquet.layers_to_parquet(layers())))
    pq.write_table(
        newer.replace_schema_metadata({"mlflow_dynamics.schema_version": "2"}), tmp_path / "newer.parquet"
    )
    with pytest.raises(DataError, match=r"schema version 2, newer than the 1.*upgrade"):
        parquet.read_layers(tmp_path / "newer.parquet")


def test_rows_of_another_network_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", parquet.activations_to_parquet(activations(0)))
    for wrong in (layers(4), layers(6), layers(0), layers()[::-1]):
        with pytest.raises(DataError, match="damaged or belongs to another network"):
            parquet.read_activations(path, wrong)
    backwards = dataclasses.replace(activations(0), step=np.arange(20, dtype=np.int32)[::-1])
    path = write(tmp_path / "b.parquet", parquet.activations_to_parquet(backwards))
    with pytest.raises(DataError, match="damaged or belongs to another network"):
        parquet.read_activations(path, layers())


def test_an_epoch_of_a_small_resnet_stays_small() -> None:
    assert len(parquet.activations_to_parquet(activations(0, steps=79, count=21))) < 16_000
