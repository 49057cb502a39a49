"""The steps of logged values are epochs, a framework's global steps, or of unknown meaning."""

from __future__ import annotations

import mlflow
import pandas as pd
import pytest

import mlflow_dynamics
from mlflow_dynamics.tracking import names
from mlflow_dynamics.tracking.epoch_numbers import epochs_of

STEPS, EPOCHS = 30, 12
ENDED = {epoch: 1_000 * (epoch + 1) for epoch in range(EPOCHS)}
"""When each epoch ended, in ms."""

Points = list[tuple[str, int, int]]

OURS: Points = [(names.CONVERGENCE_SIGNAL, epoch, time) for epoch, time in ENDED.items()]
CLOCK: Points = [(names.GLOBAL_STEP, epoch, time) for epoch, time in ENDED.items()]


def read(points: Points, key: str = "validation/accuracy") -> list[int | None]:
    """The epochs of a metric; the clock is Lightning's, which counts from 0."""
    rows = [
        ("run", name, step, time, float(STEPS * (step + 1) - 1) if name == names.GLOBAL_STEP else 0.5)
        for name, step, time in points
    ]
    frame = pd.DataFrame(rows, columns=["run_id", "key", "step", "timestamp", "value"])
    found = epochs_of(frame)[frame["key"] == key]
    return [None if one is pd.NA else int(one) for one in found]


def by_global_step(*, late: int) -> Points:
    return [("validation/accuracy", STEPS * (epoch + 1) - 1, time + late) for epoch, time in ENDED.items()]


@pytest.mark.parametrize("late", [-200, 0, 5, 900], ids="logged {} ms after the epoch's end".format)
def test_a_global_step_is_read_by_the_clock_that_was_written_down(late: int) -> None:
    assert read(OURS + CLOCK + by_global_step(late=late)) == list(range(EPOCHS))


@pytest.mark.parametrize("late", [-200, 0, 5, 900])
def test_without_a_clock_a_global_step_is_no_epoch(late: int) -> None:
    assert read(OURS + by_global_step(late=late)) == [None] * EPOCHS
    assert read(by_global_step(late=late)) == [None] * EPOCHS


@pytest.mark.parametrize("late", [-900, -5, 0, 5, 900, 60_000])
@pytest.mark.parametrize("clock", [[], CLOCK], ids=["no clock", "clock"])
def test_what_the_script_logs_by_epoch_stays(clock: Points, late: int) -> None:
    logged = [("validation/accuracy", epoch, time + late) for epoch, time in ENDED.items()]
    assert read(OURS + clock + logged) == list(range(EPOCHS))
    assert read(OURS + clock + logged[::5]) == [0, 5, 10]


def test_each_batch_of_an_epoch_is_in_it() -> None:
    logged = [("train/loss", step, 1_000 * step // STEPS + 20) for step in range(STEPS * EPOCHS)]
    expected = [step // STEPS for step in range(STEPS * EPOCHS)]
    assert read(OURS + CLOCK + logged, "train/loss") == expected


def test_one_value_at_the_end_of_all_is_none_of_an_epoch_that_never_was() -> None:
    logged: Points = [("test/accuracy", STEPS * EPOCHS, ENDED[EPOCHS - 1] + 500)]
    assert read(OURS + logged, "test/accuracy") == [None]


def test_other_runs_count_epochs_if_they_log_one_after_the_other() -> None:
    assert read([("validation/accuracy", step, 5) for step in range(4)]) == [0, 1, 2, 3]
    assert read([("validation/accuracy", step, 5) for step in range(1, 4)]) == [1, 2, 3]
    assert read([("validation/accuracy", step, 5) for step in range(500, 504)]) == [None] * 4


def test_a_run_without_a_clock_says_so_in_both_frames() -> None:
    with mlflow.start_run() as run:
        for epoch in range(20):
            mlflow.log_metric("validation/accuracy", min(0.1 * epoch, 0.9), step=100 * (epoch + 1) - 1)
    frame = mlflow_dynamics.load_metrics([run.info.run_id])
    assert frame["epoch"].isna().all()
    assert frame["validation/accuracy"].tolist() == [
        pytest.approx(min(0.1 * epoch, 0.9)) for epoch in range(20)
    ]
    (found,) = mlflow_dynamics.search_runs().to_dict("records")
    assert pd.isna(found["plateau_epoch"])
    assert pd.isna(found["lead_time"])
