"""Criteria with class weights, and those of dense predictions: the losses are the means over what they count."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from recorded import Record, records
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import mlflow_dynamics

VOID = 255
EPOCHS = 2
Criterion = Callable[[Tensor, Tensor], Tensor]


def dense() -> nn.Module:
    """Three classes for each pixel."""
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))


def flat() -> nn.Module:
    """Three classes for each image."""
    return nn.Sequential(dense(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def batches(seed: int, *, shape: tuple[int, ...], void: bool = False) -> DataLoader[tuple[Tensor, ...]]:
    """Of four images, and a last one of two."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(22, 2, 6, 6, generator=generator)
    targets = torch.randint(0, 3, (22, *shape), generator=generator)
    if void:
        targets[torch.rand(targets.shape, generator=generator) < 0.3] = VOID
    return DataLoader(TensorDataset(images, targets), batch_size=4)


def train(model: nn.Module, criterion: Criterion, judge: Criterion, **data: bool | tuple[int, ...]) -> Record:
    """Train and validate; each mean is also taken by hand, over the targets that are counted."""
    mlflow_dynamics.autolog()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    training, validation = batches(1, **data), batches(2, **data)
    own: dict[str, dict[int, float]] = {"train/loss": {}, "validation/loss": {}}
    for epoch in range(EPOCHS):
        sums = torch.zeros(2, dtype=torch.float64)
        for x, y in training:
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            counted = (y != VOID).sum()
            sums += torch.stack([loss.detach() * counted, counted])
        own["train/loss"][epoch] = float(sums[0] / sums[1])
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad():
            for x, y in validation:
                counted = (y != VOID).sum()
                sums += torch.stack([judge(model(x), y) * counted, counted])
        own["validation/loss"][epoch] = float(sums[0] / sums[1])
        model.train()
    mlflow_dynamics.autolog(disable=True)
    (record,) = records()
    assert record.metric("train/loss") == pytest.approx(own["train/loss"], rel=1e-5)
    if judge is criterion:
        assert record.metric("validation/loss") == pytest.approx(own["validation/loss"], rel=1e-5)
    return record


def on_numbers(criterion: nn.Module) -> Criterion:
    """Each class is a number that is predicted."""
    return lambda output, y: criterion(output, nn.functional.one_hot(y, 3).float())


@pytest.mark.parametrize(
    "criterion", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0]))]
)
def test_a_class_for_each_pixel(criterion: Criterion) -> None:
    assert train(dense(), criterion, criterion, shape=(6, 6)).metric("validation/accuracy") == {}


def test_pixels_that_are_ignored_are_not_counted() -> None:
    criterion = nn.CrossEntropyLoss(ignore_index=VOID)
    train(dense(), criterion, criterion, shape=(6, 6), void=True)


@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0])),
        on_numbers(nn.BCEWithLogitsLoss(pos_weight=torch.tensor([0.5, 1.0, 4.0]))),
    ],
)
def test_classes_have_weights(criterion: Criterion) -> None:
    train(flat(), criterion, criterion, shape=())


@pytest.mark.parametrize(
    "module", [nn.BCEWithLogitsLoss, nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss]
)
def test_numbers_are_predicted(module: type[nn.Module]) -> None:
    criterion = on_numbers(module())
    train(flat(), criterion, criterion, shape=())


def test_weights_in_training_alone_make_another_criterion(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mlflow_dynamics")
    record = train(
        flat(), nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0])), nn.CrossEntropyLoss(), shape=()
    )
    assert record.metric("validation/loss") == {}
    assert set(record.metric("validation/accuracy")) == {0, 1}
    assert (
        "The validation loss is not logged: cross_entropy is evaluated, cross_entropy(weight) trained."
        in caplog.messages
    )
