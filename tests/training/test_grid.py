"""A grid in this process: a second start trains only the missing cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from mlflow_dynamics.errors import DynamicsError
from mlflow_dynamics.training import grid
from mlflow_dynamics.training.engines import Cell, Outcome
from mlflow_dynamics.training.grid import train_grid
from mlflow_dynamics.training.parameters import TrainingConfig


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


def test_a_cell_whose_process_dies_each_time_is_given_up_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "POLL_S", 0.0)
    begun: list[int] = []

    def dying(more: Callable[[], Cell | None]) -> Generator[Outcome, None, None]:
        while (taken := more()) is not None:
            begun.append(taken.config.seed)
            yield Outcome(cell=taken, state="lost", reason="its machine is gone")

    with pytest.raises(
        DynamicsError, match=r"2 of the grid's trainings failed: .*seed 0, .*: its machine is gone; .*"
    ):
        train_grid([cell(0), cell(1)], dying)
    assert Counter(begun) == {0: 3, 1: 3}
