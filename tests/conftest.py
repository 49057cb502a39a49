"""Every test has its own working folder and MLflow store, and leaves MLflow's global state as it found it."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import mlflow
import pytest
import warm_python
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as ModelStore
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as TrackingStore
from mlflow.tracking import MlflowClient, fluent
from mlflow.tracking._model_registry import utils as model_service
from mlflow.tracking._tracking_service import utils as tracking_service
from tracking_server import FaultyProxy, MlflowServer

OLD_ALTAIR = str(Path(__file__).parent / "old_altair")

# One thread each, here and in the processes that tests start: as many tests run at once as there are cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What is started under nohup ignores it, and so would every process that a test starts.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Twice as many workers as cores for `-n logical`: tests wait for servers and for other processes."""
    return 2 * len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2 * (os.cpu_count() or 1)


def pytest_configure(config: pytest.Config) -> None:
    """One warm Python for all workers."""
    if not hasattr(config, "workerinput"):
        stack = ExitStack()
        os.environ["WARM_PYTHON"] = stack.enter_context(warm_python.offered())
        config.add_cleanup(stack.close)


def pytest_sessionstart(session: pytest.Session) -> None:
    """What tests and the project start as `sys.executable` is warm; `warm_python.COLD` is the interpreter."""
    if hasattr(session.config, "workerinput") or session.config.getoption("dist", "no") == "no":
        sys.executable = os.environ["WARM_PYTHON"]  # elsewhere it is what the workers are started as


def pytest_collection_finish() -> None:
    """What has been imported is no garbage, nor what a test looks for among the living: it is not searched again."""
    import torch._dynamo  # noqa: F401 - the first optimizer would; not above, where torch would not know its threads

    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test runs as where Altair is too old for the extra `report`, unless it is marked `drawn`.

    A run is then recorded whole, without pages and pictures, which take 3 s of a core each.
    """
    with pytest.MonkeyPatch.context() as patch:
        if item.get_closest_marker("drawn") is None:
            patch.setattr(sys, "path", [*sys.path[:1], OLD_ALTAIR, *sys.path[1:]])
            patch.setenv("WARM_PYTHON_PATH", OLD_ALTAIR)
        return (yield)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow SQLite store without a run, to be copied: making one takes seconds of migrations."""
    path = tmp_path_factory.mktemp("empty_store") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path.parent)
        MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def server(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One server for the session, on SQLite, bound to the loopback address."""
    with MlflowServer(tmp_path_factory.mktemp("server"), empty_store) as running:
        yield running


@pytest.fixture
def proxy(server: MlflowServer) -> Iterator[FaultyProxy]:
    """A way to the server that can be made faulty."""
    running = FaultyProxy(server.port)
    yield running
    running.close()


@pytest.fixture(autouse=True)
def own_mlflow(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The test begins in a folder that holds an empty store; what it sets in MLflow is undone.

    A failure of ours that users are not to see fails the test; one that injects failures unsets the variable.
    """
    environment = {key: value for key, value in os.environ.items() if key.startswith("MLFLOW_")}
    state = tracking_service._tracking_uri, fluent._active_experiment_id
    ours = logging.getLogger("mlflow_dynamics")
    level = ours.level  # the command line shows our log lines
    for key in environment:
        del os.environ[key]
    os.environ["MLFLOW_DYNAMICS_TESTING"] = "true"
    monkeypatch.chdir(tmp_path)
    store = shutil.copy(empty_store, tmp_path / "mlflow.db")
    with closing(sqlite3.connect(store)) as database, database:
        database.execute("UPDATE experiments SET artifact_location = ?", (f"{tmp_path}/mlruns/0",))
    mlflow.set_tracking_uri(f"sqlite:///{store}")
    fluent._active_experiment_id = None
    yield tmp_path
    while mlflow.active_run() is not None:
        mlflow.end_run()
    for key in [key for key in os.environ if key.startswith("MLFLOW_")]:
        del os.environ[key]
    os.environ.update(environment)
    tracking_service._tracking_uri, fluent._active_experiment_id = state
    ours.setLevel(level)
    forget_stores()


def forget_stores() -> None:
    """Let MLflow's own caches go of the stores that a test used: each keeps thousands of objects to look through."""
    for kind in (TrackingStore, ModelStore):
        while getattr(kind, "_engine_map", None):  # which MLflow 2 does not keep
            kind._engine_map.popitem()[1].dispose()
    for registry in (tracking_service._tracking_store_registry, model_service._get_store_registry()):
        registry._get_store_with_resolved_uri.cache_clear()
