"""A server with arbitrary answers: no file is written to a wrong place, nothing is lost, and no secret is sent."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import stat
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from faulty_training import (
    LONGEST_WAIT_S,
    assert_every_epoch_once,
    train_tracked,
    until_it_fails,
    warnings_of,
)
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from lies import CALLS, FOREIGN, IDS, LOGIN, lies, run_answer, told
from mlflow import MlflowClient
from mlflow.entities import Run, RunData, RunInfo
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.utils.rest_utils import MlflowHostCreds
from tracking_records import assert_complete, layers, write_epoch
from tracking_server import Asked, FaultyProxy, Lie, MlflowServer
from waiting import wait_until

import mlflow_dynamics
from mlflow_dynamics import cli
from mlflow_dynamics.errors import DynamicsError, TrackingError
from mlflow_dynamics.recomputing import log_recomputed, recompute, settings_of
from mlflow_dynamics.tracker import Tracker
from mlflow_dynamics.tracking import RunWriter, end_run, names, open_run, runs, sender, store
from mlflow_dynamics.tracking.artifacts import artifact_root
from mlflow_dynamics.tracking.joining import reopen_run
from mlflow_dynamics.tracking.store import ask, connect
from mlflow_dynamics.tracking.sync import sync_run
from mlflow_dynamics.watching import _tag_once, watch

TOKEN = "token-that-nobody-else-gets"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(sender, "LONGEST_PAUSE_S", 0.1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # of who reads: they would wait for minutes
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)


def tree(root: Path, *, without: Path) -> dict[str, tuple[int, bytes]]:
    """All that lies below a folder: path -> mode and content."""
    return {
        str(path): (stat.S_IMODE(path.lstat().st_mode), path.read_bytes() if path.is_file() else b"")
        for path in sorted(root.rglob("*"))
        if path != without and without not in path.parents
    }


@pytest.mark.parametrize(
    "fifth", [0, 1, *(pytest.param(fifth, marks=pytest.mark.slow) for fifth in (2, 3, 4))]
)
@settings(
    max_examples=12,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_whatever_is_answered_nothing_else_is_touched_and_all_is_sent_once(
    fifth: int,
    data: st.DataObject,
    server: MlflowServer,
    elsewhere: tuple[FaultyProxy, list[Asked]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    sandbox = tmp_path_factory.mktemp("sandbox")
    private = sandbox / ".ssh"
    spool = sandbox / "work" / names.DEFAULT_SPOOL
    for path in (private / "id_rsa", private / "dynamics" / "report.html", spool / "notes", sandbox / "x"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"mine: {path}")
        path.chmod(0o600)
    other, seen = elsewhere
    answers = data.draw(st.dictionaries(st.sampled_from(CALLS), lies(private, other.uri), min_size=1))
    # "{}" is also what MLflow says where a search finds nothing: that with a creation whose answer is lost is two runs.
    blank = answers.get("/runs/search", Lie(status=500))
    created = answers.get("/runs/create", Lie())
    assume(not (blank.status == 200 and created.forwarded))
    proxy = FaultyProxy(server.port)
    proxy.lies = told(answers)
    seen.clear()
    mlflow.set_tracking_uri(proxy.uri)
    before = tree(sandbox, without=spool / "none")
    run_name, _ = open_run(run_name=sandbox.name, spool_dir=spool)
    writer = RunWriter(run_name, spool_dir=spool).start()
    slowest = 0.0
    for epoch in range(2):
        began = time.perf_counter()
        write_epoch(writer, epoch)
        slowest = max(slowest, time.perf_counter() - began)
    asked = proxy.requests
    wait_until(lambda: proxy.requests >= asked + 4 or not writer._spool.entries())
    folder = writer._spool.folder
    assert tree(sandbox, without=folder) == before
    proxy.lies = lambda asked: None
    end_run(writer, "FINISHED", 60)
    proxy.close()
    mlflow.set_tracking_uri(server.uri)
    assert tree(sandbox, without=folder) == before
    assert [one for one in seen if TOKEN in str(one.headers)] == []
    assert [one.path for one in seen] == []
    assert slowest < 0.5  # as in test_writer.py
    assert not folder.exists()
    client = MlflowClient(server.uri)
    experiments = [one.experiment_id for one in client.search_experiments()]
    (run,) = client.search_runs(experiments, f"attributes.run_name = '{sandbox.name}'")
    assert run.info.run_id == writer.run_id
    assert run.info.status == "FINISHED"
    assert_complete(server.uri, run.info.run_id, 2)


def test_a_whole_training_under_a_server_that_lies_now_and_then(
    proxy: FaultyProxy, server: MlflowServer, untracked: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    draw = random.Random(0)
    some = [
        Lie(body=b"{}"),
        LOGIN,
        Lie(status=302, headers={"Location": "http://127.0.0.1:9/"}),
        Lie(body=run_answer("..")),
        Lie(body=b"{}", headers={"Content-Length": "9"}, forwarded=True),
        Lie(status=500, forwarded=True),
    ]

    def lie(asked: Asked) -> Lie | None:
        # An empty answer to a search says that there is no run: see above.
        return draw.choice(some) if draw.random() < 0.3 and "runs/search" not in asked.path else None

    mlflow.set_tracking_uri(proxy.uri)

    def misbehave(epoch: int, tracker: Tracker) -> None:
        if epoch == 1:
            proxy.lies = lie
        if epoch == 4:
            until_it_fails(tracker)
            proxy.lies = lambda asked: None

    losses, tracker, longest = train_tracked(misbehave)
    assert losses == untracked
    assert longest <= LONGEST_WAIT_S
    assert tracker.run_id is not None
    assert_every_epoch_once(server.uri, tracker.run_id, losses)


@pytest.mark.parametrize("run_id", IDS)
def test_a_run_id_that_is_none_is_no_path_and_the_next_try_creates_the_run(
    run_id: str, proxy: FaultyProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mine").write_text("mine")
    spool = tmp_path / names.DEFAULT_SPOOL
    (spool / "another").mkdir(parents=True)
    (spool / "another" / "unsent").write_text("unsent")
    mlflow.set_tracking_uri(proxy.uri)
    proxy.lies = told({"/runs/create": Lie(body=run_answer(run_id))})
    name, _ = open_run()
    assert name.startswith(names.LOCAL_PREFIX)
    writer = RunWriter(name).start()
    write_epoch(writer, 0)
    wait_until(lambda: proxy.requests > 12)
    assert writer.run_id is None
    proxy.lies = lambda asked: None
    assert end_run(writer) == 0
    assert writer.run_id is not None
    assert_complete(proxy.uri, writer.run_id, 1)
    assert (tmp_path / "mine").exists()
    assert (spool / "another" / "unsent").exists()
    assert len(warnings_of(caplog)) == 2


@pytest.mark.parametrize("run_id", ["..", "", "a/b"])
def test_a_run_that_is_active_under_an_id_that_is_none_is_not_recorded_into(
    run_id: str, proxy: FaultyProxy, tmp_path: Path
) -> None:
    mlflow.set_tracking_uri(proxy.uri)
    proxy.lies = told({"/runs/create": Lie(body=run_answer(run_id))})
    mlflow.start_run()
    with pytest.raises(TrackingError, match="which is not the id of an MLflow run"):
        open_run()
    assert not (tmp_path / names.DEFAULT_SPOOL).exists()
    mlflow.tracking.fluent._active_run_stack.get().clear()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_file_whose_upload_is_redirected_is_not_sent_and_this_is_said(
    status: int,
    proxy: FaultyProxy,
    elsewhere: tuple[FaultyProxy, list[Asked]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    other, seen = elsewhere
    run_id = str(MlflowClient(proxy.uri).create_run("0").info.run_id)
    redirected = Lie(status=status, headers={"Location": f"{other.uri}/login?next={TOKEN}"})
    proxy.lies = lambda asked: redirected if asked.method == "PUT" else None
    writer = RunWriter(run_id, tracking_uri=proxy.uri).start()
    write_epoch(writer, 0)
    wait_until(lambda: writer._sender.failing)
    assert writer._spool.entries()
    (said,) = warnings_of(caplog)
    assert f"it redirects to {other.uri}/login ({status}), and no redirect is followed" in said
    proxy.lies = lambda asked: None
    assert writer.close(60) == 0
    assert_complete(proxy.uri, run_id, 1)
    assert seen == []


@pytest.mark.parametrize("body", [LOGIN.body, b"{}", b""])
def test_a_file_that_something_else_takes_is_not_forgotten(
    body: bytes, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = str(MlflowClient(proxy.uri).create_run("0").info.run_id)
    proxy.lies = lambda asked: Lie(body=body) if asked.method == "PUT" else None
    writer = RunWriter(run_id, tracking_uri=proxy.uri).start()
    write_epoch(writer, 0)
    wait_until(lambda: writer._sender.failing)
    (said,) = warnings_of(caplog)
    assert "the store took dynamics/" in said
    assert "and does not have it" in said
    proxy.lies = lambda asked: None
    assert writer.close(60) == 0
    assert_complete(proxy.uri, run_id, 1)


def test_a_file_that_arrives_cut_off_is_sent_again(proxy: FaultyProxy, server: MlflowServer) -> None:
    """A proxy before the store that passes on half of each body, and says that all went well."""
    run_id = str(MlflowClient(proxy.uri).create_run("0").info.run_id)
    artifacts = server.folder / "artifacts" / "0" / run_id / "artifacts"

    def cut(asked: Asked) -> Lie | None:
        if asked.method != "PUT":
            return None
        path = artifacts / asked.path.partition(f"{run_id}/artifacts/")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(asked.body[: len(asked.body) // 2])
        return Lie(body=b"{}")

    proxy.lies = cut
    writer = RunWriter(run_id, tracking_uri=proxy.uri).start()
    write_epoch(writer, 0)
    wait_until(lambda: writer._sender.failing)
    assert re.search(r"took .* of \d+ bytes and has \d+ of them", writer._sender.reason)
    proxy.lies = lambda asked: None
    assert writer.close(60) == 0
    assert_complete(proxy.uri, run_id, 1)


def test_numbers_that_something_else_takes_are_not_forgotten(proxy: FaultyProxy) -> None:
    run_id = str(MlflowClient(proxy.uri).create_run("0").info.run_id)
    writer = RunWriter(run_id, tracking_uri=proxy.uri).start()
    write_epoch(writer, 0)
    wait_until(lambda: not writer._spool.entries())
    proxy.lies = told({"/runs/log-batch": Lie(body=b"{}"), "/runs/update": Lie(body=b"{}")})
    write_epoch(writer, 1)
    writer.log_params({"depth": 20})
    writer.end_run()
    wait_until(lambda: writer._sender.failing)
    assert "MLflow took a record and does not have it: " in writer._sender.reason
    proxy.lies = lambda asked: None
    assert writer.close(60) == 0
    assert_complete(proxy.uri, run_id, 2)
    run = MlflowClient(proxy.uri).get_run(run_id)
    assert (run.info.status, run.data.params) == ("FINISHED", {"depth": "20"})


def test_a_proxys_page_refuses_nothing_for_good(proxy: FaultyProxy) -> None:
    run_id = str(MlflowClient(proxy.uri).create_run("0").info.run_id)
    proxy.lies = told({"/runs/log-batch": Lie(status=400, body=b"<html>Bad Request</html>")})
    writer = RunWriter(run_id, tracking_uri=proxy.uri).start()
    write_epoch(writer, 0)
    wait_until(lambda: writer._sender.failing)
    assert writer._sender.reason.startswith("the server answers 400: <html>Bad Request")
    proxy.lies = lambda asked: None
    assert writer.close(60) == 0
    assert_complete(proxy.uri, run_id, 1)


@pytest.mark.parametrize(
    "place",
    [
        "{outside}",
        "file://{outside}",
        "{outside}/../{run_id}/artifacts",
        "file://{outside}/%2e%2e/{run_id}",
        "{run_id}/artifacts",
        "file://host{outside}/{run_id}/artifacts",
        "runs:/{run_id}/x",
        "models:/{run_id}",
        "s3://bucket/somewhere",
        "nowhere://{run_id}",
        "{inside}#/../../outside",
        "{inside}?/../../outside",
        "{inside};/../../outside",
        "file://{inside}#/../../outside",
        "file://{inside}%23/x",
        "FILE://{inside}",
        "{inside}/%2e%2e/%2e%2e/outside",
        "file://{outside}/%00/{run_id}",
        "s3://bucket/{run_id}#/../victim",
    ],
)
def test_files_are_put_into_no_place_that_is_not_the_runs_own(
    place: str, proxy: FaultyProxy, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    run_id = str(MlflowClient(proxy.uri).create_run("0").info.run_id)
    uri = place.format(outside=outside, run_id=run_id, inside=tmp_path / run_id)
    proxy.lies = told({"/runs/": moved(uri)})
    before = tree(tmp_path, without=tmp_path / names.DEFAULT_SPOOL)
    mlflow.set_tracking_uri(proxy.uri)
    writer = RunWriter(run_id).start()
    writer.write_files({names.REPORT: b"page"})
    wait_until(lambda: writer._sender.failing)
    assert writer.close(1) == 1  # the tag is sent, the file is not
    assert tree(tmp_path, without=tmp_path / names.DEFAULT_SPOOL) == before
    with pytest.raises(TrackingError, match=r"that is not the run's own folder|artifact repository"):
        mlflow_dynamics.load_activations(run_id)


@settings(max_examples=1000, deadline=None, database=None)
@given(
    st.sampled_from(["", "file:", "file://", "FILE://", "File:", "file://localhost", "//h", "x:", "s3://"]),
    st.lists(st.sampled_from([FOREIGN, "..", ".", "v", *"/#?;\\%\t\n\0 ", "%2e%2e", "%252e", "%23", "%2f"])),
)
def test_no_place_is_believed_whose_path_leads_out_of_the_runs_folder(start: str, parts: list[str]) -> None:
    uri = start + "/" + "".join(parts)
    run = Run(RunInfo(FOREIGN, "0", "me", "RUNNING", 1, None, "active", artifact_uri=uri), RunData())
    try:
        repository = get_artifact_repository(artifact_root(run, "http://127.0.0.1:1"))
    except (MlflowException, ValueError):  # no place, or none that MLflow has a repository for
        return
    if isinstance(repository, LocalArtifactRepository):
        place = repository.artifact_dir
        assert Path(place).is_absolute()
        assert FOREIGN in Path(os.path.normpath(place)).parts


def moved(artifact_uri: str) -> Lie:
    """The truth about a run, or several, but for where their files are."""

    def altered(content: bytes) -> bytes:
        answer = json.loads(content)
        for run in [answer["run"]] if "run" in answer else answer.get("runs", []):
            run["info"]["artifact_uri"] = artifact_uri
        return json.dumps(answer).encode()

    return Lie(altered=altered)


def found(run_id: str) -> bytes:
    """What `runs/search` answers."""
    return json.dumps({"runs": [json.loads(run_answer(run_id))["run"]]}).encode()


def test_a_folder_shared_with_the_server_is_written_to(proxy: FaultyProxy, tmp_path: Path) -> None:
    """`mlflow server --no-serve-artifacts --default-artifact-root /data`."""
    run_id = str(MlflowClient(proxy.uri).create_run("0").info.run_id)
    place = tmp_path / "data" / "0" / run_id / "artifacts"
    proxy.lies = told({"/runs/": moved(str(place))})
    writer = RunWriter(run_id, tracking_uri=proxy.uri).start()
    writer.write_files({names.REPORT: b"page"})
    assert writer.close(60) == 0
    assert (place / names.REPORT).read_bytes() == b"page"


def test_another_host_gets_files_but_no_credentials(
    proxy: FaultyProxy,
    elsewhere: tuple[FaultyProxy, list[Asked]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    other, seen = elsewhere
    (tmp_path / "netrc").write_text(f"default login me password {TOKEN}")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", TOKEN)
    run_id = str(MlflowClient(proxy.uri).create_run("0").info.run_id)
    mlflow.set_tracking_uri(proxy.uri)
    for scheme in ("http://{}/api/2.0/mlflow-artifacts/artifacts/0", "mlflow-artifacts://{}/0"):
        seen.clear()
        uri = scheme.format(other.uri.removeprefix("http://"))
        proxy.lies = told({"/runs/": moved(uri)})
        writer = RunWriter(run_id).start()
        writer.write_files({names.REPORT: b"page"})
        wait_until(lambda: {one.method for one in seen} >= {"PUT", "GET"})
        writer.close(1)
        with pytest.raises(DynamicsError):
            mlflow_dynamics.load_activations(run_id)
        assert seen
        for one in seen:
            assert "Authorization" not in one.headers
            assert TOKEN not in str(one)
    proxy.lies = lambda asked: None


@pytest.mark.parametrize(
    "host",
    [
        "{own}\\@{other}",
        "{own}@{other}",
        "me:x@{own}",
        "{own}\t@{other}",
        "{own}\\.{other}",
        "{own}/ {other}",
        "{own}/\x7f",
    ],
)
@pytest.mark.parametrize(
    "place", ["http://{}/api/2.0/mlflow-artifacts/artifacts/0", "mlflow-artifacts://{}/0"]
)
def test_an_address_that_may_be_read_as_another_host_is_refused(
    place: str, host: str, proxy: FaultyProxy, elsewhere: tuple[FaultyProxy, list[Asked]]
) -> None:
    other, seen = elsewhere
    run_id = str(MlflowClient(proxy.uri).create_run("0").info.run_id)
    hosts = {"own": proxy.uri.removeprefix("http://"), "other": other.uri.removeprefix("http://")}
    proxy.lies = told({"/runs/": moved(place.format(host.format(**hosts)))})
    with pytest.raises(MlflowException, match="that is no plain address") as refused:
        artifact_root(MlflowClient(proxy.uri).get_run(run_id), proxy.uri)
    assert str(refused.value).isprintable()
    writer = RunWriter(run_id, tracking_uri=proxy.uri).start()
    writer.write_files({names.REPORT: b"page"})
    wait_until(lambda: writer._sender.failing)
    assert writer.close(0) == 1
    assert seen == []


@pytest.mark.parametrize("place", ["file://{}", "{}", "s3://bucket{}"])
@pytest.mark.parametrize("run_id", ["victim", FOREIGN[:-1], FOREIGN.upper(), FOREIGN])
def test_a_server_that_makes_up_an_id_names_no_folder_with_it(
    run_id: str, place: str, tmp_path: Path
) -> None:
    uri = place.format(tmp_path / run_id)
    run = Run(RunInfo(run_id, "0", "me", "RUNNING", 1, None, "active", artifact_uri=uri), RunData())
    if run_id == FOREIGN:
        assert artifact_root(run, "http://127.0.0.1:1") == uri
    else:
        with pytest.raises(MlflowException, match="that is not the run's own folder"):
            artifact_root(run, "http://127.0.0.1:1")


def test_an_answer_that_comes_byte_by_byte_holds_no_training_up(
    proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "LONGEST_OPEN_S", 1.0)
    mlflow.set_tracking_uri(proxy.uri)
    proxy.lies = told({"/runs/create": Lie(body=run_answer(FOREIGN), drip_s=0.2)})
    began = time.monotonic()
    name, _ = open_run()
    assert time.monotonic() - began < 5
    assert name.startswith(names.LOCAL_PREFIX)
    proxy.lies = lambda asked: None
    writer = RunWriter(name).start()
    assert end_run(writer) == 0


def test_what_comes_byte_by_byte_is_given_up_and_what_comes_slowly_is_read(
    proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read timeout counts anew with each byte."""
    creds = MlflowHostCreds(proxy.uri)
    proxy.lies = lambda asked: Lie(body=b" " * 1000, drip_s=0.1)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        ask(creds, "/x", "GET", timeout=(0.5, 0.5), max_retries=0)
    assert time.monotonic() - began < 3
    monkeypatch.setattr(store, "SLOWEST_BYTES_PER_S", 200)
    proxy.lies = lambda asked: Lie(body=b" " * 5000, drip_s=0.001)
    began = time.monotonic()
    assert len(ask(creds, "/x", "GET", timeout=(2, 2), max_retries=0).content) == 5000
    assert time.monotonic() - began > 4


def test_an_answer_whose_header_comes_byte_by_byte_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                for _ in range(100):
                    connection.sendall(b"x")
                    time.sleep(0.1)

        threading.Thread(target=drip, daemon=True).start()
        creds = MlflowHostCreds(f"http://127.0.0.1:{server.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            ask(creds, "/x", "GET", timeout=(0.5, 0.5), max_retries=0)
        assert time.monotonic() - began < 3


def test_sync_and_a_training_that_goes_on_give_up_who_answers_byte_by_byte(
    proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, recorded: str
) -> None:
    dripping = Lie(body=b" " * 1000, drip_s=0.1)
    mlflow.set_tracking_uri(proxy.uri)
    proxy.lies = told({"/runs/update": dripping})
    monkeypatch.setattr(runs, "LONGEST_OPEN_S", 1.0)
    began = time.monotonic()
    reopen_run(MlflowClient().get_run(recorded), joined=False)
    assert time.monotonic() - began < 10
    proxy.lies = lambda asked: None  # MLflow's own call waits for every byte
    mlflow.end_run()
    proxy.lies = lambda asked: dripping
    monkeypatch.setattr(sender, "connect", partial(connect, read_timeout_s=0.5))
    monkeypatch.setattr(store, "CONNECT_TIMEOUT_S", 0.5)
    writer = RunWriter(recorded).start()
    write_epoch(writer, 2)
    writer.close(0)
    left = None
    while left is None or left.in_use:  # by the writer's own thread, for as long as it has its request
        began = time.monotonic()
        left = sync_run(recorded)
    assert (left.left, left.reason) == (1, "it does not answer in time")
    assert time.monotonic() - began < 15


POINT = {"run_id": "RUN", "key": "train/loss", "step": 0, "timestamp": 1, "value": 1.0}
NO_NUMBERS = (
    {"value": "abc"},
    {"value": None},
    {"value": [1]},
    {"value": {"a": 1}},
    {"step": "soon"},
    {"step": None},
    {"step": 10**30},
    {"step": 1e400},
    {"timestamp": "2026-01-01"},
    {"timestamp": 10**30},
    {"run_id": FOREIGN},
    {"run_id": None},
    {"run_id": ["x"]},
)
ANSWERS = (
    *(Lie(body=json.dumps({"metrics": [POINT | wrong]}).encode()) for wrong in NO_NUMBERS),
    *(
        Lie(body=body)
        for body in (b"{}", b"[]", b"null", b'{"metrics": 5}', b'{"metrics": [7]}', b"[" * 200_000)
    ),
    LOGIN,
    Lie(status=302, headers={"Location": "http://127.0.0.1:9/"}),
    Lie(status=500, body=b"no"),
    Lie(status=403, body=b"no"),
    Lie(body=b"{", headers={"Content-Length": "90"}),
    Lie(body=b"x", headers={"Content-Encoding": "gzip"}),
)


@pytest.fixture
def recorded(server: MlflowServer) -> str:
    """A run with dynamics behind the server."""
    run_id = str(MlflowClient(server.uri).create_run("0").info.run_id)
    writer = RunWriter(run_id, tracking_uri=server.uri).start()
    writer.write_layers(layers())
    for epoch in range(2):
        write_epoch(writer, epoch)
    writer.end_run()
    assert writer.close(60) == 0
    return run_id


def commands(run_id: str) -> list[list[str]]:
    return [["watch", run_id], ["recompute", run_id], ["report", run_id], ["report", run_id, run_id]]


def assert_a_sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == cli.EXIT_BAD_INPUT
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert len([line for line in said.splitlines() if line.startswith("Error: ")]) == 1


@pytest.mark.drawn
def test_numbers_that_are_none_are_said_in_one_sentence(
    proxy: FaultyProxy, recorded: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow.set_tracking_uri(proxy.uri)
    readers = (
        lambda: mlflow_dynamics.load_metrics([recorded]),
        lambda: mlflow_dynamics.load_metrics(experiment_names="Default"),
        lambda: list(watch(recorded)),
    )
    for answer in ANSWERS:
        lie = Lie(
            status=answer.status, headers=answer.headers, body=answer.body.replace(b"RUN", recorded.encode())
        )
        proxy.lies = told({"/metrics/get-history-bulk": lie})
        for read in readers:
            with pytest.raises(TrackingError, match=r"^The metrics cannot be read: ") as refused:
                read()
            assert "\n" not in str(refused.value), lie
    for arguments in (["watch", recorded], ["report", recorded]):
        assert_a_sentence(arguments, capsys)


@pytest.mark.drawn
@pytest.mark.parametrize("lie", ANSWERS[len(NO_NUMBERS) :])
def test_a_server_that_is_none_is_said_in_one_sentence(
    lie: Lie, proxy: FaultyProxy, recorded: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow.set_tracking_uri(proxy.uri)
    proxy.lies = lambda asked: lie
    empty = lie.body == b"{}"  # no run, no experiment: what MLflow says where there are none
    for read in (
        lambda: mlflow_dynamics.load_metrics([recorded]),
        lambda: mlflow_dynamics.load_metrics(experiment_names="Default"),
        lambda: mlflow_dynamics.search_runs("Default"),
        lambda: mlflow_dynamics.load_activations(recorded),
        lambda: list(watch(recorded)),
        lambda: settings_of(recorded),
    ):
        with pytest.raises(TrackingError) as refused:
            read()
        assert "\n" not in str(refused.value)
        assert empty or len(str(refused.value)) < 350
    for arguments in commands(recorded):
        assert_a_sentence(arguments, capsys)


def test_a_search_whose_pages_never_end_ends(proxy: FaultyProxy, recorded: str) -> None:
    mlflow.set_tracking_uri(proxy.uri)
    page = json.loads(found(recorded)) | {"next_page_token": "again"}
    proxy.lies = told({"/runs/search": Lie(body=json.dumps(page).encode())})
    assert list(mlflow_dynamics.search_runs("Default")["run_id"]) == [recorded]


def test_a_time_that_is_none_is_missing(proxy: FaultyProxy, recorded: str) -> None:
    mlflow.set_tracking_uri(proxy.uri)
    page = json.loads(found(recorded))
    page["runs"][0]["info"]["end_time"] = str(2**62)
    proxy.lies = told({"/runs/search": Lie(body=json.dumps(page).encode())})
    (end,) = mlflow_dynamics.search_runs("Default")["end_time"]
    assert end is pd.NaT


def test_a_run_that_is_measured_anew_is_read_under_the_same_rules(proxy: FaultyProxy, recorded: str) -> None:
    mlflow.set_tracking_uri(proxy.uri)
    config = settings_of(recorded)
    assert [one.epoch for one in recompute(recorded, config)] == [0, 1]
    proxy.lies = told({"/metrics/get-history": Lie(body=b'{"metrics": [{"value": "abc"}]}')})
    with pytest.raises(TrackingError, match="is not that of an MLflow server"):
        list(recompute(recorded, config))


def test_a_tag_and_a_measure_that_are_redirected_go_nowhere_and_this_is_said(
    proxy: FaultyProxy,
    elsewhere: tuple[FaultyProxy, list[Asked]],
    recorded: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    other, seen = elsewhere
    mlflow.set_tracking_uri(proxy.uri)
    redirected = Lie(status=307, headers={"Location": f"{other.uri}/taken"})
    proxy.lies = told({"/runs/set-tag": redirected, "/runs/log-batch": redirected})
    run = MlflowClient().get_run(recorded)
    _tag_once(run, names.TAG_STOP_REQUESTED, "1")
    assert names.TAG_STOP_REQUESTED not in run.data.tags
    (said,) = warnings_of(caplog)
    assert "and no redirect is followed" in said
    with pytest.raises(TrackingError, match="and no redirect is followed"):
        log_recomputed(recorded, recompute(recorded, settings_of(recorded)), name="again")
    assert seen == []
    proxy.lies = lambda asked: None
    _tag_once(run, names.TAG_STOP_REQUESTED, "1")
    log_recomputed(recorded, recompute(recorded, settings_of(recorded)), name="again")
    assert names.TAG_STOP_REQUESTED in MlflowClient().get_run(recorded).data.tags
