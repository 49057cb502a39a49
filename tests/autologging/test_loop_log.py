"""The log of a user's own training, written without data, and read again."""

from __future__ import annotations

import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import pytest
from recorded import steps_of_epochs
from small_training import STEPS, loader, network, sgd, step

import mlflow_dynamics
from mlflow_dynamics.errors import ConfigError
from mlflow_dynamics.loop.epochs import segment
from mlflow_dynamics.loop.events import BatchDrawn, Stepped
from mlflow_dynamics.loop.replay import read_logs

SCRIPT = """
from small_training import loader, network, sgd, step
model, batches = network(), loader()
optimizer = sgd(model)
for epoch in range(2):
    for images, targets in batches:
        step(model, optimizer, images, targets)
"""


def test_the_log_of_a_training_tells_its_epochs(tmp_path: Path) -> None:
    mlflow_dynamics.autolog(loop_log=tmp_path / "loop.jsonl")
    for lengths in ([STEPS, STEPS], [STEPS, 4]):
        model = network()
        optimizer = sgd(model)
        first, second = loader(), loader(1)
        for batches, length in zip((first, second), lengths, strict=True):
            for _, (images, targets) in zip(range(length), batches, strict=False):
                step(model, optimizer, images, targets)
    mlflow_dynamics.autolog(disable=True)
    logs = read_logs(tmp_path / "loop.jsonl")
    assert len(logs) == 2
    for log, epochs in zip(logs, steps_of_epochs(), strict=True):
        assert sum(isinstance(event, Stepped) for event in log) == sum(epochs)
        assert {event.length for event in log if isinstance(event, BatchDrawn)} == {STEPS}
        assert segment(log, over=True).starts == (0, *accumulate(epochs[:-1]))


def test_the_command_line_writes_the_log(tmp_path: Path) -> None:
    script, file = tmp_path / "train.py", tmp_path / "loop.jsonl"
    script.write_text(f"import sys; sys.path.append({str(Path(__file__).parent)!r})\n{SCRIPT}")
    command = [sys.executable, "-m", "mlflow_dynamics.cli", "run", "--record-loop", str(file), str(script)]
    subprocess.run(command, check=True, capture_output=True)
    (log,) = read_logs(file)
    assert segment(log, over=True).starts == (0, STEPS)


def test_a_file_that_cannot_be_written_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing.*cannot be written: No such file or directory"):
        mlflow_dynamics.autolog(loop_log=tmp_path / "missing" / "loop.jsonl")
