"""Measures how much faster load_metrics is than a loop over MlflowClient.get_metric_history.

    python benchmarks/tracking_query.py [--runs 1000] [--epochs 100] [--server URI]

The script writes `runs` runs x 5 metrics x `epochs` values into a SQLite store. It reads them both ways, first straight
from the store and then through an MLflow server on the loopback address, and checks that both ways give the same
values. The loop is timed on a tenth of the runs, and its time is scaled up.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric
from mlflow.tracking._tracking_service.utils import _get_store
from sqlalchemy import insert

from mlflow_dynamics import load_metrics
from mlflow_dynamics.tracking import names

KEYS = names.DYNAMICS_METRICS[:5]


def fill(uri: str, runs: int, epochs: int) -> list[str]:
    """Create the runs and return their ids. Values are put straight into the tables; log_batch would take an hour."""
    client = MlflowClient(uri)
    run_ids = [client.create_run("0").info.run_id for _ in range(runs)]
    values = np.random.default_rng(0).random((runs, len(KEYS), epochs))
    rows = [
        {
            "run_uuid": run_id,
            "key": key,
            "step": epoch,
            "timestamp": 1_000 * epoch,
            "value": value,
            "is_nan": False,
        }
        for run_id, of_run in zip(run_ids, values, strict=True)
        for key, of_key in zip(KEYS, of_run, strict=True)
        for epoch, value in enumerate(of_key.tolist())
    ]
    with _get_store(uri).ManagedSessionMaker(read_only=False) as session:
        session.execute(insert(SqlMetric), rows)
        session.execute(insert(SqlLatestMetric), [row for row in rows if row["step"] == epochs - 1])
    return run_ids


def compare(uri: str, run_ids: list[str], epochs: int) -> tuple[float, float]:
    """Return the seconds of the loop (scaled up from a tenth of the runs) and of load_metrics (median of three)."""
    mlflow.set_tracking_uri(uri)
    client = MlflowClient(uri)
    some = run_ids[: max(1, len(run_ids) // 10)]
    began = time.perf_counter()
    loop = {
        (run_id, key, metric.step): metric.value
        for run_id in some
        for key in KEYS
        for metric in client.get_metric_history(run_id, key)
    }
    loop_s = (time.perf_counter() - began) * len(run_ids) / len(some)
    ours = []
    for _ in range(3):
        began = time.perf_counter()
        frame = load_metrics(run_ids, metrics=KEYS)
        ours.append(time.perf_counter() - began)
    assert frame.shape[0] == len(run_ids) * epochs
    indexed = frame.set_index(["run_id", "epoch"])
    for key in KEYS:
        found = indexed[key].to_dict()
        assert all(found[run_id, step] == value for (run_id, k, step), value in loop.items() if k == key)
    return loop_s, sorted(ours)[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{folder}/mlflow.db"
        run_ids = fill(store, arguments.runs, arguments.epochs)
        report("SQLite store", *compare(store, run_ids, arguments.epochs))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--backend-store-uri", store, "--workers", "2"]
        with (Path(folder) / "server.log").open("wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
        try:
            wait_for(f"http://127.0.0.1:{port}/health")
            report("server", *compare(f"http://127.0.0.1:{port}", run_ids, arguments.epochs))
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def report(where: str, loop_s: float, ours_s: float) -> None:
    print(f"{where}: loop {loop_s:.1f} s, load_metrics {ours_s:.2f} s, {loop_s / ours_s:.0f} times faster")


def wait_for(url: str) -> None:
    for _ in range(300):
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise SystemExit(f"{url} does not answer")


if __name__ == "__main__":
    main()
