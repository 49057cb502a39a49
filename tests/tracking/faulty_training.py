"""A small real training on handwritten digits, which measures how long each step waits for this project."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from waiting import wait_until

import mlflow_dynamics
from mlflow_dynamics.recording.boundary import Boundary
from mlflow_dynamics.tracker import Tracker
from mlflow_dynamics.tracking import load_activations, names

EPOCHS = 6
BATCHES = 20
LONGEST_WAIT_S = 0.050


class Waits:
    """How long each step of the main thread was held up by calls of ours.

    Every call of ours that a training makes runs in `Boundary.run`: the outermost one is timed. On a machine
    that others use the kernel may take the core away in the middle of one; that time, which the kernel counts
    for each thread (the second number of schedstat), is not a wait on us and is taken off. Locks, disk, network
    and Python's own lock held by our other threads remain.
    """

    def __init__(self) -> None:
        self.per_step = [0.0]
        self._thread = threading.main_thread()
        self._depth = 0
        self._schedule = Path(f"/proc/self/task/{self._thread.native_id}/schedstat")

    def step(self) -> None:
        """What comes from here on belongs to the next step."""
        self.per_step.append(0.0)

    def timed(self, original: Callable[..., None]) -> Callable[..., None]:
        def run(boundary: Boundary, function: Callable[..., None], *args: object) -> None:
            if threading.current_thread() is not self._thread or self._depth:
                original(boundary, function, *args)
                return
            self._depth = 1
            preempted, began = self._preempted(), time.perf_counter()
            try:
                original(boundary, function, *args)
            finally:
                self._depth = 0
                self.per_step[-1] += time.perf_counter() - began - (self._preempted() - preempted)

        return run

    def _preempted(self) -> float:
        try:
            return int(self._schedule.read_text().split()[1]) / 1e9
        except (OSError, IndexError):
            return 0.0


@contextmanager
def timed_waits() -> Iterator[Waits]:
    waits = Waits()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Boundary, "run", waits.timed(Boundary.run))
        yield waits


def network() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def loader(workers: int = 0, context: str | None = None) -> DataLoader:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)[: 32 * BATCHES] / 16
    labels = torch.tensor(digits.target)[: 32 * BATCHES]
    order = torch.Generator().manual_seed(7)
    return DataLoader(
        TensorDataset(images, labels),
        batch_size=32,
        shuffle=True,
        generator=order,
        num_workers=workers,
        multiprocessing_context=context,
    )


def train(
    model: nn.Module,
    batches: DataLoader,
    *,
    epochs: int,
    tracker: Tracker | None = None,
    waits: Waits | None = None,
    before_epoch: Callable[[int], None] = lambda epoch: None,
    learning_rate: float = 0.05,
) -> list[float]:
    """The loss of every step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    losses: list[float] = []
    for epoch in range(epochs):
        before_epoch(epoch)
        for images, labels in batches:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if waits is not None:
                waits.step()
        if tracker is not None:
            tracker.end_epoch(**{names.TRAIN_LOSS: sum(losses[-BATCHES:]) / BATCHES})
        if waits is not None:
            waits.step()
    return losses


def assert_every_epoch_once(uri: str, run_id: str, losses: list[float]) -> None:
    """Each epoch's loss and activations are in MLflow once, and are those of the training."""
    epochs = len(losses) // BATCHES
    history = MlflowClient(uri).get_metric_history(run_id, names.TRAIN_LOSS)
    assert sorted(metric.step for metric in history) == list(range(epochs))
    for metric in history:
        of_epoch = losses[metric.step * BATCHES : (metric.step + 1) * BATCHES]
        assert metric.value == pytest.approx(sum(of_epoch) / BATCHES, rel=1e-6)
    table = load_activations(run_id, layers=[0])
    rows = sorted(zip(table["epoch"].to_pylist(), table["step"].to_pylist(), strict=True))
    assert [epoch for epoch, _ in rows] == [epoch for epoch in range(epochs) for _ in range(BATCHES)]
    assert len(set(rows)) == len(losses)
    assert len({step for _, step in rows}) == len(losses)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("mlflow_dynamics") and record.levelno >= logging.WARNING
    ]


def global_random_states() -> tuple[object, ...]:
    """Of Python, NumPy and torch: `train` draws from none of them, and retries of MLflow's own client would."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002 - the global one is what trainings draw from
    return (
        random.getstate(),
        numpy["state"]["key"].tobytes(),
        numpy["state"]["pos"],
        bytes(torch.get_rng_state()),
    )


def train_tracked(
    before_epoch: Callable[[int, Tracker], None] = lambda epoch, tracker: None,
    *,
    model: nn.Module | None = None,
    learning_rate: float = 0.05,
    resume: str | None = None,
) -> tuple[list[float], Tracker, float]:
    """Losses, the closed tracker and the longest wait of a step in seconds."""
    model = model or network()
    numbers = global_random_states()
    with timed_waits() as waits, mlflow_dynamics.track(model, resume=resume) as tracker:
        waits.step()
        losses = train(
            model,
            loader(),
            epochs=EPOCHS,
            tracker=tracker,
            waits=waits,
            before_epoch=lambda epoch: before_epoch(epoch, tracker),
            learning_rate=learning_rate,
        )
        # What comes after the last step is the end of the training, which may wait.
        longest = max(waits.per_step[1:])
    assert global_random_states() == numbers
    print(f"longest wait of {len(losses)} steps and {EPOCHS} epochs' ends: {1000 * longest:.1f} ms")
    return losses, tracker, longest


def until_it_fails(tracker: Tracker) -> None:
    wait_until(lambda: tracker._run_log.writer._sender.failing)


def until_all_is_sent(tracker: Tracker) -> None:
    tracker.wait(
        tracker._next_epoch - 1, timeout=60
    )  # before it is measured an epoch is not waiting to be sent
    wait_until(
        lambda: not tracker._run_log.writer._spool.entries() and not tracker._run_log.writer._sender.failing
    )
