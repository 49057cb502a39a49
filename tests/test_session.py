"""`track`: what a plain loop gets with three lines, and that nothing of ours reaches it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torch
from torch import nn

import mlflow_dynamics
from mlflow_dynamics.errors import RecordingError
from mlflow_dynamics.recording.boundary import ENV_TESTING

STEPS = 40


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Dropout(0.2), nn.Linear(8, 3))


def epoch(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
    losses = []
    for _ in range(STEPS):
        inputs = torch.randn(16, 6)
        loss = nn.functional.cross_entropy(model(inputs), (inputs[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def run() -> mlflow.entities.Run:
    (only,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    return only


def history(key: str) -> dict[int, float]:
    points = mlflow.MlflowClient().get_metric_history(run().info.run_id, key)
    return {point.step: point.value for point in points}


@pytest.mark.drawn
def test_a_plain_loop_gets_a_finished_run_with_its_dynamics() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with mlflow_dynamics.track(model) as tracker:
        for _ in range(4):
            losses = epoch(model, optimizer)
            tracker.end_epoch(**{"train/loss": sum(losses) / STEPS})
    assert run().info.status == "FINISHED"
    assert list(history("dynamics/integration")) == [0, 1, 2, 3]
    assert list(history("train/loss")) == [0, 1, 2, 3]


def test_what_is_closed_already_stays_as_it_was_closed(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="after it"), mlflow_dynamics.track(model) as tracker:  # noqa: PT012
        epoch(model, optimizer)
        tracker.end_epoch()
        tracker.close()
        epoch(model, optimizer)
        tracker.end_epoch()
        assert not tracker.should_stop()
        raise ValueError("after it")
    tracker.close("KILLED")
    assert run().info.status == "FINISHED"
    assert "not sent" not in caplog.text
    assert not list((tmp_path / ".mlflow_dynamics").iterdir())


@pytest.mark.drawn
def test_losses_and_weights_are_bitwise_those_of_an_untracked_training() -> None:
    def training(tracked: bool) -> tuple[list[float], list[torch.Tensor]]:
        model = network()
        optimizer = torch.optim.Adam(model.parameters())
        losses: list[float] = []
        if tracked:
            with mlflow_dynamics.track(model) as tracker:
                for _ in range(3):
                    losses += epoch(model, optimizer)
                    tracker.end_epoch()
        else:
            for _ in range(3):
                losses += epoch(model, optimizer)
        return losses, [p.detach() for p in model.parameters()]

    (losses, weights), (tracked_losses, tracked_weights) = training(False), training(True)
    assert losses == tracked_losses
    assert all(torch.equal(a, b) for a, b in zip(weights, tracked_weights, strict=True))


def test_a_failure_of_ours_ends_the_recording_and_is_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("injected")

    monkeypatch.delenv(ENV_TESTING)
    monkeypatch.setattr("mlflow_dynamics.pipeline.SignalWindow.append", broken)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with caplog.at_level(logging.WARNING, "mlflow_dynamics"), mlflow_dynamics.track(model) as tracker:
        for _ in range(3):
            epoch(model, optimizer)
            tracker.end_epoch()
            assert tracker.should_stop() is False
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 1
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_the_users_exception_passes_through_and_names_the_end(
    error: type[BaseException], status: str
) -> None:
    model = network()
    with pytest.raises(error), mlflow_dynamics.track(model):
        raise error
    assert run().info.status == status


def test_an_active_run_is_used_and_left_open() -> None:
    model = network()
    with mlflow.start_run() as active:
        with mlflow_dynamics.track(model) as tracker:
            assert tracker.run_id == active.info.run_id
        assert mlflow.active_run() is not None
    assert run().info.status == "FINISHED"


def test_a_tracker_that_was_not_closed_keeps_its_run_to_itself(caplog: pytest.LogCaptureFixture) -> None:
    trackers = []
    with caplog.at_level(logging.INFO, "mlflow_dynamics"):
        for number in range(3):  # as a notebook's cell that is run again does
            model = network()
            tracker = mlflow_dynamics.track(model)
            assert mlflow.active_run().info.run_id == tracker.run_id
            for _ in range(2 + number):
                epoch(model, torch.optim.SGD(model.parameters(), lr=0.1))
                tracker.end_epoch(**{"train/loss": float(number)})
            trackers.append(tracker)
    told = [record.message for record in caplog.records if "still open" in record.message]
    assert [trackers[n].run_id in line for n, line in enumerate(told)] == [True, True]

    first, second, third = trackers
    second.close()
    assert mlflow.active_run().info.run_id == third.run_id
    third.close()
    assert mlflow.active_run().info.run_id == first.run_id
    first.close("FAILED")
    assert mlflow.active_run() is None

    client = mlflow.MlflowClient()
    histories = [client.get_metric_history(tracker.run_id, "train/loss") for tracker in trackers]
    assert [[(point.step, point.value) for point in history] for history in histories] == [
        [(epoch, number) for epoch in range(2 + number)] for number in range(3)
    ]
    assert [client.get_run(tracker.run_id).info.status for tracker in trackers] == [
        "FAILED",
        "FINISHED",
        "FINISHED",
    ]


def test_trackers_that_were_not_closed_end_with_the_process() -> None:
    script = """
import test_session
import torch
import mlflow_dynamics

for number in range(2):
    model = test_session.network()
    tracker = mlflow_dynamics.track(model)
    for _ in range(2 + number):
        test_session.epoch(model, torch.optim.SGD(model.parameters(), lr=0.1))
        tracker.end_epoch(**{"train/loss": float(number)})
raise ValueError("the user's own")
"""
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)]),
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    client = mlflow.MlflowClient()
    runs = mlflow.search_runs(
        search_all_experiments=True, output_format="list", order_by=["attributes.start_time ASC"]
    )
    assert [run.info.status for run in runs] == ["FAILED", "FAILED"]
    histories = [client.get_metric_history(run.info.run_id, "train/loss") for run in runs]
    assert [[(point.step, point.value) for point in history] for history in histories] == [
        [(epoch, number) for epoch in range(2 + number)] for number in range(2)
    ]


def test_an_epoch_left_by_an_exception_is_not_recorded() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with mlflow_dynamics.track(model) as tracker:
        with pytest.raises(ValueError, match="mid-epoch"), tracker.epoch(0):  # noqa: PT012
            epoch(model, optimizer)
            raise ValueError("mid-epoch")
        for number in range(3):
            with tracker.epoch(number):
                epoch(model, optimizer)
    assert list(history("dynamics/integration")) == [0, 1, 2]


def test_a_model_without_layers_is_refused_and_leaves_no_run() -> None:
    with pytest.raises(RecordingError):
        mlflow_dynamics.track(nn.ReLU())
    assert mlflow.search_runs(search_all_experiments=True, output_format="list") == []


class Skipping(nn.Module):
    """Stochastic depth: every third step goes without the second layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        inner = self.first(images)
        output: torch.Tensor = self.last(inner if self.calls % 3 == 0 else self.second(inner))
        return output


def test_a_layer_that_some_steps_go_without_is_left_out_and_named_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.manual_seed(0)
    model = Skipping()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with caplog.at_level(logging.INFO, "mlflow_dynamics"), mlflow_dynamics.track(model) as tracker:
        for _ in range(2):
            for _ in range(70):
                optimizer.zero_grad()
                model(torch.randn(8, 4)).square().mean().backward()
                optimizer.step()
            tracker.end_epoch()
    said = [line.message for line in caplog.records if "left out of the measures" in line.message]
    assert len(said) == 1
    assert said[0].startswith("Epoch 0: 1 of 3 layers are left out")
    assert said[0].endswith(": second.")
    assert history("dynamics/details/layers_dropped") == {0: 1, 1: 1}
