"""Whole trainings while their MLflow server fails: same losses, no step waits, every epoch once, two messages."""

from __future__ import annotations

import re
import signal
import threading
import time
from pathlib import Path

import mlflow
import pytest
from faulty_training import (
    EPOCHS,
    LONGEST_WAIT_S,
    assert_every_epoch_once,
    global_random_states,
    loader,
    network,
    timed_waits,
    train,
    train_tracked,
    until_all_is_sent,
    until_it_fails,
    warnings_of,
)
from mlflow import MlflowClient
from tracking_server import FaultyProxy, MlflowServer
from waiting import wait_until

import mlflow_dynamics
from mlflow_dynamics.tracker import Tracker
from mlflow_dynamics.tracking import sender
from mlflow_dynamics.tracking.store import connect
from mlflow_dynamics.tracking.sync import sync


def test_a_server_that_refuses_at_start_and_comes_up_later(
    proxy: FaultyProxy, server: MlflowServer, untracked: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    proxy.refuse()
    mlflow.set_tracking_uri(proxy.uri)

    def come_up(epoch: int, tracker: Tracker) -> None:
        if epoch == 3:
            assert tracker.run_id is None
            proxy.listen()

    losses, tracker, longest = train_tracked(come_up)
    assert losses == untracked
    assert longest <= LONGEST_WAIT_S
    assert tracker.run_id is not None
    assert_every_epoch_once(server.uri, tracker.run_id, losses)
    assert MlflowClient(server.uri).get_run(tracker.run_id).info.status == "FINISHED"
    first, second = warnings_of(caplog)
    assert "takes no run (there is no connection)" in first
    assert "takes records again" in second


@pytest.mark.parametrize(
    "fault", [500, "garbage", *(pytest.param(n, marks=pytest.mark.slow) for n in (429, 503))]
)
def test_a_server_that_fails_in_the_middle_and_recovers(
    fault: int | str,
    proxy: FaultyProxy,
    server: MlflowServer,
    untracked: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    mlflow.set_tracking_uri(proxy.uri)

    def misbehave(epoch: int, tracker: Tracker) -> None:
        if epoch == 1:
            proxy.fault = fault
        if epoch == 4:
            until_it_fails(tracker)
            proxy.fault = None

    losses, tracker, longest = train_tracked(misbehave)
    assert losses == untracked
    assert longest <= LONGEST_WAIT_S
    assert tracker.run_id is not None
    assert_every_epoch_once(server.uri, tracker.run_id, losses)
    first, second = warnings_of(caplog)
    assert "Sending to MLflow" in first
    assert "takes records again" in second


def test_a_server_that_is_gone_for_good_and_sync(
    proxy: FaultyProxy,
    server: MlflowServer,
    untracked: list[float],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mlflow_dynamics.tracker.CLOSE_TIMEOUT_S", 1.0)
    mlflow.set_tracking_uri(proxy.uri)
    losses, tracker, longest = train_tracked(lambda epoch, _: proxy.refuse() if epoch == 2 else None)
    assert losses == untracked
    assert longest <= LONGEST_WAIT_S
    assert mlflow.active_run() is None
    first, last = warnings_of(caplog)
    assert "Sending to MLflow" in first
    assert f"Send them with: mlflow-dynamics sync {Path('.mlflow_dynamics').absolute()}" in last
    run_id = tracker.run_id
    assert run_id is not None
    wait_until(lambda: not tracker._run_log.writer._sender.is_alive())
    proxy.listen()
    (synced,) = sync()
    assert (synced.run_id, synced.left) == (run_id, 0)
    assert_every_epoch_once(proxy.uri, run_id, losses)
    assert MlflowClient(server.uri).get_run(run_id).info.status == "FINISHED"


@pytest.mark.parametrize("scheme", ["sqlite", "file"])
@pytest.mark.parametrize("inferred", [True, False])
def test_a_store_in_this_process_draws_no_random_number_of_the_training(
    scheme: str, inferred: bool, tmp_path: Path, untracked: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    if scheme == "file":
        mlflow.set_tracking_uri(f"file://{tmp_path}/runs")
    numbers = global_random_states()
    if inferred:
        mlflow_dynamics.autolog()
        model = network()
        before = global_random_states()
        losses = train(model, loader(), epochs=EPOCHS)
        mlflow_dynamics.autolog(disable=True)
        assert global_random_states() == before
    else:
        losses, _, _ = train_tracked()
    assert losses == untracked
    assert global_random_states()[0] == numbers[0]
    (run,) = mlflow.search_runs(output_format="list")
    assert re.fullmatch(r"[a-z]+-[a-z]+-[0-9]{1,3}", run.info.run_name)


def test_autolog_under_a_server_that_refuses_at_start(
    proxy: FaultyProxy, server: MlflowServer, untracked: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """Not even the step at which the run begins waits: MLflow creates it in the background."""
    proxy.refuse()
    mlflow.set_tracking_uri(proxy.uri)

    def come_up(epoch: int) -> None:
        if epoch == 4:
            wait_until(lambda: warnings_of(caplog))
            proxy.listen()

    with timed_waits() as waits:
        mlflow_dynamics.autolog()
        waits.step()
        losses = train(network(), loader(), epochs=EPOCHS, waits=waits, before_epoch=come_up)
        # Before the first step: autolog() itself, and the optimizer's construction, at which its model is looked for.
        steps = waits.per_step[2:]
        mlflow_dynamics.autolog(disable=True)
    print(f"longest wait {1000 * max(steps):.1f} ms, at step {steps.index(max(steps))} of {len(steps)}")
    assert losses == untracked
    run = mlflow.last_active_run()
    assert run is not None
    assert (run.info.status, mlflow.active_run()) == ("FINISHED", None)
    assert_every_epoch_once(server.uri, run.info.run_id, losses)
    first, second = warnings_of(caplog)
    assert "fails (there is no connection). Training goes on" in first
    assert "takes records again" in second
    assert max(steps) <= LONGEST_WAIT_S


def test_autolog_under_a_server_that_answers_late(
    proxy: FaultyProxy, untracked: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow_dynamics.tracker.CLOSE_TIMEOUT_S", 0.5)
    mlflow.set_tracking_uri(proxy.uri)
    proxy.fault = "late"
    with timed_waits() as waits:
        mlflow_dynamics.autolog()
        waits.step()
        losses = train(network(), loader(), epochs=EPOCHS, waits=waits)
        steps = waits.per_step[2:]
        mlflow_dynamics.autolog(disable=True)
    assert losses == untracked
    assert max(steps) <= LONGEST_WAIT_S
    proxy.fault = None


def test_what_the_script_logs_itself_lands_in_the_run_that_autolog_made() -> None:
    mlflow_dynamics.autolog()
    seen: list[str] = []

    def log(epoch: int) -> None:
        active = mlflow.active_run()
        if active is not None:
            seen.append(active.info.run_id)
            mlflow.log_metric("own", epoch, step=epoch)

    train(network(), loader(), epochs=60, before_epoch=log)
    mlflow_dynamics.autolog(disable=True)
    (run,) = mlflow.search_runs(output_format="list")
    assert set(seen) == {run.info.run_id}
    assert run.data.metrics["own"] == 59
    assert mlflow.active_run() is None


@pytest.mark.slow
def test_a_server_killed_in_the_middle_and_restarted(
    tmp_path: Path, untracked: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with MlflowServer(tmp_path / "server") as own:
        mlflow.set_tracking_uri(own.uri)

        def kill(epoch: int, tracker: Tracker) -> None:
            if epoch == 2:
                until_all_is_sent(tracker)
                own.kill()
            if epoch == 4:
                until_it_fails(tracker)
                own.start()

        losses, tracker, longest = train_tracked(kill)
        assert losses == untracked
        assert longest <= LONGEST_WAIT_S
        assert tracker.run_id is not None
        assert_every_epoch_once(own.uri, tracker.run_id, losses)
    first, second = warnings_of(caplog)
    assert "there is no connection" in first
    assert "takes records again" in second


@pytest.mark.slow
@pytest.mark.parametrize("read_timeout_s", [None, 5.0])
def test_a_server_that_answers_after_thirty_seconds(
    read_timeout_s: float | None,
    proxy: FaultyProxy,
    server: MlflowServer,
    untracked: list[float],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within the sender's own 60 s an answer after 30 s is no failure; with 5 s it is one, said once."""
    if read_timeout_s is not None:
        monkeypatch.setattr(sender, "connect", lambda uri: connect(uri, read_timeout_s=read_timeout_s))
    mlflow.set_tracking_uri(proxy.uri)
    began = time.monotonic()

    def slow_down(epoch: int, tracker: Tracker) -> None:
        if epoch == 1:
            proxy.fault = "late"
        if epoch == 5:
            assert time.monotonic() - began < 25, "the training waited for an answer"
            if read_timeout_s is not None:
                until_it_fails(tracker)
            proxy.fault = None

    monkeypatch.setattr("mlflow_dynamics.tracker.CLOSE_TIMEOUT_S", 120.0)
    losses, tracker, longest = train_tracked(slow_down)
    assert losses == untracked
    assert longest <= LONGEST_WAIT_S
    assert tracker.run_id is not None
    assert_every_epoch_once(server.uri, tracker.run_id, losses)
    assert len(warnings_of(caplog)) == (0 if read_timeout_s is None else 2)


def test_a_run_that_cannot_be_read_now_costs_a_resumed_training_nothing(
    proxy: FaultyProxy, server: MlflowServer, untracked: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    mlflow.set_tracking_uri(proxy.uri)
    _, first, _ = train_tracked(lambda *_: None)
    assert first.run_id is not None
    proxy.refuse()

    def come_up(epoch: int, tracker: Tracker) -> None:
        if epoch == 3:
            proxy.listen()

    losses, tracker, _ = train_tracked(come_up, resume=first.run_id)
    assert losses == untracked
    assert tracker.run_id not in (None, first.run_id)
    assert_every_epoch_once(server.uri, first.run_id, losses)
    assert_every_epoch_once(server.uri, str(tracker.run_id), losses)
    parent = MlflowClient(server.uri).get_run(str(tracker.run_id)).data.tags["mlflow.parentRunId"]
    assert parent == first.run_id
    assert f"Run {first.run_id} cannot be carried on (there is no connection)" in caplog.text


def test_a_run_that_is_being_created_when_the_user_interrupts_is_killed(
    proxy: FaultyProxy, server: MlflowServer
) -> None:
    experiment = mlflow.MlflowClient(server.uri).create_experiment("interrupted")
    mlflow.set_tracking_uri(proxy.uri)
    mlflow.set_experiment(experiment_id=experiment)
    proxy.fault, proxy.faulty_paths, proxy.delay_s = "late", "runs/create", 2.0
    interrupt = threading.Timer(1.0, signal.raise_signal, (signal.SIGINT,))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        mlflow_dynamics.track(network())
    (run,) = mlflow.MlflowClient(server.uri).search_runs([experiment])
    assert run.info.status == "KILLED"
    assert mlflow.active_run() is None
