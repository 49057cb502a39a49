"""Spools whose disk or folder changes, many unsent runs, and runs whose process is dead."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from tracking_records import assert_complete, layers, write_epoch
from tracking_server import FaultyProxy, MlflowServer
from waiting import wait_until

from mlflow_dynamics.cli import EXIT_UNSENT, commands
from mlflow_dynamics.tracking import RunWriter, end_run, names, open_run
from mlflow_dynamics.tracking.queue_entry import Batch
from mlflow_dynamics.tracking.run_record import RunRecord
from mlflow_dynamics.tracking.spool import Spool, numbers, open_folder
from mlflow_dynamics.tracking.sync import SyncedRun, sync, sync_in_background


def new_run(uri: str) -> str:
    return str(MlflowClient(uri).create_run("0").info.run_id)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder that `freeze` makes read-only, for root too."""
    folder = tmp_path / "disk"
    folder.mkdir(mode=0o700)
    if not freeze(folder):
        pytest.skip("making a file immutable needs root, and a file system that can")
    freeze(folder, "-i")
    yield folder
    freeze(folder, "-i")


def freeze(folder: Path, how: str = "+i") -> bool:
    return subprocess.run(["chattr", "-R", how, folder], capture_output=True, check=False).returncode == 0


def test_a_disk_that_becomes_read_only_while_records_wait_holds_none_of_them_back(
    proxy: FaultyProxy, disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = new_run(proxy.uri)
    proxy.fault = 503
    writer = RunWriter(run_id, tracking_uri=proxy.uri, spool_dir=disk).start()
    writer.write_layers(layers())
    for epoch in range(5):
        write_epoch(writer, epoch)
    freeze(disk)
    write_epoch(writer, 5)  # in memory
    proxy.fault = None
    assert writer.close(60) == 0
    assert_complete(proxy.uri, run_id, 6)
    assert caplog.text.count("Cannot remove from") == 1
    assert "(Operation not permitted): sending goes on" in caplog.text
    freeze(disk, "-i")
    (synced,) = sync(disk, tracking_uri=proxy.uri)
    assert (synced.left, synced.reason) == (0, None)
    assert_complete(proxy.uri, run_id, 6)
    assert list(disk.iterdir()) == []


def test_what_the_disk_keeps_is_sent_once_by_a_process(disk: Path) -> None:
    spool = Spool(disk / "a", RunRecord(tracking_uri="http://host:1", run_id="a"))
    for number in range(3):
        spool.put(Batch(tags={"tag": str(number)}), {f"dynamics/{number}": b"file"})
    freeze(disk)
    for entry in spool.entries():
        assert entry.batch() is not None
        spool.batch_sent(entry)
        (path,) = entry.artifact_paths()
        spool.artifact_sent(entry, path)
        assert all(one.batch() is None and one.artifact_paths() == [] for one in spool.entries()[:1])
        spool.finish(entry)
    assert spool.entries() == []
    spool.close()


@pytest.mark.parametrize("moved", [False, True])
def test_a_folder_that_is_removed_while_the_server_is_down_is_made_anew(
    moved: bool, proxy: FaultyProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = new_run(proxy.uri)
    proxy.refuse()
    root = tmp_path / "spool"
    writer = RunWriter(run_id, tracking_uri=proxy.uri, spool_dir=root).start()
    write_epoch(writer, 0)
    if moved:
        root.rename(tmp_path / "moved")
    else:
        shutil.rmtree(root)
    for epoch in range(1, 4):
        write_epoch(writer, epoch)
    assert writer.close(0) == 3
    assert caplog.text.count("was removed or moved: it is made anew") == 1
    wait_until(lambda: not writer._sender.is_alive())
    proxy.listen()
    command = caplog.text.partition("Send them with: mlflow-dynamics ")[2].splitlines()[0]
    result = CliRunner().invoke(commands, command.split())
    assert f"{run_id}: 3 records sent\n" in result.output
    history = MlflowClient(proxy.uri).get_metric_history(run_id, names.TRAIN_LOSS)
    assert sorted(metric.step for metric in history) == [1, 2, 3]


def test_a_second_process_is_kept_out_of_a_folder_that_was_made_anew(tmp_path: Path) -> None:
    record = RunRecord(tracking_uri="http://host:1", run_id="a")
    spool = Spool(tmp_path / "a", record)
    shutil.rmtree(tmp_path / "a")
    spool.put(Batch(tags={"a": "1"}))
    (left,) = sync(tmp_path, tracking_uri="http://host:1")
    assert "in use by another process" in str(left.reason)
    spool.close()


def fill(root: Path, uri: str, count: int, *, prefix: str) -> None:
    for number in range(count):
        spool = Spool(root / f"{prefix}{number}", RunRecord(tracking_uri=uri, run_id=f"{prefix}{number}"))
        spool.put(Batch(tags={"a": "1"}))
        spool.close()


def test_a_folder_that_changes_while_it_is_read_does_not_keep_the_others_from_being_sent(
    empty_store: Path, tmp_path: Path
) -> None:
    uri = f"sqlite:///{empty_store}"
    fill(tmp_path / "spool", uri, 2, prefix="run")
    first = min((tmp_path / "spool").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
    (tmp_path / "other").mkdir()
    swap = f"""
import os
os.chdir({str(first)!r})
while True:
    os.rename("queue", "aside"); os.symlink({str(tmp_path / "other")!r}, "queue")
    os.unlink("queue"); os.rename("aside", "queue")
"""
    swapping = subprocess.Popen([sys.executable, "-c", swap], stdout=subprocess.PIPE)
    try:
        home, until = open_folder(first), time.monotonic() + 2
        while time.monotonic() < until:
            assert numbers(home) in ([], [0])
        for _ in range(5):
            sync(tmp_path / "spool", tracking_uri=uri)
    finally:
        swapping.kill()
        swapping.communicate()  # until its fork is gone too


def test_of_200_runs_one_is_tried_when_their_store_does_not_answer(
    proxy: FaultyProxy, tmp_path: Path
) -> None:
    root = tmp_path / "spool"
    fill(root, proxy.uri, 200, prefix="run")
    fill(root, "http://127.0.0.1:9", 3, prefix="other")
    proxy.fault = 503
    told: list[tuple[float, SyncedRun]] = []
    before = proxy.requests
    began = time.monotonic()
    runs = sync(root, tracking_uri=proxy.uri, tell=lambda run: told.append((time.monotonic(), run)))
    assert time.monotonic() - began < 15
    assert proxy.requests - before < 10
    assert [run for _, run in told] == list(runs)
    assert [run.tried for run in runs].count(True) == 1
    assert sum(run.left for run in runs) == 203
    result = CliRunner().invoke(commands, ["sync", str(root), "--tracking-uri", proxy.uri])
    assert result.exit_code == EXIT_UNSENT
    first, *rest = result.output.splitlines()
    assert first.startswith("run0: 0 records sent, 1 left (")
    assert sorted(rest) == [
        f"Not tried: 199 runs ({proxy.uri} does not answer)",
        "Not tried: 3 runs (of another store; `mlflow-dynamics sync --tracking-uri http://127.0.0.1:9` sends them)",
    ]


def test_a_run_that_its_store_lacks_does_not_keep_the_others_from_being_tried(
    server: MlflowServer, tmp_path: Path
) -> None:
    root = tmp_path / "spool"
    fill(root, server.uri, 1, prefix="absent")
    run_id = new_run(server.uri)
    spool = Spool(root / run_id, RunRecord(tracking_uri=server.uri, run_id=run_id))
    spool.put(Batch(tags={"a": "1"}))
    spool.close()
    absent, sent = sync(root, tracking_uri=server.uri)
    assert (absent.sent, absent.left) == (0, 1)
    assert (sent.run_id, sent.sent, sent.left) == (run_id, 1, 0)


OWNER = """
import os, sys
from pathlib import Path
import mlflow
from mlflow_dynamics.tracking import RunWriter, open_run
from tracking_records import write_epoch
uri, spool = sys.argv[1:]
mlflow.set_tracking_uri(uri)
run = open_run(spool_dir=Path(spool))
writer = RunWriter(run.run, spool_dir=Path(spool), owned=run.owned).start()
write_epoch(writer, 0)
assert writer.all_sent(60)
print(writer.run_id, flush=True)
os.kill(os.getpid(), 9)
"""


def killed_owner(uri: str, spool: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    command = [sys.executable, "-c", OWNER, uri, str(spool)]
    process = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert process.returncode == -9, process.stderr[-2000:]
    return process.stdout.split()[-1]


def test_a_run_whose_owner_is_dead_is_ended_when_asked(server: MlflowServer, tmp_path: Path) -> None:
    mlflow.set_tracking_uri(server.uri)
    client = MlflowClient(server.uri)
    root = tmp_path / "spool"
    run_id = killed_owner(server.uri, root)
    thread = sync_in_background(root, own=root / "own", tracking_uri=server.uri)
    assert thread is not None
    thread.join()
    plain = CliRunner().invoke(commands, ["sync", str(root)])
    assert plain.output == "Left RUNNING by a process that is dead: 1 runs; `sync --end-stale` ends them.\n"
    assert plain.exit_code == 0
    assert client.get_run(run_id).info.status == "RUNNING"

    ended = CliRunner().invoke(commands, ["sync", str(root), "--end-stale"])
    assert ended.output == f"{run_id}: 0 records sent, ended as KILLED\n"
    info = client.get_run(run_id).info
    assert info.status == "KILLED"
    (last,) = client.get_metric_history(run_id, names.TRAIN_LOSS)
    assert info.end_time == last.timestamp
    assert list(root.iterdir()) == []


def test_only_a_run_of_ours_that_nobody_records_is_ended(server: MlflowServer, tmp_path: Path) -> None:
    mlflow.set_tracking_uri(server.uri)
    client = MlflowClient(server.uri)
    root = tmp_path / "spool"
    # Its own record is finished, a run of the user's is joined, a dead one is resumed by another process.
    ours = open_run(spool_dir=root)
    writer = RunWriter(ours.run, spool_dir=root, owned=True).start()
    assert end_run(writer) == 0
    joined = RunWriter(new_run(server.uri), spool_dir=root).start()
    write_epoch(joined, 0)
    assert joined.all_sent(60)
    dead = killed_owner(server.uri, root)
    resumed = RunWriter(dead, spool_dir=root).start()
    sync(root, end_stale=True)
    for writer in (joined, resumed):
        assert client.get_run(str(writer.run_id)).info.status == "RUNNING"
        assert writer.close(30) == 0
    sync(root, end_stale=True)
    # Whoever resumed it has it to end.
    assert client.get_run(dead).info.status == "RUNNING"
    assert client.get_run(str(ours.run)).info.status == "FINISHED"
    assert list(root.iterdir()) == []


def test_a_run_that_somebody_else_has_ended_is_let_go(server: MlflowServer, tmp_path: Path) -> None:
    root = tmp_path / "spool"
    run_id = killed_owner(server.uri, root)
    MlflowClient(server.uri).set_terminated(run_id, "FAILED")
    (synced,) = sync(root, tracking_uri=server.uri, end_stale=True)
    assert (synced.ended, synced.running, synced.reason) == (False, False, None)
    assert MlflowClient(server.uri).get_run(run_id).info.status == "FAILED"
    assert list(root.iterdir()) == []
