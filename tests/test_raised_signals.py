"""What is raised in a training that does not converge, and how its user learns of it: tags, description, log line."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from foreign_detector import install
from mlflow.entities import Run
from test_watching import settling
from torch import nn

import mlflow_dynamics
from mlflow_dynamics.config import MeasureConfig
from mlflow_dynamics.convergence import Schedule, WarningConfig
from mlflow_dynamics.tracking import names
from mlflow_dynamics.watching import watch

WINDOW = MeasureConfig(window=64)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))


def only_run() -> Run:
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    return run


def raised(run: Run) -> dict[str, str]:
    """The states that the run's tags tell of, with their epochs."""
    return {state: run.data.tags[tag] for state, tag in names.STATE_TAGS.items() if tag in run.data.tags}


def told_in_words(run: Run) -> str:
    return run.data.tags[names.TAG_DESCRIPTION]


@pytest.mark.parametrize("loss", [math.nan, math.inf, 7.0], ids=["nan", "infinite", "exploding"])
def test_a_loss_out_of_bounds_is_told_as_divergence(loss: float, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mlflow_dynamics")
    model, rng = network(), np.random.default_rng(0)
    with mlflow_dynamics.track(model, measures=WINDOW, warning=WarningConfig(mode="stop")) as tracker:
        for epoch, value in enumerate([2.0, 1.5, 1.0, loss, loss, 1.0, loss]):
            settling(model, epoch, rng)
            tracker.end_epoch(**{names.TRAIN_LOSS: value})
            tracker.wait(epoch)
            assert not tracker.should_stop()
    run = only_run()
    assert raised(run) == {"diverging": "3"}
    assert told_in_words(run).startswith(f"{names.DESCRIPTION}Diverged at epoch 3")
    assert ("the training loss is not finite" in told_in_words(run)) == (not math.isfinite(loss))
    (found,) = mlflow_dynamics.search_runs().to_dict("records")
    assert found["diverging_epoch"] == 3
    lines = [(line.levelname, line.message[:27]) for line in caplog.records if "diverges" in line.message]
    assert lines == [("WARNING", "Epoch 3: Training diverges:"), ("INFO", "Epoch 6: Training diverges:")]


def test_what_was_raised_in_epochs_that_are_trained_again_is_withdrawn() -> None:
    model, rng = network(), np.random.default_rng(0)
    client = mlflow.MlflowClient()
    with mlflow_dynamics.track(model, measures=WINDOW) as tracker:
        for epoch, loss, told in [
            (0, 2.0, set()),
            (1, math.nan, {"1"}),
            (2, math.nan, {"1"}),
            (0, 2.0, {""}),  # from an earlier checkpoint
            (1, 1.5, {""}),
            (2, math.nan, {"2"}),
            (1, math.nan, {"1"}),
            (0, 2.0, {""}),
        ]:
            settling(model, epoch, rng)
            tracker.end_epoch({names.TRAIN_LOSS: loss}, epoch=epoch)
            deadline = time.monotonic() + 20
            while (
                set(raised(client.get_run(tracker.run_id)).values()) != told and time.monotonic() < deadline
            ):
                time.sleep(0.02)
            assert set(raised(client.get_run(tracker.run_id)).values()) == told
    assert "diverged" not in told_in_words(only_run())
    assert mlflow_dynamics.search_runs()["diverging_epoch"].isna().all()


def test_weights_that_are_no_longer_numbers_are_told_as_divergence() -> None:
    model, rng = network(), np.random.default_rng(0)
    with mlflow_dynamics.track(model, measures=WINDOW) as tracker:
        for epoch in range(5):
            if epoch == 3:
                with torch.no_grad():
                    model[0].weight.fill_(math.nan)
            settling(model, epoch, rng)
            tracker.end_epoch()
    run = only_run()
    assert raised(run) == {"diverging": "3"}
    assert told_in_words(run).startswith(f"{names.DESCRIPTION}Diverged at epoch 3.")


def test_rising_volatility_is_told_and_is_no_convergence() -> None:
    alerts: list[mlflow_dynamics.Event] = []
    model, rng = network(), np.random.default_rng(0)
    with mlflow_dynamics.track(
        model,
        measures=WINDOW,
        warning=WarningConfig(mode="stop", schedule=Schedule(planned_epochs=60)),
        on_event=alerts.append,
    ) as tracker:
        for epoch in range(60):
            settling(model, 59 - epoch, rng)
            tracker.end_epoch()
            assert not tracker.should_stop()
    run = only_run()
    assert raised(run).keys() == {"unsettled"} == {alert.kind for alert in alerts}
    at = int(raised(run)["unsettled"])
    assert alerts[0].epoch == at
    assert at > 16
    assert f"The volatility of stability had risen at epoch {at}." in told_in_words(run)
    (found,) = mlflow_dynamics.search_runs().to_dict("records")
    assert found["unsettled_epoch"] == at
    frame = mlflow_dynamics.load_metrics([run.info.run_id])
    assert not frame[names.CONVERGENCE_SIGNAL].any()


@pytest.mark.parametrize("bad", [1.2, -0.1])
def test_who_watches_a_run_whose_stability_leaves_its_range_tags_it(bad: float) -> None:
    client = mlflow.MlflowClient()
    run_id = client.create_run("0").info.run_id
    uri = mlflow.get_tracking_uri()
    states: list[str] = []

    def follow() -> None:
        mlflow.set_tracking_uri(uri)
        states.extend(epoch.verdict.state for epoch in watch(run_id, poll_s=0.05))

    for epoch, stability in enumerate([0.5, 0.6, bad, bad]):
        client.log_metric(run_id, names.STABILITY, stability, step=epoch)
    watcher = threading.Thread(target=follow)
    watcher.start()
    while len(states) < 4 and watcher.is_alive():
        watcher.join(0.05)
    client.set_terminated(run_id)
    watcher.join(60)
    assert not watcher.is_alive()
    assert states == ["waiting", "waiting", "diverging", "diverging"]
    assert raised(mlflow.get_run(run_id)) == {"diverging": "2"}


SCRIPT = """
import sys
import torch
from torch import nn
import mlflow_dynamics
from mlflow_dynamics.config import MeasureConfig
from mlflow_dynamics.convergence import WarningConfig

torch.manual_seed(0)
data = torch.utils.data.TensorDataset(torch.randn(256, 3), torch.zeros(256, dtype=torch.long))
loader = torch.utils.data.DataLoader(data, batch_size=4)
model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

def epoch():
    for inputs, targets in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

if sys.argv[1] == "track":
    third = WarningConfig(detector="third")
    with mlflow_dynamics.track(model, warning=third, measures=MeasureConfig(window=64)) as tracker:
        for _ in range(6):
            epoch()
            tracker.end_epoch()
else:
    mlflow_dynamics.autolog(warning=WarningConfig(detector="third"), measures=MeasureConfig(window=64))
    for _ in range(6):
        epoch()
"""


@pytest.mark.parametrize("way", ["track", "autolog"])
def test_the_warning_reaches_who_has_set_up_no_logging_once(own_mlflow: Path, way: str) -> None:
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "PYTHONPATH": os.pathsep.join(
            [str(install(own_mlflow / "installed")), os.environ.get("PYTHONPATH", "")]
        ),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, way], env=environment, capture_output=True, text=True, check=True
    )
    line = "Epoch 3: Convergence is near: since epoch 3 the volatility of stability has surely fallen."
    assert done.stderr.count(line) == 1, done.stderr
    assert line not in done.stdout
    assert only_run().data.tags[names.TAG_CONVERGED_EPOCH] == "3"
