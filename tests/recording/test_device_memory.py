"""Steps are handed over up to any one of them, across the copies that they lie in."""

from __future__ import annotations

import pytest
import torch

from mlflow_dynamics.recording.device_memory import CHUNK_STEPS, StepHistory
from mlflow_dynamics.recording.hooks import MOMENTS


@pytest.mark.parametrize(
    "end", [0, 1, CHUNK_STEPS - 1, CHUNK_STEPS, CHUNK_STEPS + 1, CHUNK_STEPS + 5, 10_000]
)
def test_the_steps_before_one_are_taken_and_the_rest_kept(end: int) -> None:
    history = StepHistory()
    total = CHUNK_STEPS + 5

    def append(step: int) -> None:
        history.append(step, [torch.full((MOMENTS,), float(step))])

    for step in range(total):
        append(step)
    parts = [history.take(end)]
    append(total)
    parts.append(history.take(total + 1))
    for (steps, copies), expected in zip(
        parts, (range(min(end, total)), range(min(end, total), total + 1)), strict=True
    ):
        assert steps == list(expected)
        assert [value for copy in copies for value in copy.wait()[:, 0, 0].tolist()] == steps
