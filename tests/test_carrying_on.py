"""A run holds one training: what begins in it beside has a run of its own, and what carries it on has one curve."""

from __future__ import annotations

import logging
import re
from itertools import pairwise
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow.entities import Run
from torch import nn

import mlflow_dynamics
from mlflow_dynamics.config import MeasureConfig, RecordingConfig
from mlflow_dynamics.errors import ConfigError, TrackingError
from mlflow_dynamics.recomputing import recompute, settings_of
from mlflow_dynamics.recording import Recorder
from mlflow_dynamics.recording.layers import other_layer
from mlflow_dynamics.records import Layer
from mlflow_dynamics.tracker import Tracker

STEPS = 16
WINDOW = MeasureConfig(window=64)


class Training:
    """Of one network on one stream of numbers: cut anywhere, it goes on as if it had not been."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.numbers = torch.Generator().manual_seed(seed)

    def epochs(self, tracker: Tracker, count: int) -> None:
        for _ in range(count):
            total = 0.0
            for _ in range(STEPS):
                inputs = torch.randn(16, 6, generator=self.numbers)
                loss = nn.functional.cross_entropy(self.model(inputs), (inputs[:, 0] > 0).long())
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                total += loss.item()
            tracker.end_epoch(**{"train/loss": total / STEPS})


def runs() -> list[Run]:
    return mlflow.search_runs(
        search_all_experiments=True, output_format="list", order_by=["attributes.start_time ASC"]
    )


def series(run_id: str) -> dict[str, list[tuple[int, float]]]:
    client = mlflow.MlflowClient()
    return {
        key: [(point.step, point.value) for point in client.get_metric_history(run_id, key)]
        for key in client.get_run(run_id).data.metrics
    }


def whole_and_carried_on(*cuts: int) -> tuple[str, str]:
    """Two runs of one training of 24 epochs: trained through, and cut at these epochs."""
    training = Training()
    with mlflow_dynamics.track(training.model, measures=WINDOW) as tracker:
        training.epochs(tracker, 24)
    (whole,) = runs()
    training = Training()
    with mlflow_dynamics.track(training.model, measures=WINDOW) as tracker:
        training.epochs(tracker, cuts[0])
    carried_on = runs()[-1].info.run_id
    for begin, end in zip(cuts, (*cuts[1:], 24), strict=True):
        with mlflow_dynamics.track(training.model, resume=carried_on) as tracker:
            assert tracker.run_id == carried_on
            training.epochs(tracker, end - begin)
    return whole.info.run_id, carried_on


def test_a_training_that_is_preempted_twice_has_the_curves_verdicts_and_record_of_one_that_is_not() -> None:
    whole, carried_on = whole_and_carried_on(5, 19)
    assert series(carried_on) == series(whole)
    assert "dynamics/details/convergence_score" in series(whole)
    first, second = (mlflow.MlflowClient().get_run(run_id) for run_id in (whole, carried_on))
    assert {**first.data.params} == {**second.data.params}
    assert second.info.status == "FINISHED"
    tables = [
        mlflow_dynamics.load_activations(run_id).drop_columns("run_id") for run_id in (whole, carried_on)
    ]
    assert tables[0].equals(tables[1])
    anew = {epoch.epoch: epoch.measures.stability for epoch in recompute(carried_on, settings_of(carried_on))}
    logged = dict(series(carried_on)["dynamics/stability"])
    assert {epoch: value for epoch, value in anew.items() if value == value} == pytest.approx(
        logged, rel=1e-12
    )


def test_an_epoch_that_the_run_holds_is_not_recorded_again(caplog: pytest.LogCaptureFixture) -> None:
    training = Training()
    with mlflow_dynamics.track(training.model, measures=WINDOW) as tracker:
        training.epochs(tracker, 8)
    (run,) = runs()
    before, table = series(run.info.run_id), mlflow_dynamics.load_activations(run.info.run_id)
    again = Training(seed=1)
    with (
        caplog.at_level(logging.INFO, "mlflow_dynamics"),
        mlflow_dynamics.track(again.model, resume=run.info.run_id) as tracker,
    ):
        tracker.start_at(6, step=6 * STEPS)
        again.epochs(tracker, 3)
    after = series(run.info.run_id)
    assert {key: after[key][: len(values)] for key, values in before.items()} == before
    assert [step for step, _ in after["train/loss"]] == list(range(9))
    rows = mlflow_dynamics.load_activations(run.info.run_id)
    assert rows.slice(0, table.num_rows).equals(table)
    assert rows["step"].to_pylist()[-1] == 9 * STEPS - 1
    assert "Epoch 6 is in the run already" in caplog.text


def test_another_training_in_a_run_that_holds_one_has_a_nested_run(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mlflow_dynamics"), mlflow.start_run() as own:
        for fold in range(3):
            training = Training(fold)
            with mlflow_dynamics.track(training.model, measures=WINDOW) as tracker:
                training.epochs(tracker, 4 + fold)
                mlflow.log_metric("fold", fold)
        assert mlflow.active_run().info.run_id == own.info.run_id
    first, *nested = runs()
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} == {own.info.run_id}
    assert {run.info.status for run in nested} == {"FINISHED"}
    assert sorted(len(series(run.info.run_id)["train/loss"]) for run in (first, *nested)) == [4, 5, 6]
    assert [run for run in (first, *nested) if "fold" in run.data.metrics] == [first]
    assert caplog.text.count("holds another training") == 2


def test_a_run_in_which_no_epoch_was_recorded_is_free() -> None:
    with mlflow.start_run() as own:
        with mlflow_dynamics.track(Training().model):
            pass
        training = Training()
        with mlflow_dynamics.track(training.model) as tracker:
            training.epochs(tracker, 1)
    assert [run.info.run_id for run in runs()] == [own.info.run_id]
    assert len(series(own.info.run_id)["train/loss"]) == 1


def test_a_run_that_another_process_trained_in_is_taken_too() -> None:
    with mlflow.start_run() as own:
        pass
    for _ in range(2):  # as two processes with MLFLOW_RUN_ID, each of which has only the store to ask
        training = Training()
        with (
            mlflow.start_run(run_id=own.info.run_id),
            mlflow_dynamics.track(training.model, measures=WINDOW) as tracker,
        ):
            training.epochs(tracker, 4)
    assert len(runs()) == 2


def test_the_active_run_that_is_carried_on_stays_the_callers() -> None:
    training = Training()
    with mlflow.start_run() as own:
        with mlflow_dynamics.track(training.model, measures=WINDOW) as tracker:
            training.epochs(tracker, 2)
        with mlflow_dynamics.track(training.model, resume=own.info.run_id) as tracker:
            training.epochs(tracker, 2)
        assert mlflow.active_run() is not None
    assert [step for step, _ in series(own.info.run_id)["train/loss"]] == list(range(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resume": "0" * 32}, "is no run of MLflow"),
        ({"measures": MeasureConfig(window=128)}, "recorded with window=64, not 128"),
        ({"recording": RecordingConfig(record_every=2)}, "recorded with record_every=1, not 2"),
        ({"run_id": "another"}, "are two runs; give one of them"),
    ],
)
def test_what_cannot_be_carried_on_is_said_before_anything_begins(
    options: dict[str, object], message: str
) -> None:
    training = Training()
    with mlflow_dynamics.track(training.model, measures=WINDOW) as tracker:
        training.epochs(tracker, 1)
    (run,) = runs()
    with pytest.raises(ConfigError, match=message):
        mlflow_dynamics.track(training.model, **{"resume": run.info.run_id, **options})  # type: ignore[arg-type]
    assert [one.info.status for one in runs()] == ["FINISHED"]
    assert not any(module._forward_hooks for module in training.model.modules())


def dense(*widths: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(first, last) for first, last in pairwise(widths)))


def test_a_run_that_cannot_be_carried_on_stays_as_it_is() -> None:
    training = Training()
    with mlflow_dynamics.track(training.model, measures=WINDOW) as tracker:
        training.epochs(tracker, 1)
    (run,) = runs()
    before = mlflow.get_run(run.info.run_id).to_dictionary()
    for other, said in {
        dense(
            6, 3
        ): "such as '0' (Linear with 21 parameters in this model, Linear with 56 parameters in the run)",
        nn.Sequential(*training.model[:4]): "such as '4' (not in this model)",
        nn.Sequential(*training.model, nn.Linear(3, 3)): "such as '5' (not in the run)",
    }.items():
        with pytest.raises(ConfigError, match=re.escape(f"a model with other layers, {said}")):
            mlflow_dynamics.track(other, resume=run.info.run_id)
        assert not any(module._forward_hooks for module in other.modules())
    assert mlflow.get_run(run.info.run_id).to_dictionary() == before
    mlflow.MlflowClient().delete_run(run.info.run_id)
    with pytest.raises(
        ConfigError, match=f"is a deleted run; mlflow runs restore --run-id {run.info.run_id}"
    ):
        mlflow_dynamics.track(training.model, resume=run.info.run_id)
    assert mlflow.active_run() is None


def test_a_lazy_layer_is_what_it_becomes() -> None:
    lazy = nn.LazyLinear(3)
    known = Layer(index=0, name="a", type="Linear", output_shape=(3,), parameters=9)
    recorder = Recorder(nn.ModuleDict({"a": lazy}), RecordingConfig())
    with recorder:
        assert other_layer(recorder.chosen_layers, [known]) is None
        lazy(torch.zeros(1, 2))
        assert other_layer(recorder.chosen_layers, [known]) is None
        lazy.weight = nn.Parameter(torch.zeros(3, 7))
        assert other_layer(recorder.chosen_layers, [known]) is not None


def test_a_run_is_not_sought_in_a_database_that_is_not_there(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/other.db"
    with pytest.raises(ConfigError, match="is no run of MLflow"):
        mlflow_dynamics.track(Training().model, resume="0" * 32, tracking_uri=store)
    assert not (tmp_path / "other.db").exists()


def test_a_run_that_is_being_recorded_is_not_carried_on() -> None:
    training = Training()
    with mlflow_dynamics.track(training.model, measures=WINDOW) as tracker:
        training.epochs(tracker, 1)
        with pytest.raises(TrackingError, match="another tracker or process records it at this moment"):
            mlflow_dynamics.track(Training().model, resume=tracker.run_id)
        training.epochs(tracker, 1)
    (run,) = runs()
    assert [step for step, _ in series(run.info.run_id)["train/loss"]] == [0, 1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "is counted as epoch 2, the one after the last of the record; if your training goes on"),
        (1, None),
        (2, None),
        (3, "Epoch 2: not in the run's record, which ends with epoch 1"),
        (5, "Epochs 2 to 4: not in the run's record, which ends with epoch 1"),
    ],
)
def test_where_a_resumed_training_goes_on_is_told_once_if_it_is_not_known(
    given: int | None, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    training = Training()
    with mlflow_dynamics.track(training.model, measures=WINDOW) as tracker:
        training.epochs(tracker, 2)
    with mlflow_dynamics.track(training.model, resume=tracker.run_id) as tracker:
        caplog.clear()
        tracker.end_epoch(epoch=given)
        tracker.end_epoch()
    told = [one.getMessage() for one in caplog.records]
    lines = [line for line in told if "of the record" in line or "in the run's record" in line]
    assert len(lines) == (said is not None)
    assert said is None or said in lines[0]
