"""A server that asks for credentials: the refusal is logged at once, with variables to set, and is not an outage."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import requests
from click.testing import CliRunner
from mlflow import MlflowClient
from tracking_records import assert_complete, layers, write_epoch
from tracking_server import Asked, FaultyProxy, Lie, MlflowServer
from waiting import wait_until

import mlflow_dynamics
from mlflow_dynamics.cli import commands
from mlflow_dynamics.errors import TrackingError
from mlflow_dynamics.tracking import RunWriter, end_run, open_run
from mlflow_dynamics.tracking.sync import sync, sync_in_background

SET = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
ADMIN, PASSWORD = "admin", secrets.token_urlsafe(16)
"""Of the server that these tests start: MLflow has no password of its own for it."""


@pytest.fixture(scope="module")
def guarded(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """MLflow's own server with users and passwords."""
    pytest.importorskip("flask_wtf", reason="`mlflow server --app-name basic-auth` needs flask-wtf")
    folder = tmp_path_factory.mktemp("guarded")
    made_up = {
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(16),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
    }
    with MlflowServer(folder, empty_store, app="basic-auth", environment=made_up) as running:
        yield running


def log_in(monkeypatch: pytest.MonkeyPatch, user: str, password: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)


def record(epochs: int = 2) -> str:
    """A recording of a run of its own, closed; returns the run's id or its local name."""
    run = open_run()
    writer = RunWriter(run.run).start()
    writer.write_layers(layers())
    for epoch in range(epochs):
        write_epoch(writer, epoch)
    end_run(writer)
    return str(run.run)


def errors_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]


@pytest.mark.parametrize(
    ("login", "said"),
    [
        (None, f"it asks for credentials and none are set (401); set {SET}"),
        ((ADMIN, "wrong"), f"it refuses the credentials that are set (401); correct {SET}"),
    ],
)
def test_refused_credentials_are_an_error_of_their_own_and_sync_sends_with_the_right_ones(
    login: tuple[str, str] | None,
    said: str,
    guarded: MlflowServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if login is not None:
        log_in(monkeypatch, *login)
    mlflow.set_tracking_uri(guarded.uri)
    began = time.monotonic()
    name = record()
    assert time.monotonic() - began < 25, "a server that refuses is not waited for, as a dead one is for 30 s"
    first, *later = errors_in(caplog)
    assert first.startswith(f"MLflow at {guarded.uri} takes no run: {said}. Training goes on, recorded in ")
    assert later == []
    with pytest.raises(TrackingError, match=r"cannot be read: it .* \(401\); .*MLFLOW_TRACKING_USERNAME"):
        mlflow_dynamics.search_runs("Default")
    shown = CliRunner().invoke(commands, ["sync"])
    assert (shown.exit_code, said in shown.output) == (3, True)

    log_in(monkeypatch, ADMIN, PASSWORD)
    assert CliRunner().invoke(commands, ["sync"]).exit_code == 0
    (run,) = MlflowClient().search_runs(["0"], f"tags.`dynamics.local_id` = '{name.removeprefix('local-')}'")
    assert_complete(guarded.uri, run.info.run_id, 2)


def test_a_user_without_the_permission_is_told_so(
    guarded: MlflowServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reader = {"username": "reader", "password": secrets.token_urlsafe(16)}
    made = requests.post(
        f"{guarded.uri}/api/2.0/mlflow/users/create", json=reader, auth=(ADMIN, PASSWORD), timeout=30
    )
    made.raise_for_status()
    log_in(monkeypatch, reader["username"], reader["password"])
    mlflow.set_tracking_uri(guarded.uri)
    record()
    (said,) = errors_in(caplog)
    assert "takes no run: it does not permit this (403); ask for the permission, or set MLFLOW_" in said


def test_right_credentials_record_through_the_proxied_artifacts(
    guarded: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(monkeypatch, ADMIN, PASSWORD)
    mlflow.set_tracking_uri(guarded.uri)
    assert_complete(guarded.uri, record(), 2)


def test_credentials_that_expire_are_said_at_once_and_asked_for_less_and_less(
    proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = str(MlflowClient(proxy.uri).create_run("0").info.run_id)
    writer = RunWriter(run_id, tracking_uri=proxy.uri).start()
    write_epoch(writer, 0)
    wait_until(lambda: not writer._spool.entries())
    proxy.fault = 401
    write_epoch(writer, 1)
    wait_until(lambda: errors_in(caplog))
    proxy.fault = None
    assert writer.close(60) == 0
    (said,) = errors_in(caplog)
    assert said.startswith(f"MLflow at {proxy.uri} takes nothing of this training: it asks for credentials")
    assert_complete(proxy.uri, run_id, 2)


@pytest.mark.parametrize("status", [401, 403])
def test_runs_that_an_earlier_training_left_are_not_tried_where_the_next_one_is_refused(
    status: int, proxy: FaultyProxy, tmp_path: Path
) -> None:
    mlflow.set_tracking_uri(proxy.uri)
    left = [str(MlflowClient(proxy.uri).create_run("0").info.run_id) for _ in range(3)]
    proxy.fault = status
    for run_id in left:
        writer = RunWriter(run_id)
        write_epoch(writer, 0)
        writer._spool.close()
    asked: list[str] = []

    def listen(one: Asked) -> Lie | None:
        asked.append(one.path + one.body.decode(errors="replace"))
        return None

    proxy.lies = listen
    thread = sync_in_background(
        tmp_path / ".mlflow_dynamics", own=tmp_path / "another", tracking_uri=proxy.uri
    )
    assert thread is not None
    thread.join(30)
    assert asked
    assert [path for path in asked if any(run_id in path for run_id in left)] == []
    runs = sync()
    assert [run.tried for run in runs] == [True, False, False]
    assert all(f"({status})" in str(run.reason) for run in runs)
    asked.clear()
    proxy.fault = None
    assert all(run.left == 0 for run in sync())
