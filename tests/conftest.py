"""Gives every test a working folder and an MLflow store of its own, and restores MLflow's global state after it."""

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
from hypothesis import settings
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as ModelStore
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as TrackingStore
from mlflow.tracking import MlflowClient, fluent
from mlflow.tracking._model_registry import utils as model_service
from mlflow.tracking._tracking_service import utils as tracking_service
from tracking_server import FaultyProxy, MlflowServer

OLD_ALTAIR = str(Path(__file__).parent / "old_altair")

# Each process, also those that tests start, uses one thread, because as many tests run at once as there are cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says how busy the machine is.
settings.register_profile("without a deadline", deadline=None)
settings.load_profile("without a deadline")

# A test run under nohup ignores SIGHUP, and so would every process that a test starts.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return twice as many workers as cores for `-n logical`, as tests wait for servers and other processes."""
    return 2 * len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2 * (os.cpu_count() or 1)


def pytest_configure(config: pytest.Config) -> None:
    """Start one warm Python for all workers."""
    if not hasattr(config, "workerinput"):
        stack = ExitStack()
        os.environ["WARM_PYTHON"] = stack.enter_context(warm_python.offered())
        config.add_cleanup(stack.close)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Make `sys.executable` the warm Python, for tests and for the project. `warm_python.COLD` is the interpreter."""
    if hasattr(session.config, "workerinput") or session.config.getoption("dist", "no") == "no":
        sys.executable = os.environ["WARM_PYTHON"]  # a process that starts workers needs its interpreter


def pytest_collection_finish() -> None:
    """Freeze all imported objects, so that neither garbage collection nor tests that look for objects search them."""
    import torch._dynamo  # noqa: F401 - else the first optimizer imports it; at the top, OMP_NUM_THREADS is not set

    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Give a test an Altair that is too old for the extra `report`, unless the test is marked `drawn`.

    With the old Altair a run is recorded without page and pictures, which take 3 s of a core for each run.
    """
    with pytest.MonkeyPatch.context() as patch:
        if item.get_closest_marker("drawn") is None:
            patch.setattr(sys, "path", [*sys.path[:1], OLD_ALTAIR, *sys.path[1:]])
            patch.setenv("WARM_PYTHON_PATH", OLD_ALTAIR)
        return (yield)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of an MLflow SQLite store without a run. Tests copy it, as its migrations take seconds."""
    path = tmp_path_factory.mktemp("empty_store") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path.parent)
        MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def server(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One MLflow server for the session, on SQLite and the loopback address."""
    with MlflowServer(tmp_path_factory.mktemp("server"), empty_store) as running:
        yield running


@pytest.fixture
def proxy(server: MlflowServer) -> Iterator[FaultyProxy]:
    """A proxy before the server, which can be made faulty."""
    running = FaultyProxy(server.port)
    yield running
    running.close()


@pytest.fixture(autouse=True)
def own_mlflow(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Start the test in a folder that holds an empty store, and undo afterwards what the test has set in MLflow.

    MLFLOW_DYNAMICS_TESTING makes errors of ours, which users are not to see, fail the test. A test that injects such
    errors unsets the variable.
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
    """Remove a test's stores from MLflow's caches. Each store keeps thousands of objects, which slow tests down."""
    for kind in (TrackingStore, ModelStore):
        while getattr(kind, "_engine_map", None):  # MLflow 2 has no such map
            kind._engine_map.popitem()[1].dispose()
    for registry in (tracking_service._tracking_store_registry, model_service._get_store_registry()):
        registry._get_store_with_resolved_uri.cache_clear()
