"""What a torch before 2.6 cannot do is said, and the rest is recorded; `.ci/floors` has one."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from torchrun import launch

from mlflow_dynamics import load_activations
from mlflow_dynamics.recording.torch_private import CLONES_STORES

TRAINING = """
import torch, mlflow_dynamics
from torch import distributed, nn
distributed.init_process_group("gloo")
torch.manual_seed(distributed.get_rank())
model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with mlflow_dynamics.track(model) as tracker:
    for epoch in range(2):
        for step in range(20):
            optimizer.zero_grad()
            model(torch.randn(4, 8)).square().mean().backward()
            optimizer.step()
        tracker.end_epoch()
distributed.destroy_process_group()
"""


@pytest.mark.skipif(CLONES_STORES, reason="this torch records the ranks of one model together")
def test_of_several_ranks_the_first_is_recorded_and_says_so(empty_store: Path, tmp_path: Path) -> None:
    script = tmp_path / "training.py"
    script.write_text(TRAINING)
    job = launch(script, tmp_path, empty_store)
    assert job.code == 0, job.lines
    assert job.lines.count("Rank 0 is recorded with its own part of each batch: the ranks of one model") == 1
    (run,) = mlflow.search_runs(output_format="list")
    assert load_activations(run.info.run_id).num_rows == 2 * 20 * 2
