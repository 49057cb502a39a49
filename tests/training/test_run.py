"""Whole trainings through the command line: what a run holds, how it ends, how it is carried on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import pyarrow.dataset as ds
import pytest
from mlflow.entities import Run

from mlflow_dynamics.cli import main

ROOT = Path(__file__).parents[2]

QUICK = ("--limit-train", "640", "--limit-test", "64", "--image-size", "8", "--seed", "3")
"""Digits at their own size, 20 steps an epoch: the measures begin in epoch 3."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The working folder, which holds the store."""
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mlflow_dynamics.cli", "train", *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "OMP_NUM_THREADS": "1"}


def train(*arguments: str) -> None:
    """In this process: to load torch and MLflow takes longer than to train."""
    main(["train", *arguments])


def runs() -> list[Run]:
    return mlflow.search_runs(
        search_all_experiments=True, output_format="list", order_by=["attributes.start_time"]
    )


def series(run: Run, key: str) -> dict[int, float]:
    points = mlflow.MlflowClient().get_metric_history(run.info.run_id, key)
    values = {point.step: point.value for point in points}
    assert len(values) == len(points), f"{key} has two values at one epoch"
    return values


def activations(run: Run) -> ds.Dataset:
    folder = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="dynamics/activations")
    return ds.dataset(folder, partitioning="hive")


def test_a_run_holds_what_it_promises(folder: Path) -> None:
    train("--epochs", "6", *QUICK)
    (run,) = runs()
    assert run.info.status == "FINISHED"
    for key in ("train/loss", "validation/accuracy", "train/learning_rate", "train/images_per_second"):
        assert list(series(run, key)) == list(range(6)), key
    for key in ("integration", "metastability", "synchrony", "stability", "layers_dropped"):
        assert list(series(run, f"dynamics/{key}")) == [3, 4, 5], key
    assert list(series(run, "dynamics/volatility")) == [4, 5]

    table = activations(run).to_table().to_pandas()
    assert sorted(table["epoch"].unique()) == list(range(6))
    assert sorted(table["step"].unique()) == list(range(120))
    assert len(table) == 120 * table["layer"].nunique()
    assert np.isfinite(table[["mean", "std"]]).all(axis=None)

    assert run.data.params["model"] == "resnet20"
    assert run.data.params["dynamics/window"] == "512"
    assert run.data.params["version/torch"].startswith("2.")
    (train_input, test_input) = run.inputs.dataset_inputs
    assert {train_input.dataset.name, test_input.dataset.name} == {"digits/train", "digits/test"}

    (logged,) = mlflow.MlflowClient().search_logged_models([run.info.experiment_id])
    model = mlflow.pyfunc.load_model(logged.model_uri)
    side = model.metadata.signature.inputs.inputs[0].shape[-1]
    assert model.predict(np.zeros((5, 1, side, side), np.float32)).shape == (5, 10)
    assert not list(folder.glob(".mlflow_dynamics/checkpoints/*.pt"))


def test_a_seed_gives_the_same_losses_twice_and_recording_does_not_change_them(folder: Path) -> None:
    train("--epochs", "2", *QUICK)
    train("--epochs", "2", *QUICK, "--record-every", "7", "--early-stopping", "off")
    first, second = runs()
    for key in ("train/loss", "validation/loss"):
        assert series(first, key) == series(second, key)


def test_a_killed_training_is_carried_on_as_if_it_had_never_stopped(folder: Path) -> None:
    train("--epochs", "12", *QUICK)
    with subprocess.Popen(
        command("--epochs", "12", *QUICK), env=environment(), stderr=subprocess.DEVNULL
    ) as process:
        wait_for_epoch(2)
        process.send_signal(signal.SIGKILL)
    killed = runs()[-1]
    train("--epochs", "12", *QUICK, "--resume", killed.info.run_id)
    whole, _, resumed = runs()
    for key in ("train/loss", "validation/loss"):
        assert series(resumed, key) == series(whole, key), key
    for key in ("dynamics/stability", "dynamics/integration"):
        assert series(resumed, key) == pytest.approx(series(whole, key), rel=1e-9), key
    one, other = (
        activations(run).to_table().sort_by([("step", "ascending"), ("layer", "ascending")])
        for run in (whole, resumed)
    )
    assert one.equals(other)


def test_an_interrupted_training_ends_as_killed_with_what_it_recorded(folder: Path) -> None:
    with subprocess.Popen(
        command("--epochs", "50", *QUICK),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs this in the background has it ignore Ctrl-C, and a child inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        wait_for_epoch(1)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    (run,) = runs()
    assert run.info.status == "KILLED"
    epochs = set(series(run, "train/loss"))
    assert {0, 1} <= epochs
    assert set(activations(run).to_table()["epoch"].to_pylist()) == epochs


def test_ctrl_c_under_mlflow_run_leaves_a_killed_run(folder: Path) -> None:
    launcher = [sys.executable, "-m", "mlflow", "run", str(ROOT), "--env-manager", "local"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with subprocess.Popen(
        [*launcher, "-P", "limit_train=640", "-P", "limit_test=64"],
        env=environment() | {"PATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        wait_for_epoch(1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the launcher and the training alike
        assert process.wait(60) != 0
    deadline = time.monotonic() + 60
    while runs()[0].info.status != "KILLED" and time.monotonic() < deadline:
        time.sleep(0.2)
    (run,) = runs()
    assert run.info.status == "KILLED"
    assert {0, 1} <= set(series(run, "train/loss"))


def wait_for_epoch(epoch: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if any(epoch in series(run, "train/loss") for run in runs() if run.info.status == "RUNNING"):
            return
        time.sleep(0.1)
    pytest.fail(f"epoch {epoch} did not come")


BAD_INPUT = {
    ("--model", "resnet21"): ("model='resnet21'", "resnet20"),
    ("--dataset", "cifar11"): ("dataset='cifar11'", "cifar10"),
    ("--schedule", "onecylce"): ("schedule='onecylce'", "onecycle"),
    ("--device", "cuda:99"): ("device='cuda:99'", "cpu"),
    ("--epochs", "0"): ("epochs=0", "at least 1"),
    ("--batch-size", "-4"): ("batch_size=-4", "at least 1"),
    ("--learning-rate", "nan"): ("learning_rate=nan", "above 0"),
    ("--window", "10"): ("window=10", "64"),
    ("--dataset", "parquet:nowhere"): ("nowhere", "parquet"),
    ("--dataset", "imagefolder:nowhere"): ("nowhere", "imagefolder"),
    ("--model", "vgg16", "--image-size", "4"): ("image_size", "vgg16"),
    ("--checkpoint", "nothing.pt"): ("checkpoint='nothing.pt'", "weights file"),
    ("--resume", "deadbeef"): ("resume='deadbeef'", "checkpoint"),
    ("--bacth-size", "3"): ("--bacth-size", "--batch-size"),
    ("--detector", "volatilty"): ("detector='volatilty'", "volatility"),
    ("--epochs", "many"): ("--epochs", "integer"),
}


@pytest.mark.parametrize("arguments", BAD_INPUT, ids=" ".join)
def test_bad_input_gets_one_sentence(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["train", *arguments])
    assert left.value.code == 2
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    for part in BAD_INPUT[arguments]:
        assert part in sentence
    assert {run.info.status for run in runs()} <= {"FAILED"}
    assert not any(run.data.metrics for run in runs())


def test_bad_input_ends_the_process_with_status_2_and_no_traceback() -> None:
    done = subprocess.run(
        command("--model", "resnet21"), env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
