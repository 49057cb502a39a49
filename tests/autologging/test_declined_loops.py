"""Loops that tell no epochs are declined with one line that names the explicit ways."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from loops import evaluate, train_batch
from recorded import records
from several_loaders import endless
from torch.nn import functional as F
from witness import BATCH, Witness, data, loader, net, sgd

import mlflow_dynamics
from mlflow_dynamics.loop.reading import NO_PASSES, TANGLED
from mlflow_dynamics.loop.trainings import EXPLICIT

EPOCHS = 4


def slices_and_a_test_loader(w: Witness) -> None:
    images, targets = data().tensors
    optimizer, test_loader = sgd(w.model), loader(10, seed=2)
    for epoch in range(EPOCHS):
        for start in range(0, len(images), BATCH):
            batch = slice(start, start + BATCH)
            train_batch(w, optimizer, images[batch], targets[batch], epoch)
        evaluate(w, test_loader)


def slices_and_a_sloppy_test(w: Witness) -> None:
    images, targets = data().tensors
    optimizer, test_loader = sgd(w.model), loader(10, seed=2)
    for epoch in range(EPOCHS):
        for x, y in test_loader:
            F.cross_entropy(w.model(x), y).item()
        for start in range(0, len(images), BATCH):
            batch = slice(start, start + BATCH)
            train_batch(w, optimizer, images[batch], targets[batch], epoch)


def a_new_iterator_for_each_step(w: Witness) -> None:
    batches, optimizer = loader(shuffle=True), sgd(w.model)
    for step in range(20):
        train_batch(w, optimizer, *next(iter(batches)), step)


def a_new_iterator_for_each_step_of_persistent_workers(w: Witness) -> None:
    batches, optimizer = loader(shuffle=True, num_workers=1, persistent_workers=True), sgd(w.model)
    for step in range(4):
        train_batch(w, optimizer, *next(iter(batches)), step)


def three_steps_on_a_replay_of_two_batches(w: Witness) -> None:
    first, replay, optimizer = loader(), endless(loader(8, seed=5)), sgd(w.model)
    for x, y in first:
        train_batch(w, optimizer, x, y, 0)
        for _ in range(3):
            train_batch(w, optimizer, *next(replay), 0)


@pytest.mark.parametrize(
    ("loop", "reason", "closed"),
    [
        (slices_and_a_test_loader, NO_PASSES, 0),
        (slices_and_a_sloppy_test, NO_PASSES, 0),
        (a_new_iterator_for_each_step, NO_PASSES, 0),
        (a_new_iterator_for_each_step_of_persistent_workers, NO_PASSES, 0),
        (three_steps_on_a_replay_of_two_batches, TANGLED, 2),
    ],
)
def test_declined(
    loop: Callable[[Witness], None], reason: str, closed: int, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow_dynamics.autolog()
    with caplog.at_level(logging.WARNING, "mlflow_dynamics"):
        loop(Witness(net()))
        mlflow_dynamics.autolog(disable=True)
    lines = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    since = " after epoch 1" if closed else ""
    assert lines == [f"The dynamics of Sequential are not recorded{since}: {reason}; {EXPLICIT}."]
    assert sum(len(record.steps) for record in records()) == closed
