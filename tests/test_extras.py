"""Without the extras a training is recorded whole, and what needs one of them names it; what is gone is declined."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.drawn  # what is installed is what these tests are about

ROOT = Path(__file__).parents[1]

EXTRAS = ("altair", "narwhals", "vl-convert-python", "platformdirs", "torchvision", "timm", "safetensors",
          "huggingface-hub", "psutil", "tqdm")  # fmt: skip
"""Packages that no package of the core needs; MLflow itself needs jinja2, pillow and scikit-learn."""


@pytest.fixture(scope="module")
def core_alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of an installation without the extras: the packages of this one but theirs, and ours as it declares."""
    site = tmp_path_factory.mktemp("site")
    left_out = {entry for name in EXTRAS for entry in entries_of(name)} | set(entries_of("mlflow-dynamics"))
    for path in map(Path, sys.path):
        for entry in path.iterdir() if path.name == "site-packages" else ():
            if entry.name not in left_out and not (site / entry.name).exists():
                (site / entry.name).symlink_to(entry)
    built = "from setuptools import build_meta; import sys; build_meta.prepare_metadata_for_build_wheel(sys.argv[1])"
    source, metadata = (tmp_path_factory.mktemp(name) for name in ("source", "metadata"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "mlflow_dynamics"):
        (source / name).symlink_to(ROOT / name)
    made = subprocess.run(
        [sys.executable, "-c", built, str(metadata)], cwd=source, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    return os.pathsep.join(map(str, (ROOT, metadata, site)))


def entries_of(distribution: str) -> set[str]:
    """What a distribution has put into its folder."""
    found = importlib.metadata.distribution(distribution)
    return {file.parts[0] for file in found.files or () if file.parts[0] != ".."}


def python(path: str, code: str) -> subprocess.CompletedProcess[str]:
    """Python without another folder of packages than those of the path."""
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-S", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


TRAINING = """
import sys
import mlflow, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def train():
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(torch.randn(320, 8), torch.randint(0, 2, (320,))), batch_size=8)
    for epoch in range(3):
        for images, targets in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), targets).backward()
            optimizer.step()
"""


def test_without_the_extras_a_run_is_whole_and_each_command_names_its_extra(core_alone: str) -> None:
    code = f"""{TRAINING}
import mlflow_dynamics
from mlflow_dynamics.cli import main
mlflow_dynamics.autolog()
train()
mlflow_dynamics.autolog(disable=True)
(run,) = mlflow.search_runs(output_format="list")
table = mlflow_dynamics.load_activations(run.info.run_id)
print("recorded:", table.num_rows, sorted(run.data.metrics), "**Dynamics.**" in run.data.tags["mlflow.note.content"])
for command in (["train"], ["paper"], ["grid", "file"], ["report", run.info.run_id], ["recompute", run.info.run_id],
                ["evaluate", "--experiment", "Default", "--figure", "figure.png"]):
    try:
        main(command)
    except SystemExit as left:
        print("left:", command[0], left.code)
"""
    done = python(core_alone, code)
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    recorded = [line for line in done.stdout.splitlines() if line.startswith("recorded:")]
    assert recorded[0].startswith(f"recorded: {3 * 40 * 2} ['dynamics/")
    assert "'dynamics/integration'" in recorded[0]
    assert "'train/loss'" in recorded[0]
    assert recorded[0].endswith("True")
    pages = [line for line in said if 'for them: pip install "mlflow-dynamics[report]"' in line]
    assert len(pages) == 1, done.stderr
    assert "is not drawn" not in done.stderr
    left = [line for line in done.stdout.splitlines() if line.startswith("left:")]
    assert left == ["left: train 2", "left: paper 2", "left: grid 2", "left: report 2", "left: evaluate 2"]
    errors = [line for line in said if line.startswith("Error: ")]
    assert [line.split(" needs ")[0] for line in errors] == [
        "Error: mlflow-dynamics train",
        "Error: mlflow-dynamics paper",
        "Error: mlflow-dynamics grid",
        "Error: mlflow-dynamics report",
        "Error: mlflow-dynamics evaluate --figure",
    ]
    assert errors[3].endswith(
        'needs altair, vl-convert-python, platformdirs; install it with: pip install "mlflow-dynamics[report]"'
    )
    assert all("timm" in line and '"mlflow-dynamics[train]"' in line for line in errors[:2])
    assert "Traceback" not in done.stderr


def test_a_name_that_is_gone_costs_the_recording_alone() -> None:
    code = f"""{TRAINING}
import logging
logging.basicConfig(format="%(message)s")
import mlflow.utils.mime_type_utils as types
for module, name in ((torch._C, "_current_graph_task_id"), (types, "_guess_mime_type")):
    kept = getattr(module, name)
    delattr(module, name)
    import mlflow_dynamics
    from mlflow_dynamics.cli import main
    mlflow_dynamics.autolog(silent=True)
    train()
    try:
        mlflow_dynamics.track(nn.Linear(2, 2))
    except mlflow_dynamics.errors.DynamicsError as error:
        print("track:", error)
    try:
        main(["run", "/dev/null"])
    except SystemExit as left:
        print("run:", left.code)
    setattr(module, name, kept)
    for ours in [one for one in sys.modules if one.startswith("mlflow_dynamics")]:
        del sys.modules[ours]
import mlflow_dynamics
print("runs:", len(mlflow.search_runs()))
mlflow_dynamics.autolog()
train()
mlflow_dynamics.autolog(disable=True)
print("runs:", len(mlflow.search_runs()))
"""
    done = python(os.pathsep.join([str(ROOT), *filter(None, sys.path)]), code)
    assert done.returncode == 0, done.stderr
    declined = [line for line in done.stderr.splitlines() if line.startswith("Nothing is recorded: ")]
    assert len(declined) == 2
    assert "_current_graph_task_id" in declined[0]
    assert "_guess_mime_type" in declined[1]
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("run")] == ["run: 2", "run: 2", "runs: 0", "runs: 1"]
    assert len([line for line in lines if line.startswith("track: this mlflow_dynamics cannot be used")]) == 2
    assert "Traceback" not in done.stderr
