"""Runs a script in two real processes under torchrun, and reads the files and the run that they have left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow


@dataclass
class Job:
    """The result of a job of two processes.

    Attributes:
        folder: the folder with the files and the MLflow store of the job.
        code: the exit status.
        lines: the output of both processes.
    """

    folder: Path
    code: int
    lines: str

    def told(self, how: str, rank: int) -> Any:
        """Return the content of `FOLDER/HOW RANK.json`, which the training loop of this rank has written."""
        return json.loads((self.folder / f"{how} {rank}.json").read_text())

    def use(self, how: str) -> str:
        """Make the job's store the test's own, and return the id of the one run in the experiment `how`."""
        mlflow.set_tracking_uri(f"sqlite:///{self.folder}/mlflow.db")
        mlflow.set_experiment(how)
        (run,) = mlflow.search_runs(output_format="list")
        return str(run.info.run_id)


def launch(script: Path, folder: Path, store: Path, *arguments: str, under_run: bool = False) -> Job:
    """Run `script folder arguments...` in two processes under torchrun, with a copy of an empty MLflow store."""
    shutil.copy(store, folder / "mlflow.db")
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    if under_run:
        command += ["--no-python", sys.executable, "-m", "mlflow_dynamics.cli", "run"]
    done = subprocess.run(
        [*command, str(script), str(folder), *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )
    return Job(folder, done.returncode, done.stdout)
