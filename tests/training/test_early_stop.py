"""A training that is stopped early: its model has the best weights, even if it was interrupted in between."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from foreign_detector import install
from torch import nn

from mlflow_dynamics.tracking import names
from mlflow_dynamics.training.best import BestWeights
from mlflow_dynamics.training.loop import Epoch

QUICK = ("--image-size", "8", "--limit-train", "128", "--batch-size", "8", "--limit-test", "64")
"""16 steps an epoch: start-up ends with epoch 3, and the detector converges in epoch 6."""


def train(folder: Path, *arguments: str) -> str:
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "PYTHONPATH": os.pathsep.join([str(install(folder / "installed")), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, "-m", "mlflow_dynamics.cli", "train", *QUICK, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def test_a_stopped_run_is_finished_and_its_model_is_that_of_the_best_epoch(own_mlflow: Path) -> None:
    told = train(
        own_mlflow,
        *("--detector", "third", "--early-stopping", "stop", "--schedule", "cosine", "--epochs", "9"),
        *("--stop-before-last-phase", "true"),
    )
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    points = mlflow.MlflowClient().get_metric_history(run.info.run_id, names.VALIDATION_ACCURACY)
    accuracy = {point.step: point.value for point in points}
    assert list(accuracy) == list(range(7))
    best = max(accuracy, key=lambda epoch: accuracy[epoch])
    assert "Stopped early, after epoch 6." in told
    assert f"The model is that of epoch {best}, with" in told
    assert run.info.status == "FINISHED"
    assert run.data.tags[names.TAG_STOPPED_EARLY] == "true"
    assert run.data.params["detector"] == "third"
    assert not list(own_mlflow.glob(".mlflow_dynamics/checkpoints/*"))


@pytest.mark.slow
def test_a_signal_in_the_last_epoch_stops_nothing(own_mlflow: Path) -> None:
    told = train(
        own_mlflow,
        *("--detector", "third", "--early-stopping", "stop", "--schedule", "constant", "--epochs", "7"),
    )
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.data.tags[names.TAG_CONVERGED_EPOCH] == "6"
    assert names.TAG_STOPPED_EARLY not in run.data.tags
    assert "Stopped early" not in told


def epoch(number: int, accuracy: float) -> Epoch:
    return Epoch(
        number=number,
        train_loss=1.0,
        train_accuracy=0.5,
        validation_loss=1.0,
        validation_accuracy=accuracy,
        learning_rate=0.1,
        seconds=1.0,
        images_per_second=1.0,
    )


def weighing(value: float) -> nn.Linear:
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, value)
    return model


def weight(model: nn.Linear) -> float:
    return model.weight[0, 0].item()


def test_a_resumed_training_goes_back_to_an_epoch_before_the_interruption(tmp_path: Path) -> None:
    first = BestWeights(tmp_path / "first.best")
    for number, accuracy in enumerate([0.2, 0.9, 0.9, 0.5]):
        first.keep(epoch(number, accuracy), weighing(number))

    second = BestWeights(tmp_path / "first.best")
    second.keep(epoch(4, 0.8), weighing(4))
    model = weighing(7)
    assert second.restore(model) == 1
    assert weight(model) == 1
    second.keep(epoch(5, 0.95), weighing(5))
    second.restore(model)
    assert weight(model) == 5


def test_without_a_best_epoch_the_last_weights_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    best = BestWeights(tmp_path / "own.best")
    best.keep(epoch(0, float("nan")), weighing(0))
    model = weighing(7)
    with caplog.at_level("INFO"):
        assert best.restore(model) is None
    assert weight(model) == 7
    assert "No epoch has a validation accuracy" in caplog.text
