"""Reads the history of a recorded run back from the store."""

from __future__ import annotations

from dataclasses import replace

import mlflow

from mlflow_dynamics.config import MeasureConfig
from mlflow_dynamics.pipeline import Pipeline
from mlflow_dynamics.report.history import RunHistory
from mlflow_dynamics.tracking import names
from mlflow_dynamics.tracking.links import links_of
from mlflow_dynamics.tracking.query import find_runs, load_metrics
from mlflow_dynamics.tracking.recorded_epochs import recorded_epochs
from mlflow_dynamics.tracking.settings import PREFIX, settings_in


def history_of(run_id: str, config: MeasureConfig) -> RunHistory:
    """Return the history of a run, read back from the store. `config` says how the run was measured.

    Raises:
        TrackingError: the run is unknown, is deleted, holds no activations or cannot be read.
        DataError: a file of the run is damaged.
    """
    (run,) = find_runs([run_id])
    settings = settings_in(run.data.params)
    definitions = {key.removeprefix(PREFIX): value for key, value in settings.items()}
    links = links_of(run, mlflow.get_tracking_uri())
    history = RunHistory(title=run.info.run_name or run_id, definitions=definitions, links=links)
    pipeline = Pipeline(replace(config, uncertainty=False))
    for record in recorded_epochs(run_id):
        history.look_at(record.activations)
        result = pipeline.update(record)
        history.add(record.epoch, {**record.metrics, **result.as_metrics()}, result.measures)
    epochs = {int(row["epoch"]): row for row in history.metrics}
    rows = load_metrics([run_id]).drop(columns="run_id").dropna(subset=["epoch"])
    for row in rows.to_dict("records"):
        logged = {str(key): float(value) for key, value in row.items() if value == value}
        epochs[int(row["epoch"])] = epochs.get(int(row["epoch"]), {}) | logged
    history.metrics = [{"epoch": epoch, **epochs[epoch]} for epoch in sorted(epochs)]
    history.converged_epoch = names.epoch_in(run.data.tags, names.TAG_CONVERGED_EPOCH)
    history.unsettled_epoch = names.epoch_in(run.data.tags, names.TAG_UNSETTLED_EPOCH)
    history.diverging_epoch = names.epoch_in(run.data.tags, names.TAG_DIVERGING_EPOCH)
    history.order = pipeline.order()
    history.same_order = pipeline.same_order
    history.running = run.info.status == "RUNNING"
    return history
