"""Criteria with class weights, and those of dense predictions: the losses are the means over what they count."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from recorded import Record, not_logged, records
from torch import Tensor, nn
from torch.nn import functional as F
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


def batches(
    seed: int, *, shape: tuple[int, ...], void: bool = False, lost: bool = False
) -> DataLoader[tuple[Tensor, ...]]:
    """Of four images, and a last one of two."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(22, 2, 6, 6, generator=generator)
    targets = torch.randint(0, 3, (22, *shape), generator=generator)
    if void:
        targets[torch.rand(targets.shape, generator=generator) < 0.3] = VOID
    if lost:
        targets[4:8] = 0
    return DataLoader(TensorDataset(images, targets), batch_size=4)


def train(
    model: nn.Module, criterion: Criterion, judge: Criterion, *, ignored: int = VOID, **data: Any
) -> tuple[Record, dict[str, dict[int, float]]]:
    """Train and validate; what is logged, and each mean taken by hand, over the targets that are not ignored."""
    mlflow_dynamics.autolog()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    training, validation = batches(1, **data), batches(2, **data)
    own: dict[str, dict[int, float]] = {"train/loss": {}, "validation/loss": {}, "validation/accuracy": {}}
    for epoch in range(EPOCHS):
        total = counted = right = 0.0
        for x, y in training:
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            seen = int((y != ignored).sum())
            if seen:
                loss.backward()
                optimizer.step()
                total += loss.item() * seen
                counted += seen
        own["train/loss"][epoch] = total / counted
        model.eval()
        total = counted = 0.0
        with torch.no_grad():
            for x, y in validation:
                output = model(x)
                value, seen = judge(output, y), int((y != ignored).sum())
                total += value.item() * seen if seen else 0.0
                counted += seen
                right += int(((output.argmax(1) == y) & (y != ignored)).sum())
        own["validation/loss"][epoch] = total / counted
        own["validation/accuracy"][epoch] = right / counted
        model.train()
    mlflow_dynamics.autolog(disable=True)
    (record,) = records()
    return record, own


def check(model: nn.Module, criterion: Criterion, **data: Any) -> Record:
    """Both losses are those taken by hand."""
    record, own = train(model, criterion, criterion, **data)
    for key in ("train/loss", "validation/loss"):
        assert record.metric(key) == pytest.approx(own[key], rel=1e-5)
    return record


def on_numbers(criterion: nn.Module) -> Criterion:
    """Each class is a number that is predicted."""
    return lambda output, y: criterion(output, nn.functional.one_hot(y, 3).float())


@pytest.mark.parametrize(
    "criterion", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0]))]
)
def test_a_class_for_each_pixel(criterion: Criterion) -> None:
    assert check(dense(), criterion, shape=(6, 6)).metric("validation/accuracy") == {}


def test_pixels_that_are_ignored_are_not_counted() -> None:
    criterion = nn.CrossEntropyLoss(ignore_index=VOID)
    check(dense(), criterion, shape=(6, 6), void=True)


@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0])),
        on_numbers(nn.BCEWithLogitsLoss(pos_weight=torch.tensor([0.5, 1.0, 4.0]))),
    ],
)
def test_classes_have_weights(criterion: Criterion) -> None:
    check(flat(), criterion, shape=())


@pytest.mark.parametrize(
    "module", [nn.BCEWithLogitsLoss, nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss]
)
def test_numbers_are_predicted(module: type[nn.Module]) -> None:
    criterion = on_numbers(module())
    check(flat(), criterion, shape=())


def test_weights_in_training_alone_make_another_criterion(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mlflow_dynamics")
    record, _ = train(
        flat(), nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0])), nn.CrossEntropyLoss(), shape=()
    )
    assert record.metric("validation/loss") == {}
    assert set(record.metric("validation/accuracy")) == {0, 1}
    assert (
        not_logged("validation loss", reason="cross_entropy is evaluated, cross_entropy(weight) is trained")
        in caplog.messages
    )


@pytest.mark.parametrize(
    "criterion",
    [
        lambda output, y: F.cross_entropy(output, y, reduction="sum") / y.numel(),
        lambda output, y: F.cross_entropy(output, y, reduction="sum") / (y < 2).sum(),
        lambda output, y: F.cross_entropy(output, y) * (output.detach().argmax(1) != y).float().mean(),
    ],
    ids=["by the pixels", "by some pixels", "by the share of wrong ones"],
)
def test_a_value_that_is_scaled_by_something_of_the_batch_is_another_loss(criterion: Criterion) -> None:
    record, _ = train(dense(), criterion, criterion, shape=(6, 6))
    assert record.metric("train/loss") == record.metric("validation/loss") == {}


def test_several_labels_are_no_pieces_of_a_batch() -> None:
    model, data = flat(), batches(1, shape=(2,))
    mlflow_dynamics.autolog()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(EPOCHS):
        for x, y in data:
            optimizer.zero_grad()
            for label in range(2):
                F.cross_entropy(model(x), y[:, label]).backward()
            optimizer.step()
    mlflow_dynamics.autolog(disable=True)
    (record,) = records()
    assert record.metric("train/loss") == {}


def test_a_class_that_is_ignored_is_never_right_and_a_batch_of_it_counts_nothing() -> None:
    model = flat()
    with torch.no_grad():
        model[0][2].bias += torch.tensor([3.0, 0.0, 0.0])  # it is predicted for all
    record, own = train(
        model, nn.CrossEntropyLoss(ignore_index=0), nn.CrossEntropyLoss(ignore_index=0),
        ignored=0, shape=(), lost=True,
    )  # fmt: skip
    for key, values in own.items():
        assert record.metric(key) == pytest.approx(values, rel=1e-5)
