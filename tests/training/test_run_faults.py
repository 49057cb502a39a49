"""`mlflow-dynamics train` while the server is missing, goes away, or was there only for `mlflow run`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from tracking_server import FaultyProxy, MlflowServer

from mlflow_dynamics.cli import main
from mlflow_dynamics.errors import TrackingError
from mlflow_dynamics.tracking.sync import sync
from mlflow_dynamics.training.grid import train_grid
from mlflow_dynamics.training.logged_model import model_name
from mlflow_dynamics.training.parameters import TrainingConfig

COMMAND = (sys.executable, "-m", "mlflow_dynamics.cli", "train", "--epochs", "5", "--seed", "3")
QUICK = ("--limit-train", "640", "--limit-test", "64", "--image-size", "8")
TITLE = "resnet20 on digits, sgd onecycle, seed 3, epochs 5, limit_train 640, limit_test 64, image_size 8"
MODEL = model_name(TITLE)
OVERHEAD_S = 100
"""What imports and waiting for a dead server may add to a training of some seconds, on a loaded machine."""


def start(proxy: FaultyProxy, folder: Path, **variables: str) -> subprocess.Popen[str]:
    environment = os.environ | {"MLFLOW_TRACKING_URI": proxy.uri, "OMP_NUM_THREADS": "1"} | variables
    return subprocess.Popen(
        [*COMMAND, *QUICK],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The training losses of the same command on a store that is there."""
    folder = tmp_path_factory.mktemp("undisturbed")
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run([*COMMAND, *QUICK], env=environment, cwd=folder, check=True, capture_output=True)
    client = MlflowClient(environment["MLFLOW_TRACKING_URI"])
    (run,) = client.search_runs(["0"])
    return [point.value for point in client.get_metric_history(run.info.run_id, "train/loss")]


def assert_whole(run_id: str, losses: list[float]) -> None:
    """The run in MLflow holds all of the training, each epoch once."""
    client = MlflowClient()
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["model"] == "resnet20"
    assert {one.dataset.name for one in run.inputs.dataset_inputs} == {"digits/train", "digits/test"}
    points = client.get_metric_history(run_id, "train/loss")
    assert [point.step for point in points] == list(range(5))
    assert [point.value for point in points] == losses
    assert len(client.get_metric_history(run_id, "dynamics/integration")) == 2
    model = mlflow.pyfunc.load_model(f"runs:/{run_id}/{MODEL}")
    side = model.metadata.signature.inputs.inputs[0].shape[-1]
    assert model.predict(np.zeros((3, 1, side, side), np.float32)).shape == (3, 10)


@pytest.mark.slow
def test_a_server_that_was_never_there_costs_nothing(
    proxy: FaultyProxy, tmp_path: Path, losses: list[float]
) -> None:
    mlflow.set_tracking_uri(proxy.uri)
    proxy.refuse()
    begin = time.time()
    training = start(proxy, tmp_path)
    output, errors = training.communicate(timeout=OVERHEAD_S + 60)
    end = time.time()
    assert training.returncode == 0, errors[-3000:]
    assert output.count("epoch ") >= 5
    assert errors.count("takes no run") == 1
    assert errors.count("mlflow-dynamics sync") == 1
    proxy.listen()
    (sent,) = sync(tmp_path / ".mlflow_dynamics")
    assert sent.left == 0, sent.reason
    assert sent.run_id is not None
    assert_whole(sent.run_id, losses)
    info = MlflowClient().get_run(sent.run_id).info
    assert begin <= info.start_time / 1000 <= info.end_time / 1000 <= end


@pytest.mark.slow
def test_a_server_that_goes_away_costs_nothing(
    proxy: FaultyProxy, tmp_path: Path, losses: list[float]
) -> None:
    mlflow.set_tracking_uri(proxy.uri)
    training = start(proxy, tmp_path)
    assert training.stdout is not None
    training.stdout.readline()
    proxy.refuse()
    _, errors = training.communicate(timeout=OVERHEAD_S + 60)
    assert training.returncode == 0, errors[-3000:]
    assert "Traceback" not in errors
    assert errors.count("mlflow-dynamics sync") == 1
    proxy.listen()
    (sent,) = sync(tmp_path / ".mlflow_dynamics")
    assert sent.left == 0, sent.reason
    assert sent.run_id is not None
    assert_whole(sent.run_id, losses)


@pytest.mark.slow
def test_the_run_that_mlflow_run_prepared_is_completed_later(
    proxy: FaultyProxy, server: MlflowServer, tmp_path: Path, losses: list[float]
) -> None:
    mlflow.set_tracking_uri(proxy.uri)
    prepared = MlflowClient(server.uri).create_run("0").info.run_id
    MlflowClient(server.uri).log_param(prepared, "epochs", "5")
    proxy.refuse()
    training = start(proxy, tmp_path, MLFLOW_RUN_ID=prepared)
    _, errors = training.communicate(timeout=OVERHEAD_S + 60)
    assert training.returncode == 0, errors[-3000:]
    proxy.listen()
    (sent,) = sync(tmp_path / ".mlflow_dynamics")
    assert (sent.run_id, sent.left) == (prepared, 0), sent.reason
    assert_whole(prepared, losses)
    assert MlflowClient().get_run(prepared).info.run_name == TITLE


def test_a_grid_without_its_server_says_so_before_it_trains(proxy: FaultyProxy, tmp_path: Path) -> None:
    mlflow.set_tracking_uri(proxy.uri)
    proxy.refuse()
    with pytest.raises(
        TrackingError, match=r"The grid asks MLflow at http://127.0.0.1:[0-9]+ what is already"
    ):
        train_grid([TrainingConfig(epochs=1)])


def test_a_folder_of_checkpoints_that_a_checkout_links_elsewhere_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/store.db")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / ".mlflow_dynamics").mkdir(mode=0o700)
    (tmp_path / ".mlflow_dynamics" / "checkpoints").symlink_to(elsewhere)
    with pytest.raises(SystemExit) as exit_status:
        main(["train", "--epochs", "1", "--limit-train", "64", "--limit-test", "32"])
    assert exit_status.value.code == 2
    assert "it is a link" in capsys.readouterr().err
    assert list(elsewhere.iterdir()) == []
    assert mlflow.search_runs(search_all_experiments=True, output_format="list") == []
