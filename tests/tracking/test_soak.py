"""Soak and load: thousands of epochs under faults, and many runs at once. Nothing is lost and nothing grows."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from tracking_records import activations, assert_complete, write_epoch
from tracking_server import FaultyProxy, MlflowServer, OwnPort

from mlflow_dynamics.tracking import RunWriter, names

EPOCHS = 2_000


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_soak_of_two_thousand_epochs_with_faults_at_random(proxy: FaultyProxy) -> None:
    client = MlflowClient(proxy.uri)
    run_id = client.create_run("0").info.run_id
    writer = RunWriter(run_id, tracking_uri=proxy.uri).start()
    process = psutil.Process()
    done = threading.Event()
    faults = threading.Thread(target=_break_at_random, args=(proxy, done))
    slowest = 0.0
    grown: list[tuple[int, int, int]] = []
    for epoch in range(EPOCHS):
        if epoch == 200:
            faults.start()
        if epoch in (400, EPOCHS - 1):
            grown.append((process.memory_info().rss, process.num_threads(), process.num_fds()))
        began = time.perf_counter()
        recorded = activations(epoch, steps=4, count=2) if epoch % 20 == 0 else None
        writer.write_epoch(epoch, recorded, {names.TRAIN_LOSS: 1 / (epoch + 1)}, None, 1_000 * epoch)
        slowest = max(slowest, time.perf_counter() - began)
        time.sleep(0.02)
    done.set()
    faults.join()
    proxy.fault = None
    began = time.monotonic()
    assert writer.close(900) == 0
    (memory, threads, files), (memory_end, threads_end, files_end) = grown
    print(
        f"soak: slowest write {1000 * slowest:.1f} ms, memory +{(memory_end - memory) / 2**20:.1f} MiB, threads "
        f"{threads_end - threads:+d}, files {files_end - files:+d}, sent {time.monotonic() - began:.0f} s after the end"
    )
    history = client.get_metric_history(run_id, names.TRAIN_LOSS)
    assert sorted(metric.step for metric in history) == list(range(EPOCHS))
    assert all(metric.value == 1 / (metric.step + 1) for metric in history)
    assert len(client.list_artifacts(run_id, names.ACTIVATIONS)) == EPOCHS // 20
    assert memory_end - memory < 50 * 2**20
    assert threads_end - threads < 10  # the proxy's own, one for each request in flight
    assert files_end - files < 20


def _break_at_random(proxy: FaultyProxy, done: threading.Event) -> None:
    chance = random.Random(0)
    while not done.wait(chance.uniform(0.2, 1.5)):
        proxy.fault = chance.choice([None, None, None, 503, 429, 500, "garbage", "lose"])


@pytest.fixture(params=["sqlite", "postgresql"])
def loaded_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MlflowServer]:
    if request.param == "sqlite":
        yield request.getfixturevalue("server")
        return
    pytest.importorskip("psycopg2", reason="needs psycopg2-binary")
    if shutil.which("initdb") is None or shutil.which("pg_ctl") is None:
        pytest.skip("PostgreSQL is not installed")
    with (
        tempfile.TemporaryDirectory() as folder,
        _postgresql(Path(folder)) as uri,
        MlflowServer(tmp_path / "server", backend=uri) as server,
    ):
        yield server


@contextmanager
def _postgresql(folder: Path) -> Iterator[str]:
    """A PostgreSQL server of our own on the loopback address; it refuses to run as root."""
    user = None
    if os.geteuid() == 0:
        user = "postgres"
        try:
            shutil.chown(folder, user)
        except LookupError:
            pytest.skip("PostgreSQL refuses to run as root and there is no user postgres")

    def command(*arguments: object) -> None:
        words = [str(argument) for argument in arguments]
        subprocess.run(words, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL)

    port = OwnPort()
    command("initdb", "-A", "trust", "-U", "mlflow", folder / "data")
    options = f"-p {port.number} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    command("pg_ctl", "-D", folder / "data", "-l", folder / "log", "-o", options, "-w", "start")
    try:
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port.number}/postgres"
    finally:
        command("pg_ctl", "-D", folder / "data", "-m", "immediate", "stop")
        port.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_runs_at_once_lose_nothing(loaded_server: MlflowServer) -> None:
    client = MlflowClient(loaded_server.uri)
    run_ids = [client.create_run("0").info.run_id for _ in range(20)]
    unsent: dict[str, int] = {}

    def train(run_id: str) -> None:
        writer = RunWriter(run_id, tracking_uri=loaded_server.uri).start()
        for epoch in range(10):
            write_epoch(writer, epoch)
            time.sleep(0.1)
        unsent[run_id] = writer.close(600)

    began = time.monotonic()
    threads = [threading.Thread(target=train, args=(run_id,)) for run_id in run_ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kind = loaded_server.backend.partition(":")[0]
    print(f"load: 20 runs x 10 epochs on {kind} in {time.monotonic() - began:.1f} s")
    assert set(unsent.values()) == {0}
    for run_id in run_ids:
        assert_complete(loaded_server.uri, run_id, 10)
