"""In a notebook: each cell run by a real Jupyter kernel, what MLflow has after it read by another process."""

from __future__ import annotations

import ast
import os
import shutil
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from waiting import wait_until

from mlflow_dynamics.tracking import names

ROOT = Path(__file__).parents[2]

SETUP = """
import logging, mlflow, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import mlflow_dynamics
mlflow_dynamics.autolog()

torch.manual_seed(0)
data = TensorDataset(torch.randn(280, 6), torch.randint(0, 3, (280,)))
train_loader, test_loader = DataLoader(data, batch_size=4), DataLoader(TensorDataset(*data[:40]), batch_size=8)
criterion = nn.CrossEntropyLoss()

def train(batches=None):
    model.train()
    for number, (x, y) in enumerate(train_loader):
        if number == batches:
            raise KeyboardInterrupt
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()

def evaluate():
    model.eval()
    with torch.no_grad():
        return sum(criterion(model(x), y).item() * len(y) for x, y in test_loader) / 40
"""

ANEW = """
model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
"""


EVALUATE_A_PART = """
model.eval()
with torch.no_grad():
    for x, y in test_loader:
        criterion(model(x), y)
        raise KeyboardInterrupt
"""

IN_A_THREAD = """
import threading, time
seen = []

def slowly():
    model.eval()
    with torch.no_grad():
        total = 0
        for x, y in test_loader:
            total += criterion(model(x), y).item() * len(y)
            time.sleep(0.05)
    seen.append(total / 40)

def work():
    for _ in range(2):
        train()
        slowly()

thread = threading.Thread(target=work)
thread.start()
"""


class Notebook:
    """A kernel, and the store it records into."""

    def __init__(self, folder: Path) -> None:
        self.uri = f"sqlite:///{folder}/mlflow.db"
        environment = os.environ | {"MLFLOW_TRACKING_URI": self.uri, "PYTHONPATH": str(ROOT)}
        self.manager, self.client = start_new_kernel(200, env=environment, cwd=str(folder))
        self.experiment = ""

    @cached_property
    def store(self) -> MlflowClient:
        """For this process; it makes the store where there is none."""
        return MlflowClient(self.uri)

    def run(self, cell: str) -> dict[str, Any]:
        """Run a cell; the kernel's reply."""
        reply: dict[str, Any] = self.client.execute_interactive(cell, timeout=120, output_hook=lambda _: None)
        return reply["content"]

    def value(self, cell: str) -> Any:
        """What the cell leaves in `own`: as part of a reply, as our log's lines are among what is printed."""
        assert self.run(cell)["status"] == "ok"
        reply = self.client.execute_interactive(
            "", timeout=120, output_hook=lambda _: None, user_expressions={"own": "own"}
        )
        return ast.literal_eval(reply["content"]["user_expressions"]["own"]["data"]["text/plain"])

    def close(self, *, now: bool) -> None:
        """Shut the kernel down, as Jupyter does, or kill it now."""
        self.manager.shutdown_wait_time = 20  # other tests may run; alone it takes about a second
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=now)

    def begin(self, name: str) -> None:
        """A new model, and an experiment for it."""
        self.experiment = self.store.create_experiment(name)
        assert self.run(f"mlflow.set_experiment('{name}')\n{ANEW}")["status"] == "ok"

    def runs(self) -> list[Run]:
        """The experiment's, the oldest first."""
        found = self.store.search_runs([self.experiment], order_by=["attributes.start_time"])
        return list(found)

    def values(self, key: str, *, run: int = 0) -> list[float]:
        """Of a metric, epoch by epoch."""
        history = self.store.get_metric_history(self.runs()[run].info.run_id, key)
        return [metric.value for metric in sorted(history, key=lambda metric: metric.step)]

    def files(self, run: Run) -> list[str]:
        """The run's artifacts of ours."""
        found = self.store.list_artifacts(run.info.run_id, names.ARTIFACT_ROOT)
        return [file.path for file in found]

    def has(self, epochs: int, key: str = "train/loss", *, run: int = 0) -> list[float]:
        """The metric's values once there are so many, a moment after the cell."""
        wait_until(lambda: len(self.runs()) > run and len(self.values(key, run=run)) >= epochs)
        time.sleep(0.5)
        values = self.values(key, run=run)
        assert len(values) == epochs
        return values


@pytest.fixture(scope="module")
def notebook(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    folder = tmp_path_factory.mktemp("notebook")
    shutil.copy(empty_store, folder / "mlflow.db")
    notebook = Notebook(folder)
    assert notebook.run(SETUP)["status"] == "ok"
    yield notebook
    notebook.close(now=True)


def test_all_epochs_are_there_after_the_cell_that_trained_them(notebook: Notebook) -> None:
    notebook.begin("loop")
    own = notebook.value("own = []\nfor epoch in range(3):\n    train()\n    own.append(evaluate())")
    assert notebook.has(3, "validation/loss") == pytest.approx(own, rel=1e-6)
    assert len(notebook.values("dynamics/stability")) == 3
    notebook.run("mlflow.log_metric('mine', 1.0)")
    notebook.run("1 / 0")
    (run,) = notebook.runs()
    assert run.info.status == "RUNNING"
    assert run.data.metrics["mine"] == 1.0


def test_an_epoch_for_each_cell_and_its_evaluation_in_the_next(notebook: Notebook) -> None:
    notebook.begin("cells")
    own = []
    for epoch in range(3):
        notebook.run("train()")
        if epoch == 1:
            time.sleep(0.5)
            assert len(notebook.values("train/loss")) == 1  # the second may still be evaluated
        own.append(notebook.value("own = evaluate()"))
        assert notebook.has(epoch + 1, "validation/loss") == pytest.approx(own, rel=1e-6)
    notebook.run("train()")
    notebook.run("pass")
    assert len(notebook.has(4)) == 4
    notebook.run("evaluate()")  # of which epoch is no longer said
    notebook.run("train(); train()")
    assert len(notebook.has(6)) == 6
    assert len(notebook.values("validation/loss")) == 3


def test_a_cell_that_fails_ends_its_training_and_no_other(notebook: Notebook) -> None:
    notebook.begin("failures")
    assert notebook.run("train(); train(); evaluate(); 1 / 0")["ename"] == "ZeroDivisionError"
    assert len(notebook.has(2)) == 2
    assert notebook.run(f"{ANEW}train(); train(); train(batches=30)")["ename"] == "KeyboardInterrupt"
    assert len(notebook.has(2, run=1)) == 2
    assert [run.info.status for run in notebook.runs()] == ["FAILED", "RUNNING"]
    notebook.run("train(); train()")  # the interrupted one goes on
    assert len(notebook.has(5, run=1)) == 5
    notebook.run("mlflow_dynamics.autolog(disable=True)")
    assert [run.info.status for run in notebook.runs()] == ["FAILED", "FINISHED"]
    notebook.run("mlflow_dynamics.autolog()")


def test_a_run_goes_on_until_it_is_ended_and_what_is_logged_meanwhile_is_its_own(notebook: Notebook) -> None:
    notebook.begin("log")
    notebook.run("train(); evaluate()")
    notebook.has(1)
    notebook.run("mlflow.log_metric('mine', 1.0)")
    notebook.run("train(); evaluate()")
    notebook.has(2)
    assert notebook.runs()[0].data.metrics["mine"] == 1.0
    notebook.run("mlflow.end_run()")
    notebook.run("train(); evaluate()")
    notebook.has(1, run=1)
    assert [run.info.status for run in notebook.runs()] == ["FINISHED", "RUNNING"]
    assert len(notebook.values("train/loss")) == 2


def test_an_epoch_or_an_evaluation_that_is_not_whole_is_not_taken_for_one(notebook: Notebook) -> None:
    notebook.begin("parts")
    notebook.run(
        "before = {key: value.clone() for key, value in model.state_dict().items()}\ntrain(batches=20)"
    )
    notebook.run("'a look at the learning rates'")
    notebook.run("model.load_state_dict(before)")
    notebook.run("train()")
    assert notebook.run(EVALUATE_A_PART)["ename"] == "KeyboardInterrupt"
    own = notebook.value("own = evaluate()")
    assert notebook.has(1, "validation/loss") == pytest.approx([own], rel=1e-6)
    assert notebook.run("train(batches=20)")["ename"] == "KeyboardInterrupt"
    notebook.run("pass")
    assert len(notebook.has(1)) == 1


def test_magics_that_run_a_cell_or_a_script_are_understood(notebook: Notebook, tmp_path: Path) -> None:
    notebook.begin("magics")
    notebook.run("%%capture\ntrain()")
    own = notebook.value("own = evaluate()")
    assert notebook.has(1, "validation/loss") == pytest.approx([own], rel=1e-6)
    script = tmp_path / "script.py"
    script.write_text("train(); train(); 1 / 0")
    notebook.run(f"%run -i {script}")
    assert len(notebook.has(3)) == 3
    notebook.run(f"{ANEW}train(); train()")
    notebook.has(2, run=1)
    assert [run.info.status for run in notebook.runs()] == ["FAILED", "RUNNING"]


def test_what_another_thread_is_training_is_left_to_it(notebook: Notebook) -> None:
    notebook.begin("thread")
    notebook.run(IN_A_THREAD)
    for _ in range(5):
        notebook.run("import time; time.sleep(0.1)")
    own = notebook.value("thread.join()\nown = seen")
    assert notebook.has(2, "validation/loss") == pytest.approx(own, rel=1e-6)


@pytest.mark.drawn
def test_the_kernels_end_is_that_of_the_run(empty_store: Path, own_mlflow: Path) -> None:
    pytest.importorskip("altair", reason="it waits for the page, which needs the extra report")
    notebook = Notebook(own_mlflow)
    notebook.run(SETUP)
    notebook.begin("end")
    notebook.run("train(); train()")
    notebook.has(2)
    notebook.run("1 / 0")
    (run,) = notebook.runs()
    wait_until(lambda: names.REPORT in notebook.files(run))
    notebook.close(now=False)
    assert [run.info.status for run in notebook.runs()] == ["FINISHED"]


def test_after_the_cell_its_run_is_the_active_one_also_where_the_store_is_yet_to_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)  # of another store
    folder = tmp_path / "fresh"
    folder.mkdir()
    notebook = Notebook(folder)
    notebook.experiment = "0"
    notebook.run(SETUP + ANEW)
    notebook.run("train(); train()")
    notebook.run("mlflow.log_metric('mine', 1.0)")  # at once: it takes MLflow seconds to make its tables
    notebook.run("train()")
    notebook.run("pass")
    notebook.has(3)
    (run,) = notebook.runs()
    assert run.data.metrics["mine"] == 1.0
    notebook.close(now=True)
