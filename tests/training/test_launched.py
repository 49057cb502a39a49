"""Entry points that train nothing: the run that `mlflow run` makes for them is not left empty."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow.entities import Run
from torch import nn
from waiting import wait_until

import mlflow_dynamics
from mlflow_dynamics.training.launched import launched_run

ROOT = Path(__file__).parents[2]


def launch(*arguments: str, project: str = str(ROOT)) -> int:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "PATH": path}
    command = [sys.executable, "-m", "mlflow", "run", project, "--env-manager", "local", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode


def runs() -> list[Run]:
    return mlflow.search_runs(search_all_experiments=True, output_format="list")


def files(run: Run) -> list[str]:
    return [one.path for one in mlflow.MlflowClient().list_artifacts(run.info.run_id, "dynamics")]


def recorded() -> str:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with mlflow.start_run(run_name="mine") as run, mlflow_dynamics.track(model) as tracker:
        for _ in range(3):
            for _ in range(40):
                model(torch.from_numpy(np.ones((8, 4), np.float32))).square().mean().backward()
                optimizer.step()
            tracker.end_epoch({"train/loss": 1.0})
    return run.info.run_id


@pytest.mark.drawn
def test_a_page_is_in_the_run_made_for_it_and_a_watch_or_a_mistake_leaves_none(own_mlflow: Path) -> None:
    run_id = recorded()
    assert launch("-e", "report", "-P", f"run_ids={run_id}", "-P", f"output={own_mlflow}/page.html") == 0
    assert launch("-e", "watch", "-P", f"run_id={run_id}") == 0
    assert launch("-e", "report", "-P", "run_ids=nowhere") != 0
    assert launch("-P", "epochs=0") != 0
    wait_until(lambda: len(runs()) <= 2)
    page, mine = runs()
    assert mine.info.run_id == run_id
    assert (page.info.run_name, page.info.status) == ("Report of mine", "FINISHED")
    assert files(page) == ["dynamics/page.html"]


def test_a_run_that_is_somebodys_own_is_never_taken_for_a_launched_one(own_mlflow: Path) -> None:
    client = mlflow.MlflowClient()
    project = {"mlflow.source.type": "PROJECT", "mlflow.project.entryPoint": "watch"}
    made = client.create_run("0", tags=project).info.run_id
    full = client.create_run("0", tags=project).info.run_id
    client.log_metric(full, "loss", 1.0)
    ended = client.create_run("0", tags=project).info.run_id
    client.set_terminated(ended)
    own = client.create_run("0").info.run_id
    assert launched_run("watch", made) is not None
    assert launched_run("main", made) is None
    for run_id in (full, ended, own, "nowhere"):
        assert launched_run("watch", run_id) is None, run_id


def test_a_folder_of_a_git_repository_whose_path_has_spaces_is_launched_from_elsewhere(
    own_mlflow: Path,
) -> None:
    repository = own_mlflow / "all my projects"
    folder = repository / "dynamics"
    shutil.copytree(ROOT / "mlflow_dynamics", folder / "mlflow_dynamics")
    for name in ("MLproject", "python_env.yaml"):
        shutil.copy(ROOT / name, folder)
    author = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    for words in (["init", "--quiet"], ["add", "."], [*author, "commit", "--quiet", "--message", "all"]):
        subprocess.run(["git", *words], cwd=repository, check=True)
    small = [word for one in ("epochs=1", "limit_train=64", "limit_test=32") for word in ("-P", one)]
    assert launch(*small, project=f"file://{repository}#dynamics") == 0
    (run,) = runs()
    assert (run.info.status, "train/loss" in run.data.metrics) == ("FINISHED", True)
    assert run.data.tags["mlflow.source.git.commit"]
