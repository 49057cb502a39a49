"""The requests of `train` besides recording, to a server that lies: no file goes astray, and the model is kept."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path

import mlflow
import pytest
import torch
from faulty_training import warnings_of
from lies import FOREIGN, LOGIN, told
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from torch import nn
from tracking_server import Asked, FaultyProxy, Lie, MlflowServer

from mlflow_dynamics.errors import TrackingError
from mlflow_dynamics.tracking import RunWriter, names
from mlflow_dynamics.tracking.query import created_run, tagged_runs
from mlflow_dynamics.training import logged_model
from mlflow_dynamics.training.best import BestWeights
from mlflow_dynamics.training.data import ImageData, load_dataset
from mlflow_dynamics.training.inputs import log_inputs
from mlflow_dynamics.training.interruption import main as mark_ended
from mlflow_dynamics.training.launched import keep_in_launched_run, launched_run
from mlflow_dynamics.training.logged_model import log_model
from mlflow_dynamics.training.loop import Trainer

TOKEN = "token-that-nobody-else-gets"
NAME = "small"
MADE = "/mlflow/logged-models"
LAUNCHED = {"mlflow.source.type": "PROJECT", "mlflow.project.entryPoint": "report"}


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text(f"default login me password {TOKEN}")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)


def placed(artifact_uri: str, *, of: str) -> Lie:
    """The truth about a `run` or `model`, but for where its files are."""

    def altered(content: bytes) -> bytes:
        answer = json.loads(content)
        answer[of]["info"]["artifact_uri"] = artifact_uri
        return json.dumps(answer).encode()

    return Lie(altered=altered)


def digits(folder: Path) -> ImageData:
    return load_dataset(
        "digits", data_dir=folder, limit_train=8, limit_test=4, image_size=8, augment=False, seed=0
    )


def log_small_model(uri: str, folder: Path) -> str:
    """Record an epoch and log the model of it; returns the run's id."""
    mlflow.set_tracking_uri(uri)
    run_id = str(MlflowClient(uri).create_run("0").info.run_id)
    data = digits(folder)
    writer = RunWriter(run_id).start()
    inputs = log_inputs(writer, data)
    writer.write_epoch(0, None, {names.TRAIN_LOSS: 1.0}, None, 1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    began = time.monotonic()
    log_model(writer, model, name=NAME, epoch=0, images=data.test, inputs=inputs)
    assert time.monotonic() - began < 60  # MLflow's own client tries for minutes
    assert writer.close(60) == 0
    return run_id


def logged_models(uri: str, run_id: str) -> list[LoggedModel]:
    found = MlflowClient(uri).search_logged_models(["0"])
    return [one for one in found if one.source_run_id == run_id]


def assert_kept_in_the_run(uri: str, run_id: str) -> None:
    mlflow.set_tracking_uri(uri)
    assert [one for one in logged_models(uri, run_id) if one.status == "READY"] == []
    files = {one.path for one in MlflowClient(uri).list_artifacts(run_id, NAME)}
    assert {f"{NAME}/MLmodel", f"{NAME}/data"} <= files


def test_a_model_is_logged_where_nobody_lies(
    proxy: FaultyProxy, server: MlflowServer, tmp_path: Path
) -> None:
    run_id = log_small_model(proxy.uri, tmp_path)
    (logged,) = logged_models(server.uri, run_id)
    assert logged.status == "READY"
    assert MlflowClient(server.uri).list_artifacts(run_id) == []
    described = mlflow.models.Model.load(f"models:/{logged.model_id}")
    assert (described.model_id, described.run_id) == (logged.model_id, run_id)


@pytest.mark.parametrize(
    "place", ["{}", "file://{}", f"{{}}/{FOREIGN}", "s3://bucket/somewhere", "runs:/x/y"]
)
def test_a_models_files_are_put_into_no_place_that_is_not_its_own(
    place: str,
    proxy: FaultyProxy,
    server: MlflowServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    proxy.lies = told({MADE: placed(place.format(outside), of="model")})
    run_id = log_small_model(proxy.uri, tmp_path)
    assert list(outside.rglob("*")) == []
    assert_kept_in_the_run(server.uri, run_id)
    (said,) = warnings_of(caplog)
    assert "that is not the model's own folder" in said
    assert said.endswith(f". The model is kept as files of the run, in its folder {NAME}.")
    (logged,) = logged_models(server.uri, run_id)
    assert logged.status == "FAILED"


def test_another_host_gets_a_models_files_but_no_credentials(
    proxy: FaultyProxy, server: MlflowServer, elsewhere: tuple[FaultyProxy, list[Asked]], tmp_path: Path
) -> None:
    other, seen = elsewhere
    proxy.lies = told({MADE: placed(f"{other.uri}/api/2.0/mlflow-artifacts/artifacts/0", of="model")})
    run_id = log_small_model(proxy.uri, tmp_path)
    assert "PUT" in {one.method for one in seen}
    for one in seen:
        assert "Authorization" not in one.headers
        assert TOKEN not in str(one)
    assert_kept_in_the_run(server.uri, run_id)  # for the page that answers is no listing of them


@pytest.mark.parametrize("method", ["POST", "PATCH"])
@pytest.mark.parametrize("answer", [307, 503, 404, b"{}", b'{"model": {"info": {"model_id": "../x"}}}', None])
def test_a_bad_answer_about_a_logged_model_costs_no_training_its_end(
    answer: int | bytes | None,
    method: str,
    proxy: FaultyProxy,
    server: MlflowServer,
    elsewhere: tuple[FaultyProxy, list[Asked]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    other, seen = elsewhere
    to_other = {"Location": f"{other.uri}/taken"}
    lie = (
        Lie(status=answer, headers=to_other if answer == 307 else {})
        if isinstance(answer, int)
        else LOGIN
        if answer is None
        else Lie(body=answer)
    )
    proxy.lies = lambda asked: lie if MADE in asked.path and asked.method == method else None
    run_id = log_small_model(proxy.uri, tmp_path)
    assert seen == []
    assert_kept_in_the_run(server.uri, run_id)
    (said,) = warnings_of(caplog)
    assert said.startswith(f"MLflow at {proxy.uri} takes no logged model: ")
    assert "\n" not in said


def test_a_page_of_a_launched_run_is_put_into_no_place_that_is_not_the_runs_own(
    proxy: FaultyProxy, server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.set_tracking_uri(proxy.uri)
    run_id = str(MlflowClient(server.uri).create_run("0", tags=LAUNCHED).info.run_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    page, outside = tmp_path / "page.html", tmp_path / "outside"
    page.write_text("page")
    outside.mkdir()
    proxy.lies = told({"/runs/get?": placed(str(outside), of="run")})
    with pytest.raises(TrackingError, match=r"^'Mine' is drawn and cannot be kept in run .* own folder"):
        keep_in_launched_run("report", [page], title="Mine")
    assert list(outside.iterdir()) == []
    proxy.lies = lambda asked: None
    keep_in_launched_run("report", [page], title="Mine")
    client = MlflowClient(server.uri)
    assert [one.path for one in client.list_artifacts(run_id, "dynamics")] == ["dynamics/page.html"]
    assert client.get_run(run_id).info.run_name == "Mine"


def test_what_train_asks_of_runs_follows_no_redirect_and_takes_no_bad_answer(
    proxy: FaultyProxy,
    server: MlflowServer,
    elsewhere: tuple[FaultyProxy, list[Asked]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other, seen = elsewhere
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # of who can wait
    mlflow.set_tracking_uri(proxy.uri)
    run_id = str(MlflowClient(server.uri).create_run("0", tags=LAUNCHED).info.run_id)
    redirected = Lie(status=307, headers={"Location": f"{other.uri}/taken"})
    for lie in (
        redirected,
        LOGIN,
        Lie(status=503),
        Lie(body=b'{"runs": [{}], "experiments": [{}], "run": {}}'),
    ):
        proxy.lies = lambda asked, lie=lie: lie
        began = time.monotonic()
        assert launched_run("report", run_id) is None
        assert time.monotonic() - began < 10
        for ask in (lambda: created_run(f"local-{FOREIGN}"), lambda: tagged_runs("0", "cell", "x")):
            with pytest.raises(TrackingError) as refused:
                ask()
            assert "\n" not in str(refused.value)
    proxy.lies = lambda asked: redirected
    for then in ("kill", "delete"):
        with pytest.raises(mlflow.MlflowException, match="no redirect is followed"):
            mark_ended(run_id, "999999999", then)
    assert seen == []
    proxy.lies = lambda asked: None
    mark_ended(run_id, "999999999", "kill")
    assert MlflowClient(server.uri).get_run(run_id).info.status == "KILLED"


def test_a_logged_model_that_is_answered_byte_by_byte_is_given_up(
    proxy: FaultyProxy, server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logged_model, "LOG_TIMEOUT_S", 1.0)
    monkeypatch.setattr(logged_model, "SLOWEST_BYTES_PER_S", 100_000)
    proxy.lies = told({MADE: Lie(body=b" " * 1000, drip_s=0.1)})
    began = time.monotonic()
    run_id = log_small_model(proxy.uri, tmp_path)
    assert time.monotonic() - began < 30
    assert_kept_in_the_run(server.uri, run_id)


def test_the_weights_that_a_training_keeps_are_this_users_alone(tmp_path: Path) -> None:
    data = digits(tmp_path)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    trainer = Trainer(
        model=model,
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.ConstantLR(optimizer),
        data=data,
        batch_size=4,
        device=torch.device("cpu"),
        precision="fp32",
        seed=0,
        workers=0,
    )
    folder = tmp_path / "kept"
    (epoch,) = trainer.epochs(1)
    BestWeights(folder / "first.best").keep(epoch, model)
    trainer.save(folder / "first.pt", trained={})
    trainer.restore(folder / "first.pt")
    assert BestWeights(folder / "first.best").restore(model) == 0
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.iterdir()]}
    assert modes == {"kept": 0o700, "first.best": 0o600, "first.pt": 0o600}
