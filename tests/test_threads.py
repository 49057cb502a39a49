"""Our threads leave signals to the script's: shown in a process of its own, which a signal may end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

WAYS = {
    "a thread started in one of ours": """
import threading
from mlflow_dynamics.threads import started

def work():
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    time.sleep(60)

assert started(threading.Thread(target=work, daemon=True))
time.sleep(0.2)
""",
    "track": """
sys.modules["polars"] = None  # MLflow loads it, and it starts a thread, with us or without
import torch, mlflow_dynamics

model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
tracker = mlflow_dynamics.track(model, optimizer=optimizer)
model(torch.randn(4, 4)).sum().backward()
optimizer.step()
tracker.end_epoch({"train/loss": 1.0})
""",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_signal_that_the_script_has_put_off_stays_put_off(way: str, own_mlflow: Path) -> None:
    script = f"""
import os, signal, sys, time
{WAYS[way]}
assert not signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # the script's own mask is as it was
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.5)
print("the checkpoint is whole", flush=True)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
"""
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert ended.stdout == "the checkpoint is whole\n", ended.stderr
    assert ended.returncode == -15
