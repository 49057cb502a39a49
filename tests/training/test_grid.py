"""The paper's grid: its cells, and a second start that trains only the missing ones."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from mlflow_dynamics.errors import ConfigError, DynamicsError
from mlflow_dynamics.training.grid import paper_cells, train_grid
from mlflow_dynamics.training.parameters import GridConfig, TrainingConfig


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The working folder, which holds the store."""
    return tmp_path


def cell(seed: int, **changes: object) -> TrainingConfig:
    return TrainingConfig(epochs=1, limit_train=64, limit_test=32, seed=seed, **changes)


def children(parent: str) -> list[Run]:
    return mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.`mlflow.parentRunId` = '{parent}'",
        output_format="list",
    )


def test_the_grid_is_nine_combinations_for_each_seed() -> None:
    cells = paper_cells(GridConfig(seeds="0,1", easy_dataset="parquet:easy"))
    assert len(cells) == 18
    assert len({c.digest() for c in cells}) == 18
    assert {c.dataset for c in cells} == {"parquet:easy", "cifar100"}
    assert all(c.pretrained == c.model.startswith("vit") for c in cells)


def test_a_local_file_replaces_the_vits_download(tmp_path: Path) -> None:
    weights = tmp_path / "vit.safetensors"
    weights.touch()
    vits = [c for c in paper_cells(GridConfig(vit_checkpoint=weights)) if c.model.startswith("vit")]
    assert len(vits) == 2
    assert all(c.checkpoint == weights and not c.pretrained for c in vits)


def test_seeds_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"seeds='0;1' must be whole numbers"):
        paper_cells(GridConfig(seeds="0;1"))


def test_a_second_start_trains_only_what_is_missing(folder: Path) -> None:
    first = train_grid([cell(0)])
    (done,) = children(first)
    second = train_grid([cell(0), cell(1)])
    moved, trained = sorted(children(second), key=lambda run: run.info.start_time)
    assert moved.info.run_id == done.info.run_id
    assert moved.info.end_time == done.info.end_time
    assert trained.data.params["seed"] == "1"
    assert children(first) == []


def test_one_bad_cell_does_not_keep_the_others_from_being_trained(folder: Path) -> None:
    with pytest.raises(
        DynamicsError,
        match=r"1 of the grid's trainings failed: resnet20 on nowhere, .*: dataset=parquet:nowhere",
    ):
        train_grid([cell(0, dataset="parquet:nowhere"), cell(1)])
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    status = {run.info.run_name: run.info.status for run in runs}
    assert status == {
        "resnet20 on digits, sgd onecycle, seed 1, epochs 1, limit_train 64, limit_test 32": "FINISHED",
        "grid of 2 trainings": "FAILED",
    }
