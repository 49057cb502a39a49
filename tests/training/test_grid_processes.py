"""Grids that are trained by several processes, or by several grids: each cell once, as if alone, whoever dies."""

from __future__ import annotations

import multiprocessing.spawn
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from waiting import wait_until

from mlflow_dynamics.tracking.claims import claims
from mlflow_dynamics.training.checkpoints import has_checkpoint
from mlflow_dynamics.training.engines import TAG_CELL, in_processes
from mlflow_dynamics.training.grid import train_grid
from mlflow_dynamics.training.parameters import TrainingConfig
from mlflow_dynamics.training.run import train_in_run

SMALL = {"limit_train": 64, "limit_test": 32}
LONG = 200
"""Epochs that do not end within a test."""

COMPARED = (
    "train/loss",
    "train/accuracy",
    "validation/loss",
    "validation/accuracy",
    "dynamics/global_integration",
)


def cells_of(text: str, folder: Path) -> Path:
    file = folder / "grid.yaml"
    file.write_text(f"limit_train: 64\nlimit_test: 32\n{text}")
    return file


@contextmanager
def started(file: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The command, in the test's folder and store; killed if the test fails."""
    command = [sys.executable, "-m", "mlflow_dynamics.cli", "grid", str(file), *options]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as grid:
        try:
            yield grid
        finally:
            grid.kill()


def ended(grid: subprocess.Popen[str], seconds: float = 60) -> str:
    return grid.communicate(timeout=seconds)[1]


def runs() -> list[Run]:
    """The runs of cells."""
    return mlflow.search_runs(
        search_all_experiments=True, filter_string=f"tags.`{TAG_CELL}` != ''", output_format="list"
    )


def statuses() -> Counter[str]:
    return Counter(run.info.status for run in runs())


def histories(run_id: str) -> dict[str, list[tuple[int, float]]]:
    client = MlflowClient()
    return {
        key: [(one.step, one.value) for one in client.get_metric_history(run_id, key)]
        for key in client.get_run(run_id).data.metrics
        if key in COMPARED
    }


def epochs_once(run_id: str, epochs: int) -> bool:
    """Whether the run holds each epoch, once."""
    return [step for step, _ in histories(run_id)["train/loss"]] == [*range(epochs)]


def trains(count: int) -> Callable[[], bool]:
    """Whether so many cells have kept an epoch."""
    return lambda: sum(claim.done > 0 for claim in claims("0")) >= count


@pytest.fixture
def warm() -> Iterator[None]:
    """What this process spawns is warm too; multiprocessing has kept the interpreter from before."""
    before = multiprocessing.spawn.get_executable()
    multiprocessing.set_executable(sys.executable)
    yield
    multiprocessing.set_executable(before)


@pytest.mark.usefixtures("warm")
def test_two_at_a_time_train_what_each_trains_alone_bit_for_bit() -> None:
    cells = [
        TrainingConfig(epochs=3, seed=seed, window=32, limit_train=512, limit_test=32) for seed in (0, 1)
    ]
    train_grid(cells, partial(in_processes, jobs=2))
    in_grid = {run.data.params["seed"]: histories(run.info.run_id) for run in runs()}
    assert set(in_grid["0"]) == set(COMPARED)
    assert in_grid["0"] != in_grid["1"]
    for cell in cells:
        assert histories(train_in_run(cell)) == in_grid[str(cell.seed)]
    assert claims("0") == []


@pytest.mark.parametrize(("number", "jobs"), [(signal.SIGINT, 2), (signal.SIGTERM, 2), (signal.SIGTERM, 1)])
def test_an_interrupt_ends_all_cells_as_killed_says_how_to_go_on(
    number: signal.Signals, jobs: int, tmp_path: Path
) -> None:
    file = cells_of(f"epochs: {LONG}\nseed: [0, 1, 2]", tmp_path)
    with started(file, "--jobs", str(jobs)) as grid:
        wait_until(trains(jobs))
        grid.send_signal(number)
        said = ended(grid)
    assert grid.returncode == 130, said
    assert "Traceback" not in said
    assert said.count("Give the same command again") >= 1
    assert statuses() == {"KILLED": jobs}
    assert claims("0") == []
    assert all(has_checkpoint(run.info.run_id) for run in runs())
    parents = {run.data.tags["mlflow.parentRunId"] for run in runs()}
    assert [MlflowClient().get_run(parent).info.status for parent in parents] == ["KILLED"]


def test_the_cell_of_a_killed_process_goes_on_from_its_checkpoint_in_its_run(tmp_path: Path) -> None:
    file = cells_of("epochs: 6\nseed: [0, 1]", tmp_path)
    with started(file, "--jobs", "2") as grid:
        wait_until(trains(2))
        claim = claims("0")[0]
        os.kill(int(claim.process.split()[0]), signal.SIGKILL)
        said = ended(grid)
    assert grid.returncode == 0, said
    assert "its process ended with SIGKILL; it is tried again" in said
    assert statuses() == {"FINISHED": 2}
    assert all(epochs_once(run.info.run_id, 6) for run in runs())
    (killed,) = [run for run in runs() if run.data.tags[TAG_CELL] == claim.what]
    alone = train_in_run(TrainingConfig(epochs=6, seed=int(killed.data.params["seed"]), **SMALL))
    assert histories(alone) == histories(killed.info.run_id)


def test_a_grid_that_is_killed_is_gone_on_from_by_the_same_command(tmp_path: Path) -> None:
    file = cells_of("epochs: 6\nseed: [0, 1]", tmp_path)
    with started(file) as grid:
        wait_until(trains(1))
        os.kill(int(claims("0")[0].process.split()[0]), signal.SIGKILL)
        ended(grid)
    (before,) = runs()
    assert before.info.status == "RUNNING"
    with started(file) as again:
        said = ended(again)
    assert again.returncode == 0, said
    assert statuses() == {"FINISHED": 2}
    assert before.info.run_id in {run.info.run_id for run in runs()}
    assert all(epochs_once(run.info.run_id, 6) for run in runs())


def test_two_grids_at_the_same_time_train_each_cell_once_and_both_end_when_all_is_done(
    tmp_path: Path,
) -> None:
    file = cells_of("epochs: 2\nseed: [0, 1]", tmp_path)
    with started(file) as one, started(file) as other:
        said = [ended(one), ended(other)]
    assert (one.returncode, other.returncode) == (0, 0), said
    found = runs()
    assert Counter(run.data.params["seed"] for run in found) == {"0": 1, "1": 1}
    assert {run.info.status for run in found} == {"FINISHED"}
    assert len({run.data.tags[TAG_CELL] for run in found}) == 2
