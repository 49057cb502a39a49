"""Sync: every record that was written arrives once, even after kills of either side at any moment."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from tracking_records import assert_complete, client_at, layers, write_epoch
from tracking_server import FaultyProxy, MlflowServer
from waiting import wait_until

from mlflow_dynamics.tracking import RunWriter, names, open_run, spool
from mlflow_dynamics.tracking import sync as sync_module
from mlflow_dynamics.tracking.folder import Folder
from mlflow_dynamics.tracking.queue_entry import Batch
from mlflow_dynamics.tracking.run_record import RunRecord, save_run
from mlflow_dynamics.tracking.spool import Spool, open_folder
from mlflow_dynamics.tracking.sync import sync, sync_in_background

HERE = Path(__file__).parent
SYNC = "import sys; from pathlib import Path; from mlflow_dynamics.tracking.sync import sync; sync(Path(sys.argv[1]))"


def new_run(uri: str) -> str:
    return str(MlflowClient(uri).create_run("0").info.run_id)


def start(*arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def kill(process: subprocess.Popen[str]) -> list[int]:
    """Kill a recording process; the epochs that it had told and nobody had read."""
    assert process.stdout is not None
    process.kill()
    told = process.stdout.read()  # `communicate` knows nothing of the lines that are buffered on this side
    process.communicate()
    return [int(line) for line in told.split() if line.isdigit()]


def record_offline(proxy: FaultyProxy, epochs: int, root: Path) -> str:
    """A folder of `epochs` epochs that a run left behind because its server was gone; returns the run's id."""
    mlflow.set_tracking_uri(proxy.uri)
    run_id = new_run(proxy.uri)
    proxy.refuse()
    writer = RunWriter(run_id, tracking_uri=proxy.uri, spool_dir=root).start()
    writer.write_layers(layers())
    for epoch in range(epochs):
        write_epoch(writer, epoch)
    assert writer.close(0) == epochs + 2
    wait_until(lambda: not writer._sender.is_alive())
    proxy.listen()
    return run_id


def test_sync_sends_what_is_left_and_says_what_it_did(proxy: FaultyProxy, tmp_path: Path) -> None:
    run_id = record_offline(proxy, 5, tmp_path / "spool")
    (synced,) = sync(tmp_path / "spool")
    assert (synced.run_id, synced.left, synced.reason) == (run_id, 0, None)
    assert synced.sent <= 7
    assert_complete(proxy.uri, run_id, 5)
    assert not synced.folder.exists()
    assert sync(tmp_path / "spool") == ()


def test_sync_without_a_spool_is_nothing(tmp_path: Path) -> None:
    assert sync(tmp_path / "absent") == ()


def test_closing_names_the_command(
    proxy: FaultyProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record_offline(proxy, 1, tmp_path / "a folder")
    assert f"Send them with: mlflow-dynamics sync '{tmp_path}/a folder'" in caplog.text


def test_sync_without_the_server_leaves_everything_and_says_why(proxy: FaultyProxy, tmp_path: Path) -> None:
    record_offline(proxy, 3, tmp_path)
    proxy.refuse()
    (synced,) = sync(tmp_path)
    assert synced.sent == 0
    assert synced.left > 0
    assert synced.reason == "there is no connection"


@pytest.mark.slow
def test_sync_killed_again_and_again_sends_each_value_once(proxy: FaultyProxy, tmp_path: Path) -> None:
    run_id = record_offline(proxy, 20, tmp_path)
    chance = random.Random(7)
    kills = 0
    while any(tmp_path.glob("*/queue/*")):
        before = proxy.requests
        process = start("-c", SYNC, tmp_path)
        while process.poll() is None and proxy.requests < before + chance.randint(10, 60):
            time.sleep(0.005)
        kills += process.poll() is None
        process.kill()
        process.communicate()
    assert kills >= 2
    sync(tmp_path)
    assert_complete(proxy.uri, run_id, 20)


def test_training_killed_mid_epoch_keeps_every_epoch_that_was_written(
    proxy: FaultyProxy, server: MlflowServer, tmp_path: Path
) -> None:
    run_id = new_run(server.uri)
    process = start(HERE / "recording_process.py", proxy.uri, run_id, tmp_path, 0, 100_000)
    assert process.stdout is not None
    last = -1
    for line in process.stdout:
        if line.strip().isdigit():
            last = int(line)
        if last == 10:
            proxy.refuse()
        if last >= 40:
            break
    last = max([last, *kill(process)])
    proxy.listen()

    # Resumed: the training goes on with the epoch after the last complete one, or repeats a few.
    resumed = start(HERE / "recording_process.py", proxy.uri, run_id, tmp_path, last - 3, last + 5)
    _, errors = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, errors
    sync(tmp_path, tracking_uri=proxy.uri)
    assert_complete(server.uri, run_id, last + 5)
    assert not [folder for folder in tmp_path.iterdir() if folder.is_dir()]


def test_a_run_that_never_saw_its_server_and_was_killed_is_created_once(
    proxy: FaultyProxy, server: MlflowServer, tmp_path: Path
) -> None:
    proxy.refuse()
    process = start(HERE / "recording_process.py", proxy.uri, "new", tmp_path, 0, 100_000)
    assert process.stdout is not None
    local = process.stdout.readline().strip()
    assert local.startswith("local-")
    last = -1
    while last < 5:
        last = int(process.stdout.readline())
    last = max([last, *kill(process)])
    proxy.listen()
    proxy.fault, proxy.faulty_paths = "lose", "runs/create"
    (synced,) = sync(tmp_path, tracking_uri=proxy.uri)
    assert synced.left == 0
    assert synced.run_id is not None
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("killed")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == synced.run_id
    # The kill may have come between writing an epoch and telling its number.
    epochs = len(client.get_metric_history(synced.run_id, names.TRAIN_LOSS))
    assert epochs in (last + 1, last + 2)
    assert_complete(server.uri, synced.run_id, epochs)


def test_the_next_training_sends_what_the_last_one_left(proxy: FaultyProxy, tmp_path: Path) -> None:
    first = record_offline(proxy, 3, tmp_path)
    second = new_run(proxy.uri)
    writer = RunWriter(second, tracking_uri=proxy.uri, spool_dir=tmp_path).start()
    write_epoch(writer, 0)
    wait_until(lambda: not (tmp_path / first).exists())
    assert writer.close(30) == 0
    assert_complete(proxy.uri, first, 3)
    assert_complete(proxy.uri, second, 1)


def test_a_folder_in_use_is_left_to_its_process(server: MlflowServer, tmp_path: Path) -> None:
    writer = RunWriter(new_run(server.uri), tracking_uri=server.uri, spool_dir=tmp_path).start()
    write_epoch(writer, 0)
    (synced,) = sync(tmp_path, tracking_uri=server.uri)
    assert synced.reason is not None
    assert "in use by another process" in synced.reason
    assert writer.close(30) == 0


def test_a_folder_that_another_sync_has_just_removed_is_passed_over(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "spool"
    gone = root / "gone"
    record = RunRecord(tracking_uri=server.uri, run_id="gone")
    monkeypatch.setattr(sync_module, "_look", lambda root: [sync_module._Found(folder=gone, run=record)])
    assert sync(root, tracking_uri=server.uri) == ()
    assert not gone.exists()


def test_damaged_folders_are_named_and_the_others_sent(proxy: FaultyProxy, tmp_path: Path) -> None:
    run_id = record_offline(proxy, 3, tmp_path)
    for name, content in (("cut", '{"run_id": "x"'), ("foreign", "[]"), ("newer", '{"schema_version": 99}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(content)
    (tmp_path / "no-run").mkdir()
    reasons = {run.folder.name: run.reason for run in sync(tmp_path)}
    assert reasons[run_id] is None
    assert "damaged" in str(reasons["cut"])
    assert "damaged" in str(reasons["foreign"])
    assert "schema version 99, newer than 1; upgrade mlflow-dynamics" in str(reasons["newer"])
    assert "no-run" not in reasons
    assert_complete(proxy.uri, run_id, 3)


def test_a_damaged_record_is_set_aside_and_the_others_sent(proxy: FaultyProxy, tmp_path: Path) -> None:
    run_id = record_offline(proxy, 3, tmp_path)
    broken = sorted(tmp_path.glob("*/queue/*/batch.json"))[-1]
    whole = json.loads(broken.read_bytes())
    broken.write_bytes(broken.read_bytes()[:20])
    (synced,) = sync(tmp_path)
    assert synced.left == 0
    assert whole["metrics"][0][3] == 2
    history = MlflowClient(proxy.uri).get_metric_history(run_id, names.TRAIN_LOSS)
    assert sorted(metric.step for metric in history) == [0, 1]
    (reason,) = tmp_path.glob("*/rejected/*/reason.txt")
    assert "damaged" in reason.read_text()


def test_passwords_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mlflow_dynamics.tracking.sync import _with_credentials

    Spool(tmp_path / "a", RunRecord(tracking_uri="http://host:1", run_id="a")).close()
    mlflow.set_tracking_uri("http://user:hunter2@host:1")
    assert _with_credentials("http://host:1") == "http://user:hunter2@host:1"
    assert _with_credentials("http://host:2") == "http://host:2"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k,mode=700", "tmpfs", folder],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_costs_nothing_while_the_server_is_there(
    proxy: FaultyProxy, tiny_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = new_run(proxy.uri)
    proxy.fault = 503
    writer = RunWriter(run_id, tracking_uri=proxy.uri, spool_dir=tiny_disk).start()
    for epoch in range(60):
        write_epoch(writer, epoch)
    proxy.fault = None
    assert writer.close(60) == 0
    assert_complete(proxy.uri, run_id, 60)
    assert caplog.text.count("No space left on device): records are kept in memory") == 1


def test_a_full_disk_and_no_server_lose_only_what_fits_nowhere_and_say_so(
    proxy: FaultyProxy, tiny_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = new_run(proxy.uri)
    proxy.refuse()
    writer = RunWriter(run_id, tracking_uri=proxy.uri, spool_dir=tiny_disk).start()
    writer.write_layers(layers())
    for epoch in range(60):
        write_epoch(writer, epoch)
    assert writer.close(0) > 60
    assert "are lost with this process" in caplog.text
    wait_until(lambda: not writer._sender.is_alive())
    proxy.listen()
    sync(tiny_disk, tracking_uri=proxy.uri)
    history = MlflowClient(proxy.uri).get_metric_history(run_id, names.TRAIN_LOSS)
    steps = sorted(metric.step for metric in history)
    assert steps
    assert steps == list(range(len(steps)))


def test_a_full_disk_is_said_once_and_so_is_that_it_works_again(
    tiny_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spooled = Spool(tiny_disk / "a", RunRecord(tracking_uri="http://host:1", run_id="a"))
    ballast = tiny_disk / "ballast"
    subprocess.run(["dd", "if=/dev/zero", f"of={ballast}"], check=False, capture_output=True)
    with ballast.open("r+b") as file:
        file.truncate(ballast.stat().st_size - 30_000)
    for number in range(6):
        spooled.put(Batch(tags={"small": "1"}))
        spooled.put(files={f"dynamics/{number}": bytes(20_000)})
    ballast.unlink()
    for number in range(6):
        spooled.put(files={f"dynamics/{number}": bytes(20_000)})
    refused, again = [record.getMessage() for record in caplog.records]
    assert "No space left on device): records are kept in memory" in refused
    assert "can be written again" in again
    assert spooled.in_memory() == 0
    spooled.close()


def test_a_record_that_closing_writes_down_while_it_is_sent_from_memory_is_forgotten_too(
    tmp_path: Path,
) -> None:
    spooled = Spool(tmp_path / "a", RunRecord(tracking_uri="http://host:1", run_id="a"))
    (tmp_path / "a" / "queue").write_text("no folder")
    spooled.put(Batch(tags={"tag": "1"}))
    (being_sent,) = spooled.entries()
    (tmp_path / "a" / "queue").unlink()
    assert spooled.in_memory() == 0
    spooled.finish(being_sent)
    assert spooled.entries() == []
    spooled.close()


def test_beyond_the_bound_of_memory_the_oldest_activations_in_memory_go(
    proxy: FaultyProxy, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "MAX_MEMORY_BYTES", 80_000)
    run_id = new_run(proxy.uri)
    proxy.fault = 503
    writer = RunWriter(run_id, tracking_uri=proxy.uri, spool_dir=tiny_disk).start()
    for epoch in range(60):
        write_epoch(writer, epoch)
    proxy.fault = None
    assert writer.close(60) == 0
    client = client_at(proxy.uri)
    assert len(client.get_metric_history(run_id, names.TRAIN_LOSS)) == 60
    assert len(client.list_artifacts(run_id, names.LAYER_MEASURES)) == 60
    partitions = client.list_artifacts(run_id, names.ACTIVATIONS)
    kept = sorted(int(file.path.rpartition("=")[2]) for file in partitions)
    on_disk = kept[: next(index for index, epoch in enumerate(kept) if epoch != index)]
    assert len(on_disk) > 3
    assert kept == [*on_disk, *range(60 - len(kept) + len(on_disk), 60)]


def test_a_spool_that_cannot_be_made_is_no_reason_not_to_record(
    server: MlflowServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    run_id = new_run(server.uri)
    writer = RunWriter(run_id, tracking_uri=server.uri, spool_dir=tmp_path / "file").start()
    for epoch in range(3):
        write_epoch(writer, epoch)
    assert writer.close(60) == 0
    assert_complete(server.uri, run_id, 3)
    assert caplog.text.count("records are kept in memory") == 1


def test_neither_server_nor_disk_is_said_at_the_start(tmp_path: Path) -> None:
    from mlflow_dynamics.errors import TrackingError

    (tmp_path / "file").write_text("")
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    with pytest.raises(TrackingError, match=r"takes no run \(there is no connection\).*cannot be written"):
        open_run(spool_dir=tmp_path / "file")


def test_the_training_reads_nothing_of_what_lies_in_the_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever planted 300 folders with a megabyte each held up every `track()`."""
    readers: list[str] = []
    read = Folder.read

    def noted(folder: Folder, name: str, *, limit: int) -> bytes:
        readers.append(threading.current_thread().name)
        return read(folder, name, limit=limit)

    monkeypatch.setattr(Folder, "read", noted)
    uri = "http://127.0.0.1:9"
    for number in range(3):
        run = RunRecord(tracking_uri="http://127.0.0.1:8", run_id=f"{number:032x}")
        save_run(open_folder(tmp_path / f"{number:032x}", create=True), run)
    thread = sync_in_background(tmp_path, own=tmp_path / "own", tracking_uri=uri)
    assert thread is not None
    thread.join()
    assert readers == ["mlflow-dynamics-sync"] * 3


def test_a_record_of_more_tags_than_a_run_has_is_left_alone(tmp_path: Path) -> None:
    run_id = "0" * 32
    tags = {f"tag {number}": "" for number in range(501)}
    run = RunRecord(tracking_uri="http://127.0.0.1:9", run_id=run_id, tags=tags)
    save_run(open_folder(tmp_path / run_id, create=True), run)
    (left,) = sync(tmp_path, tracking_uri="http://127.0.0.1:9")
    assert "is damaged" in str(left.reason)


def test_no_thread_is_started_where_nothing_is_left(tmp_path: Path) -> None:
    assert sync_in_background(tmp_path, own=tmp_path / "own", tracking_uri="http://host:1") is None


def test_a_folder_that_vanishes_while_it_is_opened_is_passed_over(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner has sent everything and removes it; some file of it is gone when we come to it."""
    folder = tmp_path / "spool" / "gone"
    save_run(open_folder(folder, create=True), RunRecord(tracking_uri=server.uri, run_id="gone"))

    def vanish(path: Path) -> Spool:
        shutil.rmtree(path)
        return Spool(path)

    monkeypatch.setattr(sync_module, "Spool", vanish)
    assert sync(tmp_path / "spool", tracking_uri=server.uri) == ()
