"""The frameworks' callbacks under DistributedDataParallel, two real processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torchrun import launch

from mlflow_dynamics import load_activations

SCRIPT = Path(__file__).parent / "distributed_frameworks.py"


@pytest.mark.parametrize("framework", ["lightning", pytest.param("transformers", marks=pytest.mark.slow)])
def test_one_run_holds_the_statistics_of_both_ranks_parts(
    empty_store: Path, tmp_path: Path, framework: str
) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    job = launch(SCRIPT, folder, empty_store, framework)
    assert job.code == 0, job.lines
    table = load_activations(job.use(framework), layers=[0]).to_pandas().sort_values("step")
    seen = np.array([job.told(framework, rank) for rank in range(2)])
    assert seen.shape == (2, 32, 2)
    assert not np.allclose(seen[0], seen[1], rtol=0.1)
    mean, square = seen.mean(axis=0).T
    np.testing.assert_allclose(table["mean"], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(table["std"], np.sqrt(square - mean**2), rtol=1e-4)
