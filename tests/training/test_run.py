"""Whole trainings through the command line: the content of a run, how it ends, and how it is carried on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pyarrow.dataset as ds
import pytest
from mlflow.entities import Run
from waiting import wait_until
from warm_python import COLD

from mlflow_dynamics.cli import main
from mlflow_dynamics.convergence import Schedule
from mlflow_dynamics.convergence.schedule import schedule_of
from mlflow_dynamics.recomputing import recompute, settings_of
from mlflow_dynamics.tracking.settings import warning_in
from mlflow_dynamics.training.data import load_dataset
from mlflow_dynamics.training.optimisation import drop_epochs

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


@pytest.mark.drawn
def test_a_run_holds_what_it_promises(folder: Path) -> None:
    train("--epochs", "6", *QUICK)
    (run,) = runs()
    assert run.info.status == "FINISHED"
    for key in ("train/loss", "validation/accuracy", "train/learning_rate", "train/images_per_second"):
        assert list(series(run, key)) == list(range(6)), key
    for key in ("integration", "metastability", "synchrony", "stability", "details/layers_dropped"):
        assert list(series(run, f"dynamics/{key}")) == [1, 2, 3, 4, 5], key
    # Of 20 steps an epoch a window holds 60, and the first 40 steps are left out.
    assert list(series(run, "dynamics/details/window").values()) == [20, 40, 60, 60, 60, 60]
    assert list(series(run, "dynamics/details/start_up").values()) == [1, 1, 1, 1, 0, 0]
    assert list(series(run, "dynamics/volatility")) == []

    table = activations(run).to_table().to_pandas()
    assert sorted(table["epoch"].unique()) == list(range(6))
    assert sorted(table["step"].unique()) == list(range(120))
    assert len(table) == 120 * table["layer"].nunique()
    assert np.isfinite(table[["mean", "std"]]).all(axis=None)

    assert run.data.params["model"] == "resnet20"
    assert run.data.params["window"] == "auto"
    assert run.data.params["version/torch"].startswith("2.")
    assert run.info.run_name == (
        "resnet20 on digits, sgd onecycle, seed 3, epochs 6, limit_train 640, limit_test 64, image_size 8"
    )
    assert not list(folder.glob(".mlflow_dynamics/checkpoints/*"))


def test_each_setting_is_one_parameter_and_is_read_back(folder: Path) -> None:
    train("--epochs", "4", *QUICK, "--window", "256", "--signal", "std", "--schedule", "step")
    (run,) = runs()
    last = [key.rpartition("/")[2] for key in run.data.params if not key.startswith("version/")]
    assert len(last) == len(set(last)), sorted(last)
    assert not {"mode", "planned_epochs", "run_name"} & set(last)
    assert (settings_of(run.info.run_id).window, settings_of(run.info.run_id).signal) == (256, "std")
    judged = schedule_of(warning_in(run.data.params))
    assert judged == Schedule(name="step", planned_epochs=4, drop_epochs=drop_epochs(4))
    logged = [series(run, key) for key in ("dynamics/integration", "dynamics/stability")]
    again = list(recompute(run.info.run_id, settings_of(run.info.run_id)))
    for values, field in zip(logged, ("integration", "stability"), strict=True):
        assert values == {
            one.epoch: getattr(one.measures, field) for one in again if one.measures.reason is None
        }


def test_the_parts_of_the_data_have_digests_schema_and_profile_of_their_own(folder: Path) -> None:
    train("--epochs", "1", *QUICK)
    train("--epochs", "1", *QUICK, "--limit-test", "32")
    parts = [{one.dataset.name: one.dataset for one in run.inputs.dataset_inputs} for run in runs()]
    assert [set(one) for one in parts] == [{"digits/train", "digits/test"}] * 2
    first, second = parts
    assert first["digits/train"].digest == second["digits/train"].digest
    assert len({first["digits/train"].digest, first["digits/test"].digest, second["digits/test"].digest}) == 3
    profile = json.loads(second["digits/test"].profile)
    assert (profile["images"], profile["classes"], sum(profile["images_per_class"].values())) == (32, 10, 32)
    schema = json.loads(first["digits/train"].schema)["mlflow_tensorspec"]
    assert json.loads(schema["features"])[0]["tensor-spec"] == {"dtype": "float32", "shape": [-1, 1, 8, 8]}


def test_the_model_has_the_best_epochs_weights_and_metrics_and_its_data_sets(folder: Path) -> None:
    # Its rate diverges after some epochs, so that the best one is not the last.
    train("--epochs", "5", *QUICK, "--schedule", "constant", "--learning-rate", "1.0")
    (run,) = runs()
    accuracy = series(run, "validation/accuracy")
    best = max(accuracy, key=lambda epoch: accuracy[epoch])
    assert best < 4
    (found,) = mlflow.MlflowClient().search_logged_models([run.info.experiment_id])
    logged = mlflow.get_logged_model(found.model_id)
    assert (logged.status, logged.source_run_id) == ("READY", run.info.run_id)
    assert logged.name.startswith("resnet20-on-digits-sgd-constant-seed-3-epochs-5-learning_rate-1-0")
    assert [(one.model_id, one.step) for one in run.outputs.model_outputs] == [(logged.model_id, best)]
    assert logged.params == run.data.params
    metrics = {one.key: one for one in logged.metrics}
    assert len(metrics) == len(logged.metrics)
    assert not any(key.startswith("system/") for key in metrics)
    for key in ("train/loss", "validation/loss", "validation/accuracy"):
        assert (metrics[key].step, metrics[key].value) == (best, series(run, key)[best])
    digests = {one.dataset.name: one.dataset.digest for one in run.inputs.dataset_inputs}
    for key, name in (("train/loss", "digits/train"), ("validation/accuracy", "digits/test")):
        assert (metrics[key].dataset_name, metrics[key].dataset_digest) == (name, digests[name])

    data = load_dataset(
        "digits", data_dir=folder, limit_train=640, limit_test=64, image_size=8, augment=False, seed=3
    )
    images = np.stack([image.numpy() for image, _ in data.test])
    model = mlflow.pyfunc.load_model(logged.model_uri)
    assert model.metadata.signature.inputs.inputs[0].shape == (-1, *images.shape[1:])
    predicted = model.predict(images).argmax(1)
    assert (predicted == data.test.labels.numpy()).mean() == pytest.approx(accuracy[best])
    assert mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/{logged.name}").predict(images[:1]).shape == (
        1,
        10,
    )


def test_the_run_takes_the_name_it_is_given(folder: Path) -> None:
    train("--epochs", "1", *QUICK, "--run-name", "Third try: 0.1")
    (run,) = runs()
    assert run.info.run_name == "Third try: 0.1"
    (model,) = mlflow.MlflowClient().search_logged_models([run.info.experiment_id])
    assert model.name == "Third-try-0-1"


def test_of_a_run_that_mlflow_run_made_a_chosen_name_stays_and_a_made_up_one_goes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mlflow.MlflowClient()
    for name in (None, "Mine"):
        prepared = client.create_run("0", run_name=name).info.run_id
        monkeypatch.setenv("MLFLOW_RUN_ID", prepared)
        train("--epochs", "1", *QUICK)
    unnamed, named = runs()
    assert unnamed.info.run_name.startswith("resnet20 on digits, sgd onecycle, seed 3")
    assert named.info.run_name == "Mine"
    page = mlflow.artifacts.download_artifacts(
        run_id=unnamed.info.run_id, artifact_path="dynamics/activations"
    )
    assert Path(page).is_dir()


def test_a_seed_gives_the_same_losses_twice_and_recording_does_not_change_them(folder: Path) -> None:
    train("--epochs", "2", *QUICK)
    train("--epochs", "2", *QUICK, "--record-every", "7", "--early-stopping", "off")
    first, second = runs()
    for key in ("train/loss", "validation/loss"):
        assert series(first, key) == series(second, key)


@pytest.mark.parametrize(
    ("number", "resume", "status"), [(signal.SIGKILL, None, "RUNNING"), (signal.SIGTERM, "auto", "KILLED")]
)
def test_a_training_goes_on_in_its_run_as_if_it_had_never_stopped(
    number: int, resume: str | None, status: str, folder: Path
) -> None:
    train("--epochs", "9", *QUICK)
    same = ("--epochs", "9", *QUICK, *(("--resume", resume) if resume else ()))
    with subprocess.Popen(command(*same), env=environment(), stdout=subprocess.PIPE, text=True) as process:
        wait_for_epoch(2, process)
        process.send_signal(number)
        process.communicate()  # until its stdout is closed: the fork that trains is killed after `python` is
    killed = runs()[-1]
    assert killed.info.status == status
    train(*same, *(() if resume else ("--resume", killed.info.run_id)))
    whole, resumed = runs()
    assert (resumed.info.run_id, resumed.info.status) == (killed.info.run_id, "FINISHED")
    for key in ("train/loss", "validation/loss"):
        assert series(resumed, key) == series(whole, key), key
    for key in ("dynamics/stability", "dynamics/integration"):
        assert series(resumed, key) == pytest.approx(series(whole, key), rel=1e-9), key
    one, other = (
        activations(run).to_table().sort_by([("step", "ascending"), ("layer", "ascending")])
        for run in (whole, resumed)
    )
    assert one.equals(other)


@pytest.mark.drawn
def test_an_interrupted_training_ends_as_killed_with_what_it_recorded(folder: Path) -> None:
    with subprocess.Popen(
        command("--epochs", "50", *QUICK),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs this in the background has it ignore Ctrl-C, and a child inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        wait_for_epoch(1, process)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=200)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    (run,) = runs()
    assert run.info.status == "KILLED"
    epochs = set(series(run, "train/loss"))
    assert {0, 1} <= epochs
    assert set(activations(run).to_table()["epoch"].to_pylist()) == epochs


def test_ctrl_c_under_mlflow_run_leaves_a_killed_run(folder: Path) -> None:
    launcher = [
        COLD,  # whose group the signal goes to
        "-m",
        "mlflow",
        "run",
        str(ROOT),
        "--env-manager",
        "local",
    ]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with subprocess.Popen(
        [*launcher, "-P", "limit_train=640", "-P", "limit_test=64"],
        env=environment() | {"PATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        wait_until(lambda: any(1 in series(run, "train/loss") for run in runs()))
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the launcher and the training alike
        assert process.wait(200) != 0
    wait_until(lambda: runs()[0].info.status == "KILLED")
    (run,) = runs()
    assert {0, 1} <= set(series(run, "train/loss"))


def wait_for_epoch(epoch: int, process: subprocess.Popen[str]) -> None:
    """Until the process prints that it has ended; MLflow may have it only when all epochs have."""
    assert process.stdout is not None
    assert any(line.startswith(f"epoch {epoch:3d} ") for line in process.stdout)


BAD_INPUT = {
    ("--model", "resnet21"): ("model='resnet21'", "resnet20"),
    ("--dataset", "cifar11"): ("dataset='cifar11'", "cifar10"),
    ("--schedule", "onecylce"): ("schedule='onecylce'", "onecycle"),
    ("--device", "cuda:99"): ("device='cuda:99'", "which has cpu"),
    ("--epochs", "0"): ("epochs=0", "at least 1"),
    ("--batch-size", "-4"): ("batch_size=-4", "at least 1"),
    ("--learning-rate", "nan"): ("learning_rate=nan", "above 0"),
    ("--window", "10"): ("window=10", "32"),
    ("--dataset", "parquet:nowhere"): ("nowhere", "parquet"),
    ("--dataset", "imagefolder:nowhere"): ("nowhere", "imagefolder"),
    ("--model", "vgg16", "--image-size", "4"): ("image_size", "vgg16"),
    ("--checkpoint", "nothing.pt"): ("checkpoint='nothing.pt'", "weights file"),
    ("--resume", "deadbeef"): ("resume='deadbeef'", "checkpoint"),
    ("--run-name", " "): ("run_name=' '", "auto"),
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
    assert not runs()


def test_bad_input_ends_the_process_with_status_2_and_no_traceback() -> None:
    done = subprocess.run(
        command("--model", "resnet21"), env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
