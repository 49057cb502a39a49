"""The readers that the README names read a run's activations as one table with an integer column `epoch`."""

from __future__ import annotations

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from mlflow_dynamics.records import EpochActivations, Layer
from mlflow_dynamics.tracking import RunWriter, load_activations, names
from mlflow_dynamics.tracking.recorded_epochs import recorded_epochs

EPOCHS, STEPS = 12, 3
LAYER = Layer(index=0, name="a", type="Linear", output_shape=(4,), parameters=20)


@pytest.fixture
def run_id() -> str:
    with mlflow.start_run() as run:
        writer = RunWriter(run.info.run_id).start()
        writer.write_layers([LAYER])
        for epoch in range(EPOCHS):
            values = np.full((1, STEPS), epoch, np.float32)
            steps = np.arange(STEPS, dtype=np.int32)
            activations = EpochActivations(epoch=epoch, step=steps, mean=values, std=values, layers=(LAYER,))
            writer.write_epoch(epoch, activations, {}, None, 0)
        assert writer.close(60) == 0
    return str(run.info.run_id)


@pytest.fixture
def folder(run_id: str) -> str:
    return mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=names.ACTIVATIONS)


def test_epochs_come_in_their_order(run_id: str) -> None:
    assert [one.activations.epoch for one in recorded_epochs(run_id)] == list(range(EPOCHS))
    assert load_activations(run_id)["epoch"].to_pylist() == sorted([*range(EPOCHS)] * STEPS)


def test_pyarrow(folder: str) -> None:
    table = ds.dataset(folder, partitioning="hive").to_table(filter=ds.field("epoch") >= 8)
    assert pa.types.is_integer(table.schema.field("epoch").type)
    assert table.num_rows == 4 * STEPS


def test_pandas(folder: str) -> None:
    frame = pytest.importorskip("pandas").read_parquet(folder)
    assert (frame["epoch"].astype(int) == frame["mean"]).all()


def test_what_is_loaded_has_integers_in_pandas_too(run_id: str) -> None:
    frame = load_activations(run_id).to_pandas()
    assert len(frame[frame["epoch"] >= 8]) == 4 * STEPS


def test_duckdb(folder: str) -> None:
    files = f"read_parquet('{folder}/*/*.parquet', hive_partitioning=true)"
    duckdb = pytest.importorskip("duckdb")
    assert duckdb.sql(f"select count(*) from {files} where epoch >= 8").fetchall() == [(4 * STEPS,)]


def test_polars(folder: str) -> None:
    polars = pytest.importorskip("polars")
    frame = polars.scan_parquet(f"{folder}/**/*.parquet", hive_partitioning=True)
    assert frame.filter(polars.col("epoch") >= 8).collect().height == 4 * STEPS
