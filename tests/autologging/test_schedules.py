"""What `mlflow-dynamics run` says of the learning rate of scripts that import, write or set it as they like."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

TRAINING = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
EPOCHS = 8
batches = DataLoader(TensorDataset(torch.randn(32, 4), torch.randint(0, 2, (32,))), batch_size=8)
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
criterion = nn.CrossEntropyLoss()

def train(after_epoch=lambda epoch: None, after_step=lambda: None):
    for epoch in range(EPOCHS):
        for images, targets in batches:
            optimizer.zero_grad()
            criterion(model(images), targets).backward()
            optimizer.step()
            after_step()
        after_epoch(epoch)
"""

SCRIPTS = {
    "timm": (
        """
from timm.scheduler import create_scheduler_v2
scheduler, epochs = create_scheduler_v2(optimizer, sched="cosine", num_epochs=EPOCHS, min_lr=1e-5)
train(lambda epoch: scheduler.step(epoch + 1))
""",
        ("cosine", "8", "none"),
    ),
    "timm, every update": (
        """
from timm.scheduler import StepLRScheduler
scheduler = StepLRScheduler(optimizer, decay_t=3 * len(batches), decay_rate=0.1, t_in_epochs=False)
updates = 0
def update():
    global updates
    updates += 1
    scheduler.step_update(updates)
train(after_step=update)
""",
        ("step", "unknown", "3,6,9"),
    ),
    "Hugging Face": (
        """
from transformers import get_scheduler
scheduler = get_scheduler("linear", optimizer, num_warmup_steps=4, num_training_steps=EPOCHS * len(batches))
train(after_step=scheduler.step)
""",
        ("linear", "8", "none"),
    ),
    "a class of torch's kind": (
        """
class Warm(torch.optim.lr_scheduler.LRScheduler):
    def get_lr(self):
        print(self.last_epoch)
        return [base * (0.1 if self.last_epoch >= 5 else 1.0) for base in self.base_lrs]
scheduler = Warm(optimizer)
train(lambda epoch: scheduler.step())
""",
        ("unknown", "unknown", "none"),
    ),
    "a class of no kind": (
        """
class Decay:
    def __init__(self, optimizer):
        self.optimizer = optimizer
    def step(self):
        print("decayed")
        for group in self.optimizer.param_groups:
            group["lr"] *= 0.97
scheduler = Decay(optimizer)
train(lambda epoch: scheduler.step())
""",
        ("unknown", "unknown", "none"),
    ),
    "by hand": (
        """
def drop(epoch):
    if epoch == 0:
        optimizer.param_groups[0]["lr"] = 0.01
train(drop)
""",
        ("unknown", "unknown", "none"),
    ),
    "never": ("train()", ("constant", "unknown", "none")),
}

_KEYS = [f"dynamics/warning/{key}" for key in ("schedule", "planned_epochs", "drop_epochs")]


def _recorded(script: Path) -> tuple[subprocess.CompletedProcess[str], Run]:
    command = [sys.executable, "-m", "mlflow_dynamics.cli", "run", str(script)]
    recorded = subprocess.run(command, check=True, capture_output=True, text=True)
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    return recorded, run


@pytest.mark.parametrize("kind", SCRIPTS)
def test_a_script_is_told_its_schedule_and_prints_what_it_prints_without_us(
    kind: str, tmp_path: Path
) -> None:
    text, expected = SCRIPTS[kind]
    script = tmp_path / "train.py"
    script.write_text(f"{TRAINING}{text}")
    recorded, run = _recorded(script)
    if "print" in text:
        alone = subprocess.run([sys.executable, str(script)], check=True, capture_output=True, text=True)
        assert recorded.stdout == alone.stdout
    assert tuple(run.data.params.get(key) for key in _KEYS) == expected


def test_a_rate_that_moves_late_was_never_called_constant(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(f"""{TRAINING}
def drop(epoch):
    if epoch == 5:
        optimizer.param_groups[0]["lr"] = 0.01
train(drop)
""")
    _, run = _recorded(script)
    assert [run.data.params[key] for key in _KEYS] == ["unknown", "unknown", "none"]
    assert run.info.status == "FINISHED"
    rates = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/learning_rate")
    assert len({metric.value for metric in rates}) == 2
