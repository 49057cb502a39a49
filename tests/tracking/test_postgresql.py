"""An MLflow server on a real PostgreSQL: recording, queries and reports work as with any other store."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import torch
from torch import nn
from tracking_server import MlflowServer, OwnPort

import mlflow_dynamics
from mlflow_dynamics.cli import main

pytest.importorskip(
    "psycopg2", reason="MLflow reaches PostgreSQL through psycopg2 (pip install psycopg2-binary)"
)
SERVER_USER = "postgres"
"""PostgreSQL refuses to run as root; Debian's package brings this user."""


def binaries() -> Path | None:
    """Where PostgreSQL's own programs lie, or None; Debian keeps them off the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    if found:
        return found[-1].parent
    return None if on_path is None else Path(on_path).parent


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """The address of an empty database."""
    folder_of = binaries()
    if folder_of is None:
        pytest.skip("no PostgreSQL here (Debian: apt install postgresql)")
    as_user: list[str] = []
    folder = Path(tempfile.mkdtemp(prefix="dynamics-pg-"))
    if os.geteuid() == 0:
        if (
            shutil.which("runuser") is None
            or subprocess.run(["id", SERVER_USER], capture_output=True).returncode
        ):
            pytest.skip(f"PostgreSQL does not run as root, and there is no user {SERVER_USER!r} to run it as")
        as_user = ["runuser", "-u", SERVER_USER, "--"]
        shutil.chown(folder, SERVER_USER)
    port, data = OwnPort(), folder / "data"

    def call(program: str, *arguments: str) -> None:
        command = [*as_user, str(folder_of / program), *arguments]
        # To a file: the server that pg_ctl leaves behind would hold a pipe open.
        with (folder / "said").open("w+") as said:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=folder, check=False
            )
            said.seek(0)
            assert done.returncode == 0, f"{command}: {said.read()}"

    call("initdb", "-D", str(data), "-U", "tester", "-A", "trust", "--no-sync")
    options = f"-p {port.number} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    call("pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield f"postgresql+psycopg2://tester@127.0.0.1:{port.number}/postgres"
    finally:
        call("pg_ctl", "-D", str(data), "-w", "-m", "immediate", "stop")
        port.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def server(postgresql: str, tmp_path: Path) -> Iterator[MlflowServer]:
    with MlflowServer(tmp_path / "server", backend=postgresql) as running:
        yield running


@pytest.mark.drawn
@pytest.mark.slow
def test_a_server_on_postgresql_serves_the_same(server: MlflowServer, tmp_path: Path) -> None:
    mlflow.set_tracking_uri(server.uri)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with mlflow_dynamics.track(model) as tracker:
        for epoch in range(3):
            for _ in range(70):
                inputs = torch.randn(32, 8)
                loss = nn.functional.cross_entropy(model(inputs), (inputs[:, 0] > 0).long())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            tracker.end_epoch(**{"validation/accuracy": 0.8 if epoch else 0.5})
        run_id = tracker.run_id
    assert run_id is not None
    (run,) = mlflow_dynamics.search_runs("Default").itertuples()
    assert (run.run_id, run.status, run.plateau_epoch) == (run_id, "FINISHED", 0)
    metrics = mlflow_dynamics.load_metrics(run_id)
    assert list(metrics["epoch"]) == [0, 1, 2]
    assert metrics["dynamics/integration"].notna().all()
    assert len(mlflow_dynamics.load_activations(run_id)) == 3 * 70 * 3
    page = mlflow.artifacts.load_text(f"runs:/{run_id}/dynamics/report.html")
    assert 'id="exponents-0"' in page
    main(["report", run_id, "--output", str(tmp_path / "again.html")])
    assert 'id="exponents-0"' in (tmp_path / "again.html").read_text()
