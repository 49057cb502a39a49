"""One loader for two models, and one whose pass has begun before autolog() is called."""

from __future__ import annotations

from loops import train_batch
from recorded import records
from witness import Witness, loader, net, sgd

import mlflow_dynamics


def steps_of_epochs() -> list[list[int]]:
    return [[len(steps) for steps in record.steps.values()] for record in records()]


def test_two_models_trained_one_after_the_other() -> None:
    mlflow_dynamics.autolog()
    batches, witnesses = loader(), [Witness(net(seed)) for seed in range(2)]
    for witness, epochs in zip(witnesses, (1, 2), strict=True):
        optimizer = sgd(witness.model)
        for epoch in range(epochs):
            for x, y in batches:
                train_batch(witness, optimizer, x, y, epoch)
    mlflow_dynamics.autolog(disable=True)
    assert steps_of_epochs() == [[6], [6, 6]]


def test_autolog_is_called_in_mid_epoch() -> None:
    witness, batches = Witness(net()), loader()
    optimizer = sgd(witness.model)
    for epoch in range(3):
        for index, (x, y) in enumerate(batches):
            if epoch == 0 and index == 2:
                mlflow_dynamics.autolog()
            train_batch(witness, optimizer, x, y, epoch)
    mlflow_dynamics.autolog(disable=True)
    assert steps_of_epochs() == [[4, 6, 6]]
