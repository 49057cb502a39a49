"""Every loop shape: the epochs, steps, layers and losses that must be found, the values checked."""

from __future__ import annotations

import mlflow
import numpy as np
import pytest
import several_loaders  # noqa: F401 - its loops are registered
import torch
from loops import LOOPS
from recorded import records
from witness import Witness, net

import mlflow_dynamics

NO_TRAIN_LOSS = {"two_loaders_zipped", "distillation"}


@pytest.mark.parametrize("name", LOOPS)
def test_loop_shape(name: str) -> None:
    mlflow_dynamics.autolog()
    witness = Witness(net())
    torch.manual_seed(7)
    LOOPS[name](witness)
    mlflow_dynamics.autolog(disable=True)

    (record,) = records()
    assert record.run.info.status == "FINISHED"
    assert record.layers == witness.names
    assert list(record.steps) == sorted(witness.steps)
    assert [len(steps) for steps in record.steps.values()] == [len(s) for s in witness.steps.values()]
    assert [s for steps in record.steps.values() for s in steps] == list(
        range(sum(map(len, witness.steps.values())))
    )
    for epoch, steps in witness.steps.items():
        expected = np.array(steps)  # steps, layers, 2
        np.testing.assert_allclose(record.mean[epoch], expected[..., 0].T, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(record.std[epoch], expected[..., 1].T, rtol=1e-4, atol=1e-6)

    losses = record.metric("train/loss")
    if name in NO_TRAIN_LOSS:
        assert losses == {}
    else:
        assert losses == pytest.approx(
            {epoch: witness.train_loss(epoch) for epoch in witness.steps}, rel=1e-5
        )
    expected_loss = {epoch: loss for epoch, (loss, _) in witness.validation.items()}
    expected_accuracy = {epoch: accuracy for epoch, (_, accuracy) in witness.validation.items()}
    assert record.metric("validation/loss") == pytest.approx(expected_loss, rel=1e-5)
    assert record.metric("validation/accuracy") == pytest.approx(expected_accuracy, rel=1e-5)
    assert mlflow.active_run() is None
