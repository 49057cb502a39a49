"""The paper's grid: one child run for each combination and seed, only what is missing trained."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import mlflow
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from mlflow_dynamics.errors import DynamicsError
from mlflow_dynamics.training.config import TrainingConfig
from mlflow_dynamics.training.run import has_checkpoint, managed_run, train_in_run

logger = logging.getLogger(__name__)

TAG_CELL: Final = "dynamics.grid_cell"
"""On each child run: the digest of its parameters, by which a later start finds what is done."""


def train_grid(cells: Sequence[TrainingConfig]) -> str:
    """Train every cell as a child run of one parent; returns the parent's id.

    A cell that an earlier start in this experiment finished is moved under this parent instead of being trained
    again, and one that was interrupted carries on from its checkpoint.

    Raises:
        DynamicsError: one or more cells could not be trained; the others were.
    """
    failures: dict[str, DynamicsError] = {}
    with managed_run(f"grid of {len(cells)} trainings", system_metrics=False) as parent_id:
        mlflow.log_params({"cells": len(cells)})
        for cell in cells:
            earlier = _earlier_runs(cell)
            finished = [run for run in earlier if run.info.status == "FINISHED"]
            if finished:
                logger.info("%s: finished in run %s, not trained again.", cell.title, finished[0].info.run_id)
                mlflow.MlflowClient().set_tag(finished[0].info.run_id, MLFLOW_PARENT_RUN_ID, parent_id)
                continue
            interrupted = next((run.info.run_id for run in earlier if has_checkpoint(run.info.run_id)), None)
            try:
                train_in_run(replace(cell, resume=interrupted), nested=True, tags={TAG_CELL: cell.digest()})
            except DynamicsError as error:
                logger.error("%s: %s", cell.title, error)
                failures[cell.title] = error
        if failures:
            raise _failed(failures)
    return parent_id


def _earlier_runs(cell: TrainingConfig) -> list[Run]:
    experiment = mlflow.active_run().info.experiment_id
    found: list[Run] = mlflow.search_runs(
        [experiment], filter_string=f"tags.`{TAG_CELL}` = '{cell.digest()}'", output_format="list"
    )
    return found


def _failed(failures: Mapping[str, DynamicsError]) -> DynamicsError:
    return DynamicsError(
        f"{len(failures)} of the grid's trainings failed: "
        + "; ".join(f"{name}: {error}" for name, error in failures.items())
    )
