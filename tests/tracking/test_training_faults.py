"""Whole trainings during failures of the disk, the artifact store, the numbers, the clock or the run itself."""

from __future__ import annotations

import itertools
import math
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
import torch
from faulty_training import (
    BATCHES,
    EPOCHS,
    LONGEST_WAIT_S,
    assert_every_epoch_once,
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
from mlflow_dynamics.tracking import load_activations, names
from mlflow_dynamics.tracking.sync import sync


def mounted(folder: Path, options: str) -> Path:
    """A small file system of its own at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
    if done.returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    return folder


@pytest.fixture
def artifact_disk(server: MlflowServer) -> Iterator[Path]:
    """The disk on which the server keeps the artifacts of the experiment 0."""
    folder = mounted(server.folder / "artifacts" / "0", "size=20m")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def read_only(disk: Path) -> Callable[[], object]:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    return lambda: subprocess.run(["mount", "-o", "remount,rw", disk], check=True)


def full(disk: Path) -> Callable[[], object]:
    ballast = disk / "ballast"
    subprocess.run(["dd", "if=/dev/zero", f"of={ballast}"], check=False, capture_output=True)
    return ballast.unlink


@pytest.mark.parametrize("break_disk", [read_only, full])
def test_an_artifact_store_that_takes_no_files_while_metrics_work(
    break_disk: Callable[[Path], Callable[[], object]],
    artifact_disk: Path,
    server: MlflowServer,
    untracked: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    mlflow.set_tracking_uri(server.uri)
    repair: list[Callable[[], object]] = []
    sent: list[int] = []

    def misbehave(epoch: int, tracker: Tracker) -> None:
        if epoch == 1:
            until_all_is_sent(tracker)
            repair.append(break_disk(artifact_disk))
        if epoch == 4:
            until_it_fails(tracker)
            assert tracker.run_id is not None
            client = MlflowClient(server.uri)
            wait_until(lambda: len(client.get_metric_history(tracker.run_id, names.TRAIN_LOSS)) == 4)
            # A full disk still takes folders and names of files.
            files = [
                file
                for partition in client.list_artifacts(tracker.run_id, names.ACTIVATIONS)
                for file in client.list_artifacts(tracker.run_id, partition.path)
            ]
            sent.append(sum(bool(file.file_size) for file in files))
            repair[0]()

    losses, tracker, longest = train_tracked(misbehave)
    assert sent == [1]
    assert losses == untracked
    assert longest <= LONGEST_WAIT_S
    assert tracker.run_id is not None
    assert_every_epoch_once(server.uri, tracker.run_id, losses)
    first, second = warnings_of(caplog)
    assert "Sending to MLflow" in first
    assert "takes records again" in second


def test_a_disk_that_is_full_while_the_server_is_away(
    proxy: FaultyProxy,
    server: MlflowServer,
    untracked: list[float],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = mounted(tmp_path / "tiny", "size=8m")
    try:
        monkeypatch.setenv("MLFLOW_DYNAMICS_SPOOL", str(disk / "spool"))
        mlflow.set_tracking_uri(proxy.uri)
        free = full(disk)  # of all but what the next lines free
        with (disk / "ballast").open("r+b") as ballast:
            ballast.truncate(ballast.seek(0, 2) - 40_000)

        def misbehave(epoch: int, tracker: Tracker) -> None:
            if epoch == 1:
                proxy.fault = 503
            if epoch == 4:
                until_it_fails(tracker)
                wait_until(lambda: tracker._run_log.writer._spool._memory)
                free()
                proxy.fault = None

        losses, tracker, longest = train_tracked(misbehave)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    assert losses == untracked
    assert longest <= LONGEST_WAIT_S
    assert tracker.run_id is not None
    assert_every_epoch_once(server.uri, tracker.run_id, losses)
    messages = warnings_of(caplog)
    for said in (
        "No space left on device): records are kept",
        "can be written again",
        "fails (",
        "takes records",
    ):
        assert len([message for message in messages if said in message]) == 1
    assert len(messages) == 4


def test_a_training_that_goes_to_nan(server: MlflowServer, caplog: pytest.LogCaptureFixture) -> None:
    mlflow.set_tracking_uri(server.uri)
    bare = train(network(), loader(), epochs=EPOCHS, learning_rate=1e8)
    assert not math.isfinite(bare[-1])
    losses, tracker, longest = train_tracked(learning_rate=1e8)
    assert [repr(loss) for loss in losses] == [repr(loss) for loss in bare]
    assert longest <= LONGEST_WAIT_S
    assert [record for record in caplog.records if record.exc_info] == []
    assert warnings_of(caplog) == ["Epoch 0: Training diverges: the training loss is nan."]
    assert tracker.run_id is not None
    client = MlflowClient(server.uri)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags[names.TAG_DIVERGING_EPOCH] == "0"
    history = client.get_metric_history(tracker.run_id, names.TRAIN_LOSS)
    assert sorted(metric.step for metric in history) == list(range(EPOCHS))
    assert all(math.isnan(metric.value) for metric in history)
    # What cannot be measured is absent, never 0, and says how many layers it lost.
    assert client.get_metric_history(tracker.run_id, names.INTEGRATION) == []
    assert run.data.metrics[names.LAYERS_DROPPED] == 3
    table = load_activations(tracker.run_id)
    assert table.num_rows == 3 * len(losses)
    assert not all(map(math.isfinite, table["mean"].to_pylist()))


def test_a_training_that_diverges(server: MlflowServer, caplog: pytest.LogCaptureFixture) -> None:
    mlflow.set_tracking_uri(server.uri)
    bare = train(network(), loader(), epochs=EPOCHS, learning_rate=50)
    assert bare[-1] > 20 * bare[0]
    losses, tracker, longest = train_tracked(learning_rate=50)
    assert losses == bare
    assert longest <= LONGEST_WAIT_S
    assert warnings_of(caplog) == []
    assert tracker.run_id is not None
    assert_every_epoch_once(server.uri, tracker.run_id, losses)


class _Infinite(torch.nn.Module):
    """Lets one unit of a layer that the loss does not depend on overflow in every fifth forward."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()
        self.side = torch.nn.Linear(1, 4)
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        value = float("inf") if self.calls % 5 == 0 else float(self.calls)
        self.side(torch.full((len(images), 1), value))
        return self.body(images)


def test_a_layer_with_infinite_activations_is_left_out_and_counted(
    server: MlflowServer, untracked: list[float]
) -> None:
    mlflow.set_tracking_uri(server.uri)
    losses, tracker, longest = train_tracked(model=_Infinite())
    assert losses == untracked
    assert longest <= LONGEST_WAIT_S
    assert tracker.run_id is not None
    assert_every_epoch_once(server.uri, tracker.run_id, losses)
    metrics = MlflowClient(server.uri).get_run(tracker.run_id).data.metrics
    assert metrics[names.LAYERS_DROPPED] == 1
    assert 0 < metrics[names.INTEGRATION] < 2


def test_a_clock_that_goes_backwards_during_a_training(
    server: MlflowServer,
    untracked: list[float],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mlflow.set_tracking_uri(server.uri)
    began = time.time_ns()
    readings = itertools.count()
    with monkeypatch.context() as patch:
        # Each reading is a minute before the last, for everything in this process.
        patch.setattr(time, "time_ns", lambda: began - next(readings) * 60 * 10**9)
        patch.setattr(time, "time", lambda: time.time_ns() / 1e9)
        losses, tracker, longest = train_tracked()
    assert losses == untracked
    assert longest <= LONGEST_WAIT_S
    assert warnings_of(caplog) == []
    assert tracker.run_id is not None
    assert_every_epoch_once(server.uri, tracker.run_id, losses)
    client = MlflowClient(server.uri)
    history = client.get_metric_history(tracker.run_id, names.TRAIN_LOSS)
    stamps = [metric.timestamp for metric in sorted(history, key=lambda metric: metric.step)]
    assert stamps == sorted(stamps, reverse=True)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    last = sum(losses[-BATCHES:]) / BATCHES
    assert run.data.metrics[names.TRAIN_LOSS] == pytest.approx(last)


def test_a_run_that_is_deleted_while_it_trains(
    server: MlflowServer, untracked: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    mlflow.set_tracking_uri(server.uri)
    client = MlflowClient(server.uri)

    def delete(epoch: int, tracker: Tracker) -> None:
        assert tracker.run_id is not None
        if epoch == 2:
            client.delete_run(tracker.run_id)
        if epoch == 4:
            until_it_fails(tracker)
            client.restore_run(tracker.run_id)

    losses, tracker, longest = train_tracked(delete)
    assert losses == untracked
    assert longest <= LONGEST_WAIT_S
    assert tracker.run_id is not None
    assert_every_epoch_once(server.uri, tracker.run_id, losses)
    first, second = warnings_of(caplog)
    assert f"mlflow runs restore --run-id {tracker.run_id}" in first
    assert "takes records again" in second


def test_a_run_that_is_deleted_and_stays_so_costs_no_more_than_the_closing_wait(
    server: MlflowServer,
    untracked: list[float],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("mlflow_dynamics.tracker.CLOSE_TIMEOUT_S", 1.0)
    mlflow.set_tracking_uri(server.uri)
    client = MlflowClient(server.uri)
    losses, tracker, longest = train_tracked(
        lambda epoch, tracker: client.delete_run(str(tracker.run_id)) if epoch == 2 else None
    )
    assert losses == untracked
    assert longest <= LONGEST_WAIT_S
    assert mlflow.active_run() is None
    first, last = warnings_of(caplog)
    assert "mlflow runs restore" in first
    assert "Send them with: mlflow-dynamics sync" in last
    wait_until(lambda: not tracker._run_log.writer._sender.is_alive())
    client.restore_run(str(tracker.run_id))
    (synced,) = sync()
    assert synced.left == 0
    assert_every_epoch_once(server.uri, str(tracker.run_id), losses)


def test_trainings_in_two_threads_and_in_nested_runs_stay_apart(
    server: MlflowServer, untracked: list[float]
) -> None:
    mlflow.set_tracking_uri(server.uri)
    came: dict[str, tuple[list[float], str | None]] = {}

    def train_in(name: str) -> None:
        torch_lock.acquire()
        model, batches = network(), loader()
        torch_lock.release()
        with mlflow_dynamics.track(model) as tracker:
            losses = train(model, batches, epochs=EPOCHS, tracker=tracker)
        came[name] = losses, tracker.run_id

    torch_lock = threading.Lock()  # the weights come from torch's one global generator
    threads = [threading.Thread(target=train_in, args=(f"thread {number}",)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with mlflow.start_run() as parent:
        with mlflow.start_run(nested=True) as child:
            train_in("child")
        train_in("parent")
    assert came["child"][1] == child.info.run_id
    assert came["parent"][1] == parent.info.run_id
    assert len({run_id for _, run_id in came.values()}) == len(came) == 4
    for losses, run_id in came.values():
        assert losses == untracked
        assert run_id is not None
        assert_every_epoch_once(server.uri, run_id, losses)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.parametrize("recorder", ["track", "autolog"])
def test_loader_workers_neither_change_the_training_nor_its_record(
    recorder: str, context: str, server: MlflowServer
) -> None:
    mlflow.set_tracking_uri(server.uri)
    epochs = 3
    expected = train(network(), loader(workers=1, context=context), epochs=epochs)
    with timed_waits() as waits, mlflow.start_run() as run:
        model = network()
        if recorder == "track":
            with mlflow_dynamics.track(model) as tracker:
                waits.step()
                losses = train(
                    model, loader(workers=1, context=context), epochs=epochs, tracker=tracker, waits=waits
                )
                longest = max(waits.per_step[1:])
        else:
            mlflow_dynamics.autolog()
            waits.step()
            losses = train(model, loader(workers=1, context=context), epochs=epochs, waits=waits)
            # Before the first step the optimizer is made, at which its model is looked for; the first step of
            # the second epoch opens the run, once: 15 ms of work, more where four tests share two cores.
            *others, opening = sorted(waits.per_step[2:])
            assert opening <= 3 * LONGEST_WAIT_S
            longest = others[-1]
            mlflow_dynamics.autolog(disable=True)
    print(f"longest wait with {context} workers under {recorder}: {1000 * longest:.1f} ms")
    assert losses == expected
    assert longest <= LONGEST_WAIT_S
    assert_every_epoch_once(server.uri, run.info.run_id, losses)
