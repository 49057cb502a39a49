"""Reads back what a test's runs hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import mlflow
import numpy as np
import pyarrow.parquet as pq
from mlflow.entities import Run


@dataclass
class Record:
    """One run: its MLflow object, its layers and each epoch's steps and (layers, steps) statistics."""

    run: Run
    layers: list[str]
    steps: dict[int, list[int]]
    mean: dict[int, np.ndarray]
    std: dict[int, np.ndarray]

    def metric(self, key: str) -> dict[int, float]:
        history = mlflow.MlflowClient().get_metric_history(self.run.info.run_id, key)
        return {point.step: point.value for point in history}


def records() -> list[Record]:
    """The runs of the active experiment, oldest first."""
    runs = mlflow.search_runs(output_format="list", order_by=["attributes.start_time ASC"])
    return [_read(run) for run in runs]


def not_logged(*what: str, reason: str) -> str:
    """The line that says so of one thing or several, and what to do."""
    verb, them = ("is", "it") if len(what) == 1 else ("are", "them")
    return (
        f"The {' and the '.join(what)} {verb} not logged: {reason}. Log {them} with mlflow.log_metric, or with "
        "tracker.end_epoch of mlflow_dynamics.track(model)."
    )


def steps_of_epochs() -> list[list[int]]:
    """The number of steps of each epoch of each run."""
    return [[len(steps) for steps in record.steps.values()] for record in records()]


def _read(run: Run) -> Record:
    folder = Path(urlparse(run.info.artifact_uri).path) / "dynamics"
    record = Record(run, [], {}, {}, {})
    if not folder.exists():
        return record
    record.layers = pq.read_table(folder / "layers.parquet").column("name").to_pylist()
    for part in sorted((folder / "activations").glob("epoch=*/part-0.parquet")):
        epoch = int(part.parent.name.removeprefix("epoch="))
        table = pq.ParquetFile(part).read().to_pandas().sort_values(["layer", "step"])
        record.steps[epoch] = sorted(set(table["step"].tolist()))
        shape = (len(record.layers), len(record.steps[epoch]))
        record.mean[epoch] = table["mean"].to_numpy().reshape(shape)
        record.std[epoch] = table["std"].to_numpy().reshape(shape)
    return record
