"""Trains the paper's grid: one child run for each combination and seed. Finished trainings are not repeated."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Final

import mlflow
from mlflow.entities import Run, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from mlflow_dynamics.errors import ConfigError, DynamicsError, TrackingError
from mlflow_dynamics.redaction import redact
from mlflow_dynamics.tracking.query import tagged_runs
from mlflow_dynamics.tracking.runs import named
from mlflow_dynamics.tracking.store import connect, failing_as
from mlflow_dynamics.training.checkpoints import has_checkpoint
from mlflow_dynamics.training.models import PAPER_GRID, Combination
from mlflow_dynamics.training.parameters import GridConfig, TrainingConfig
from mlflow_dynamics.training.run import interruptible, managed_run, train_in_run

logger = logging.getLogger(__name__)

TAG_CELL: Final = "dynamics.grid_cell"
"""Tag of each child run: the digest of its parameters, by which a later start finds finished trainings."""


def paper_cells(config: GridConfig) -> list[TrainingConfig]:
    """Return the trainings of the grid: the nine of `models.PAPER_GRID` for each seed.

    Convolutional networks are trained from scratch with the usual recipe for CIFAR: SGD with Nesterov momentum,
    one-cycle schedule, weight decay 5e-4, and half the learning rate for VGG-16 and MobileNetV2. The ViT is fine-tuned
    from its pretrained weights with AdamW, cosine schedule and learning rate 1e-4.

    Raises:
        ConfigError: a parameter is not usable.
    """
    try:
        seeds = [int(seed) for seed in config.seeds.split(",")]
    except ValueError:
        raise ConfigError(
            f"seeds={config.seeds!r} must be whole numbers with commas between, such as 0,1,2."
        ) from None
    shared = {f.name: getattr(config, f.name) for f in fields(config) if f.name in _SHARED}
    datasets = {"cifar10": config.easy_dataset, "cifar100": config.hard_dataset}
    return [
        TrainingConfig(
            model=cell.model, dataset=datasets[cell.dataset], seed=seed, **shared, **_recipe(cell, config)
        )
        for seed in seeds
        for cell in PAPER_GRID
    ]


def _recipe(cell: Combination, config: GridConfig) -> dict[str, Any]:
    if cell.pretrained:
        return {
            "optimizer": "adamw",
            "schedule": "cosine",
            "learning_rate": 1e-4,
            "weight_decay": 0.05,
            "pretrained": config.vit_checkpoint is None,
            "checkpoint": config.vit_checkpoint,
        }
    return {"learning_rate": 0.05 if cell.model in ("vgg16", "mobilenet_v2") else 0.1}


_SHARED: Final = {f.name for f in fields(GridConfig)} & {f.name for f in fields(TrainingConfig)}


def train_grid(cells: Sequence[TrainingConfig]) -> str:
    """Train every cell as a child run of one parent; return the parent's id.

    If an earlier start in this experiment has finished a cell, its run is moved under this parent, and the cell is not
    trained again. An interrupted cell goes on in its own run, from its checkpoint.

    Raises:
        TrackingError: the tracking server does not answer, or refuses access, when the grid begins.
        DynamicsError: one or more cells could not be trained; all others were.
    """
    failures: dict[str, DynamicsError] = {}
    with (
        interruptible() as prepared,
        managed_run(f"grid of {len(cells)} trainings", prepared=prepared, system_metrics=False) as (
            parent_id,
            writer,
        ),
    ):
        parent = mlflow.active_run()
        if parent is None:
            raise TrackingError(
                f"The grid asks MLflow at {redact(mlflow.get_tracking_uri())} what is already trained, and gets "
                "no answer, for the reason that is logged above; see to that, then give the same command again."
            )
        writer.log_params({"cells": len(cells)})
        earlier = [tagged_runs(parent.info.experiment_id, TAG_CELL, cell.digest()) for cell in cells]
        for cell, runs in zip(cells, earlier, strict=True):
            finished = [run for run in runs if run.info.status == "FINISHED"]
            if finished:
                logger.info("%s: not trained again, finished in run %s", cell.title, named(finished[0]))
                _move(finished[0], parent_id)
                continue
            interrupted = next((run.info.run_id for run in runs if has_checkpoint(run.info.run_id)), None)
            try:
                tags = {TAG_CELL: cell.digest(), MLFLOW_PARENT_RUN_ID: parent_id}
                train_in_run(replace(cell, resume=interrupted), tags=tags)
            except DynamicsError as error:
                logger.error("%s: %s", cell.title, error)
                failures[cell.title] = error
        if failures:
            raise _failed(failures)
    return parent_id


def _move(run: Run, parent_id: str) -> None:
    run_id = run.info.run_id
    with failing_as(f"Run {run_id} cannot be moved under this grid's"):
        connect(mlflow.get_tracking_uri()).set_tag(run_id, RunTag(MLFLOW_PARENT_RUN_ID, parent_id))


def _failed(failures: Mapping[str, DynamicsError]) -> DynamicsError:
    return DynamicsError(
        f"{len(failures)} of the grid's trainings failed: "
        + "; ".join(f"{name}: {error}" for name, error in failures.items())
    )
