"""The documentation points at what is there, its commands and names exist, and its Python runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
import yaml
from click import Command
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mlflow_dynamics
from mlflow_dynamics import cli
from mlflow_dynamics.tracking import names

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the documentation's site make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]+))?\)", page.read_text()):
        if "://" in target:
            continue
        leads = page.parent / target if target else page
        assert leads.exists(), target
        assert not anchor or anchor in anchors(leads), f"{target}#{anchor}"


def test_every_metric_is_explained() -> None:
    table = (ROOT / "docs" / "metrics.md").read_text()
    assert [key for key in names.DYNAMICS_METRICS if f"| `{key}` |" not in table] == []


def test_every_module_says_its_one_job_first() -> None:
    silent = [
        path.relative_to(ROOT)
        for path in (ROOT / "mlflow_dynamics").rglob("*.py")
        if not path.read_text().startswith('"""')
    ]
    assert silent == []


def shown_commands() -> list[tuple[str, str]]:
    """Each command of ours that a page shows, up to the end of its line or of its code."""
    shown = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for line in re.findall(r"(?<![-\w])(?:mlflow-dynamics|mlflow run) [^`\n#]+", text):
            shown.append((name_of(page), line.strip()))
    return shown


@pytest.mark.parametrize(("page", "line"), shown_commands())
def test_a_command_has_the_options_that_are_shown(page: str, line: str) -> None:
    words = line.split()
    if words[:2] == ["mlflow", "run"]:
        entry = words[words.index("-e") + 1].strip(",;") if "-e" in words else "main"
        points = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
        given = re.findall(r"-P (\w+)=", line)
        assert entry in points
        assert set(given) <= set(points[entry]["parameters"]), line
        return
    command: Command | None = cli.commands.commands.get(words[1])
    if command is None:
        assert words[1].startswith(("-", "|")), line
        return
    known = {option for parameter in command.params for option in parameter.opts} | {"-h", "--help"}
    script = words.index("train.py") if "train.py" in words else len(words)
    assert {word.strip("[].,;)") for word in words[2:script] if word.startswith("--")} <= known


@pytest.fixture
def reader(own_mlflow: Path) -> dict[str, Any]:
    """The names that a reader of the pages has: a model and how to train it, a finished run, signals."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(torch.randn(64, 4), torch.randint(2, (64,))), batch_size=2)

    def train_one_epoch(*_: object) -> float:
        for values, target in loader:
            loss = nn.functional.cross_entropy(model(values), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    with mlflow.start_run() as run, mlflow_dynamics.track(model) as tracker:
        train_one_epoch()
        tracker.end_epoch()
    random = np.random.default_rng(0)
    return {
        "model": model,
        "optimizer": optimizer,
        "loader": loader,
        "train_one_epoch": train_one_epoch,
        "epochs": 2,
        "checkpoint": {"epoch": 0},
        "run_id": run.info.run_id,
        "Trainer": lambda callbacks: callbacks,
        "signals": random.standard_normal((3, 64)),
        "windows": random.standard_normal((2, 3, 64)),
        "mlflow_dynamics": mlflow_dynamics,
    }


def test_the_python_of_the_pages_runs(reader: dict[str, Any]) -> None:
    ran = 0
    for page in PAGES:
        for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            try:
                exec(compile(code, name_of(page), "exec"), dict(reader))
            finally:
                mlflow_dynamics.autolog(disable=True)
            ran += 1
    assert ran > 5
    assert set(mlflow.search_runs(search_all_experiments=True)["status"]) == {"FINISHED"}
