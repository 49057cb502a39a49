"""A detector by name, and the schedule read from the scheduler, through `track`, `autolog` and `watch`."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from foreign_detector import install
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

import mlflow_dynamics
from mlflow_dynamics.config import MeasureConfig
from mlflow_dynamics.convergence import Schedule, WarningConfig
from mlflow_dynamics.errors import ConfigError
from mlflow_dynamics.tracking import names
from mlflow_dynamics.watching import WatchedEpoch, watch

EPOCHS, STEPS = 8, 128
NO_START_UP = MeasureConfig(window=64)
"""Of 128 steps the first epoch's window holds the last 64, and the first 64 are left out."""

PREFIX = "dynamics/warning/"


@pytest.fixture
def third(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a foreign detector that is installed."""
    monkeypatch.syspath_prepend(install(tmp_path / "installed"))
    return "third"


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))


def loader() -> DataLoader:
    inputs = torch.randn(STEPS * 4, 6, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(inputs, (inputs[:, 0] > 0).long()), batch_size=4)


Make = Callable[[torch.optim.Optimizer], Any]


def train(
    tracker: mlflow_dynamics.Tracker | None, model: nn.Module, make: Make, *, every_step: bool = False
) -> int:
    """Train until told to stop, at most EPOCHS; how many epochs it were."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scheduler = make(optimizer)
    batches = loader()
    for epoch in range(EPOCHS):
        rate = optimizer.param_groups[0]["lr"]
        for inputs, targets in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            if every_step:
                scheduler.step()
        if not every_step:
            scheduler.step()
        if tracker is not None:
            tracker.end_epoch(**{names.LEARNING_RATE: rate})
            tracker.wait(epoch, timeout=60)
            if tracker.should_stop():
                return epoch + 1
        elif epoch == 1:
            time.sleep(
                3
            )  # the scheduler is looked for beside a first epoch that is over in the second, as epochs go
    return EPOCHS


def only_run() -> mlflow.entities.Run:
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    return run


def warning_of(run: mlflow.entities.Run) -> dict[str, str]:
    return {
        key.removeprefix(PREFIX): value for key, value in run.data.params.items() if key.startswith(PREFIX)
    }


def one_cycle(optimizer: torch.optim.Optimizer) -> lr_scheduler.OneCycleLR:
    return lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=EPOCHS * STEPS)


def milestones(optimizer: torch.optim.Optimizer) -> lr_scheduler.MultiStepLR:
    return lr_scheduler.MultiStepLR(optimizer, milestones=[4])


def test_a_foreign_detector_stops_a_run_and_is_used_by_who_watches_it(third: str) -> None:
    model = network()
    with mlflow_dynamics.track(
        model,
        measures=NO_START_UP,
        warning=WarningConfig(mode="stop", detector=third, schedule=Schedule(planned_epochs=EPOCHS)),
    ) as tracker:
        trained = train(tracker, model, lambda one: lr_scheduler.ConstantLR(one, 1.0, 0))
    assert trained == 3
    run = only_run()
    assert run.info.status == "FINISHED"
    assert run.data.tags[names.TAG_CONVERGED_EPOCH] == "2"
    assert run.data.tags[names.TAG_STOPPED_EARLY] == "true"
    assert warning_of(run) == {
        "detector": "third",
        "mode": "stop",
        "stop_before_last_phase": "False",
        "planned": str(EPOCHS),
        "schedule": "constant",
        "planned_epochs": str(EPOCHS),
        "drop_epochs": "none",
    }
    watched = list(watch(run.info.run_id, stop=True))
    assert [epoch.verdict.signal for epoch in watched] == [0, 0, 1]
    assert [epoch.verdict.score for epoch in watched] == [1 / 3, 2 / 3, 1.0]
    assert watched[-1].verdict.should_stop


def test_a_stop_waits_for_the_last_phase_of_a_scheduler_that_nobody_has_told_us_of(third: str) -> None:
    model = network()
    with mlflow_dynamics.track(
        model, measures=NO_START_UP, warning=WarningConfig(mode="stop", detector=third)
    ) as tracker:
        trained = train(tracker, model, one_cycle, every_step=True)
    run = only_run()
    told = warning_of(run)
    assert (told["schedule"], told["planned_epochs"], told["planned"]) == ("onecycle", "8", "8")
    assert run.data.tags[names.TAG_CONVERGED_EPOCH] == "2"
    assert trained == 7, "three quarters of 8 epochs are over in epoch 6"
    watched = list(watch(run.info.run_id, stop=True))
    assert [epoch.verdict.signal for epoch in watched] == [0, 0, 1, 1, 1, 1, 1]
    assert [epoch.verdict.should_stop for epoch in watched] == [False] * 6 + [True]
    assert "the last phase of the onecycle schedule begins at epoch 6" in watched[2].verdict.message


def test_a_stop_that_is_told_so_does_not_wait_for_the_last_phase_nor_does_who_watches(third: str) -> None:
    model = network()
    with mlflow_dynamics.track(
        model,
        measures=NO_START_UP,
        warning=WarningConfig(mode="stop", stop_before_last_phase=True, detector=third),
    ) as tracker:
        trained = train(tracker, model, one_cycle, every_step=True)
    run = only_run()
    assert trained == 3
    told = warning_of(run)
    assert (told["schedule"], told["stop_before_last_phase"]) == ("onecycle", "True")
    watched = list(watch(run.info.run_id, stop=True))
    assert [epoch.verdict.should_stop for epoch in watched] == [False, False, True]


def test_who_watches_need_not_wait_for_the_last_phase_where_the_run_would(third: str) -> None:
    model = network()
    with mlflow_dynamics.track(model, measures=NO_START_UP, warning=WarningConfig(detector=third)) as tracker:
        train(tracker, model, one_cycle, every_step=True)
    run_id = only_run().info.run_id
    stops = [
        [
            epoch.verdict.epoch
            for epoch in watch(run_id, stop=True, stop_before_last_phase=told)
            if epoch.verdict.should_stop
        ]
        for told in (False, True)
    ]
    assert stops == [[6, 7], [2, 3, 4, 5, 6, 7]]


@pytest.mark.drawn
def test_a_stop_waits_for_a_drop_that_is_read_and_watching_and_the_page_know_of_it(
    third: str, own_mlflow: Path
) -> None:
    model = network()
    with mlflow_dynamics.track(
        model, measures=NO_START_UP, warning=WarningConfig(mode="stop", detector=third)
    ) as tracker:
        trained = train(tracker, model, milestones)
    run = only_run()
    assert trained == EPOCHS
    assert warning_of(run)["drop_epochs"] == "4"
    frame = mlflow_dynamics.load_metrics([run.info.run_id])
    live = frame[names.CONVERGENCE_SIGNAL].astype(int).to_list()
    assert live == [0, 0, 1, 1, 0, 0, 0, 0]
    watched = list(watch(run.info.run_id, stop=True))
    assert [epoch.verdict.signal for epoch in watched] == live
    assert "too early to stop, the learning rate will change at epoch 4" in watched[3].verdict.message
    pytest.importorskip("altair", reason="the page needs the extra report")
    page = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=names.REPORT))
    assert "warning/drop_epochs" in page.read_text()


def test_who_watches_from_before_the_first_epoch_on_goes_by_the_schedule_that_is_read_then(
    third: str,
) -> None:
    seen: list[WatchedEpoch] = []
    model = network()
    with (
        mlflow.start_run() as run,
        mlflow_dynamics.track(model, measures=NO_START_UP, warning=WarningConfig(detector=third)) as tracker,
    ):
        uri = mlflow.get_tracking_uri()

        def follow() -> None:
            mlflow.set_tracking_uri(uri)
            seen.extend(watch(run.info.run_id, poll_s=0.05))

        watcher = threading.Thread(target=follow)
        watcher.start()
        time.sleep(1)
        train(tracker, model, milestones)
    watcher.join(60)
    assert not watcher.is_alive()
    assert [epoch.verdict.signal for epoch in seen] == [0, 0, 1, 1, 0, 0, 0, 0]
    assert "the learning rate will change at epoch 4" in seen[3].verdict.message


def test_a_schedule_that_is_given_is_not_read_again(third: str) -> None:
    model = network()
    with mlflow_dynamics.track(
        model, measures=NO_START_UP, warning=WarningConfig(mode="stop", detector=third, schedule=Schedule())
    ) as tracker:
        assert train(tracker, model, milestones) == 3
    assert warning_of(only_run())["schedule"] == "constant"


@pytest.mark.parametrize("every_step", [False, True])
def test_autolog_reads_the_scheduler_too(third: str, every_step: bool) -> None:
    mlflow_dynamics.autolog(measures=NO_START_UP, warning=WarningConfig(detector=third))
    try:
        train(None, network(), one_cycle if every_step else milestones, every_step=every_step)
    finally:
        mlflow_dynamics.autolog(disable=True)
    run = only_run()
    told = warning_of(run)
    assert told["detector"] == third
    expected = ("onecycle", "8", "none") if every_step else ("step", "unknown", "4")
    assert (told["schedule"], told["planned_epochs"], told["drop_epochs"]) == expected
    frame = mlflow_dynamics.load_metrics([run.info.run_id])
    watched = [epoch.verdict.signal for epoch in watch(run.info.run_id)]
    assert watched == frame[names.CONVERGENCE_SIGNAL].astype(int).to_list()
    assert 1 in watched


def test_a_plain_loop_that_autolog_cannot_stop_is_told_so_once_and_only_warned(
    third: str, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow_dynamics.autolog(measures=NO_START_UP, warning=WarningConfig(detector=third, mode="stop"))
    try:
        assert train(None, network(), lambda one: lr_scheduler.ConstantLR(one, 1.0, 0)) == EPOCHS
    finally:
        mlflow_dynamics.autolog(disable=True)
    run = only_run()
    assert names.TAG_CONVERGED_EPOCH in run.data.tags
    assert names.TAG_STOPPED_EARLY not in run.data.tags
    said = [
        line.message
        for line in caplog.records
        if "WarningConfig(mode='stop') only warns here" in line.message
    ]
    assert len(said) == 1
    assert "Ask tracker.should_stop() of mlflow_dynamics.track" in said[0]


def test_steps_at_which_others_log_are_no_epochs_to_who_watches(third: str) -> None:
    model = network()
    with (
        mlflow.start_run() as run,
        mlflow_dynamics.track(
            model, measures=NO_START_UP, warning=WarningConfig(detector=third, schedule=Schedule())
        ) as tracker,
    ):
        mlflow.log_metric("train/loss", 0.5, step=5)
        mlflow.log_metric("train/loss", 0.5, step=69)
        train(tracker, model, lambda one: lr_scheduler.ConstantLR(one, 1.0, 0))
    watched = list(watch(run.info.run_id))
    assert [epoch.verdict.epoch for epoch in watched] == list(range(EPOCHS))
    assert [epoch.verdict.state for epoch in watched] == ["learning"] * 2 + ["converging"] * 6


def epochs_of(tracker: mlflow_dynamics.Tracker, model: nn.Module, losses: dict[int, float]) -> None:
    """Epochs of these numbers, in this order, logged with these training losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for epoch, loss in losses.items():
        for inputs, targets in loader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        tracker.end_epoch({names.TRAIN_LOSS: loss}, epoch=epoch)
        tracker.wait(epoch, timeout=60)


def test_a_run_that_goes_back_to_an_earlier_epoch_is_tagged_as_it_went_in_the_end(third: str) -> None:
    model = network()
    with mlflow_dynamics.track(
        model, measures=NO_START_UP, warning=WarningConfig(detector=third, schedule=Schedule())
    ) as tracker:
        epochs_of(tracker, model, {0: 1.0, 1: 0.9, 2: 0.8, 3: 0.7})
        assert tracker.wait(3).verdict.signal == 1
        epochs_of(tracker, model, {1: math.nan, 2: 0.8, 3: 0.7, 4: 0.6})
    run = only_run()
    assert run.data.tags[names.TAG_CONVERGED_EPOCH] == "4"
    assert run.data.tags[names.TAG_DIVERGING_EPOCH] == "1"
    described = run.data.tags[names.TAG_DESCRIPTION]
    assert "Training had diverged at epoch 1, and recovered. The data come in the same order" in described
    assert "\n\nThe early warning fired at epoch 4." in described
    # A store keeps the values that an epoch had first, so who looks back sees it as it went at first.
    assert [epoch.verdict.signal for epoch in watch(run.info.run_id)] == [0, 0, 1, 1, 1]


def test_epochs_that_are_missing_are_missing_to_who_looks_back_too(third: str) -> None:
    model = network()
    with mlflow_dynamics.track(
        model, measures=NO_START_UP, warning=WarningConfig(detector=third, schedule=Schedule())
    ) as tracker:
        epochs_of(tracker, model, {0: 1.0, 1: 0.9, 7: 0.8, 8: 0.7})
    run = only_run()
    watched = [(epoch.verdict.epoch, epoch.verdict.signal) for epoch in watch(run.info.run_id)]
    assert watched == [(0, 0), (1, 0), (7, 1), (8, 1)]
    assert run.data.tags[names.TAG_CONVERGED_EPOCH] == "7"


@pytest.mark.parametrize("mode", ["off", "warn", "stop"])
def test_an_unknown_detector_is_refused_before_anything_else(mode: str) -> None:
    message = "detector='volatilty' is not known; accepted: volatility. Did you mean 'volatility'"
    with pytest.raises(ConfigError, match=message):
        mlflow_dynamics.track(network(), warning=WarningConfig(mode=mode, detector="volatilty"))
    with pytest.raises(ConfigError, match=message):
        mlflow_dynamics.autolog(warning=WarningConfig(mode=mode, detector="volatilty"))
    with pytest.raises(ConfigError, match="mode='halt' is not known; accepted: off, warn, stop"):
        mlflow_dynamics.autolog(warning=WarningConfig(mode="halt"))
    assert mlflow.search_runs(search_all_experiments=True, output_format="list") == []
