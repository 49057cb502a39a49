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

    def shown(self, cell: str) -> list[tuple[str, str, dict[str, str]]]:
        """What the cell displays: the kind of each message, what it is the display of, and its forms."""
        seen: list[dict[str, Any]] = []
        reply = self.client.execute_interactive(cell, timeout=120, output_hook=seen.append)
        assert reply["content"]["status"] == "ok", reply["content"]
        return [
            (
                one["msg_type"],
                one["content"].get("transient", {}).get("display_id", ""),
                one["content"]["data"],
            )
            for one in seen
            if "data" in one["content"]
        ]

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


TRACKED = f"""
mlflow_dynamics.autolog(disable=True)
{ANEW}
with mlflow_dynamics.track(model) as tracker:
    for epoch in range(4):
        train()
        tracker.end_epoch({{"train/loss": evaluate()}})
"""


def test_a_tracked_training_shows_one_figure_that_follows_it_and_a_tracker_shows_itself(
    notebook: Notebook,
) -> None:
    notebook.begin("figure")
    began = time.monotonic()
    shown = notebook.shown(TRACKED)
    assert len(shown) <= 3 + time.monotonic() - began  # the first, the last two, and one a second
    (run,) = notebook.runs()
    assert [kind for kind, _, _ in shown[:1]] == ["display_data"]
    assert {kind for kind, _, _ in shown[1:]} == {"update_display_data"}
    assert len({display for _, display, _ in shown}) == 1
    first, last = shown[0][2], shown[-1][2]
    assert first["text/plain"] == f"{run.info.run_name}: 0 epochs so far"
    assert last["text/plain"].startswith(f"{run.info.run_name}: 4 epochs\n")
    assert "\nAfter epoch 3: integration 0." in last["text/plain"]
    assert last["text/html"].count("<svg") == 2  # of loss and stability
    ((kind, _, result),) = notebook.shown("tracker")
    assert kind == "execute_result"
    assert result["text/html"] == last["text/html"]


def test_a_figure_stays_under_the_cell_of_the_first_epoch(notebook: Notebook) -> None:
    notebook.begin("cell by cell")
    assert (
        notebook.shown(f"mlflow_dynamics.autolog(disable=True)\n{ANEW}tracker = mlflow_dynamics.track(model)")
        == []
    )
    ((_, display, _), *_) = notebook.shown("train(); tracker.end_epoch(); tracker.wait(0)\nNone")
    shown = notebook.shown("train(); tracker.end_epoch(); tracker.close()")
    assert {(kind, of) for kind, of, _ in shown} == {("update_display_data", display)}
    assert ": 2 epochs\n" in shown[-1][2]["text/plain"]


def test_who_watches_a_run_sees_its_figure(notebook: Notebook) -> None:
    notebook.begin("watched")
    notebook.run(TRACKED)
    (run,) = notebook.runs()
    shown = notebook.shown("for epoch in mlflow_dynamics.watch(tracker.run_id): pass")
    assert [kind for kind, _, _ in shown][:1] == ["display_data"]
    assert len({display for _, display, _ in shown}) == 1
    assert shown[-1][2]["text/plain"].startswith(f"{run.info.run_name}: 4 epochs\n")
    assert shown[-1][2]["text/html"].count("<svg") == 2


def test_a_notebook_that_cannot_show_a_figure_trains_as_ever(notebook: Notebook) -> None:
    notebook.begin("refused")
    spoilt = """
publish = get_ipython().display_pub.publish
def spoilt(*_, update=False, **__):
    time.sleep(60 if update else 0)
    raise RuntimeError("no screen")
get_ipython().display_pub.publish = spoilt
import time
began = time.monotonic()
"""
    own = notebook.value(
        f"{spoilt}{TRACKED}\nget_ipython().display_pub.publish = publish\nown = time.monotonic() - began"
    )
    assert own < 20  # it waits for the last drawing for no longer than 2 s
    assert [run.info.status for run in notebook.runs()] == ["FINISHED"]
    assert notebook.has(4, "dynamics/stability")


def test_a_process_that_the_notebook_forks_shows_nothing(notebook: Notebook) -> None:
    notebook.begin("forked")
    forked = f"""
import multiprocessing
told = multiprocessing.get_context("fork").SimpleQueue()
def work():
    torch.set_num_threads(1)
    get_ipython().display_pub.publish = lambda **message: told.put(message)
    with mlflow_dynamics.track(model) as tracker:
        train()
        tracker.end_epoch()
mlflow_dynamics.autolog(disable=True)
{ANEW}
process = multiprocessing.get_context("fork").Process(target=work)
process.start()
process.join(60)
assert process.exitcode == 0
"""
    assert notebook.shown(forked) == []
    assert notebook.value("own = told.empty()")
    assert len(notebook.runs()) == 1
    notebook.run("mlflow_dynamics.autolog()")


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
