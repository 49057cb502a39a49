"""The metrics passed to `end_epoch`: numbers of any kind are logged as they are at the call; others are left out."""

from __future__ import annotations

import logging
import math
from decimal import Decimal
from fractions import Fraction

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import mlflow_dynamics
from mlflow_dynamics.epoch_metrics import LARGEST_EPOCH, epoch_number, read_metrics

NUMBERS = [
    2,
    2.0,
    Decimal("2"),
    Fraction(4, 2),
    np.float16(2),
    np.float32(2),
    np.int64(2),
    np.array(2.0),
    np.array([2]),
    np.array([[2.0]], dtype=np.float32),
    pd.Series([2.0]),
    torch.tensor(2),
    torch.tensor([2.0]),
    torch.tensor([[2.0]], dtype=torch.bfloat16),
    torch.tensor(2.0, requires_grad=True),
    nn.Parameter(torch.tensor([2.0])),
]

NONE = [
    None,
    "2.0",
    b"2",
    [2.0],
    {"value": 2.0},
    2 + 0j,
    10**400,
    np.array([1.0, 2.0]),
    np.array([]),
    np.array(["2"]),
    np.complex64(2),
    np.datetime64("2026-11-28"),
    np.ma.masked,
    np.ma.array([1.0], mask=[True]),
    torch.tensor([1.0, 2.0]),
    torch.tensor([]),
    torch.tensor(2j),
    torch.empty((), device="meta"),
    torch.nn.functional.cross_entropy,
]


@pytest.mark.parametrize("value", NUMBERS, ids=lambda value: f"{type(value).__name__} {value!r}")
def test_a_number_of_any_kind_is_taken(value: object) -> None:
    taken = read_metrics({"key": value})
    assert taken.numbers() == {"key": 2.0}
    assert type(taken.numbers()["key"]) is float
    assert not taken.left_out


@pytest.mark.parametrize("value", NONE, ids=lambda value: f"{type(value).__name__} {str(value)[:20]}")
def test_what_is_no_number_is_named_with_its_type_and_what_is_accepted(value: object) -> None:
    taken = read_metrics({"key": value, "other": 1.0})
    assert taken.numbers() == {"other": 1.0}
    assert "'key'" in taken.left_out["key"]
    assert type(value).__name__ in taken.left_out["key"]
    assert "array or tensor of one real element" in taken.left_out["key"]


class Raising:
    """Whatever is asked of it raises."""

    def __init__(self, error: Exception) -> None:
        vars(self)["error"] = error

    def __float__(self) -> float:
        raise vars(self)["error"]

    def __getattr__(self, name: str) -> object:
        raise vars(self)["error"]


@pytest.mark.parametrize(
    "error", [KeyError("x"), OSError("x"), AttributeError("x"), AssertionError("x")], ids=repr
)
def test_a_conversion_that_raises_costs_its_value_alone(error: Exception) -> None:
    taken = read_metrics({"key": Raising(error), "other": 1.0})
    assert taken.numbers() == {"other": 1.0}
    assert f"of type Raising, which raises {type(error).__name__}" in taken.left_out["key"]


def test_a_number_too_large_for_a_float_is_told_as_such() -> None:
    assert "'key' is of type int, too large for a float;" in read_metrics({"key": 10**400}).left_out["key"]


def test_an_array_that_masks_nothing_is_its_number() -> None:
    assert read_metrics({"key": np.ma.array([2.0], mask=[False])}).numbers() == {"key": 2.0}


@pytest.mark.parametrize("key", ["dynamics/stability", "dynamics/global_step", "dynamics/of_mine"])
def test_a_key_of_ours_is_left_out(key: str) -> None:
    taken = read_metrics({key: 1.0, "dynamics": 2.0})
    assert taken.numbers() == {"dynamics": 2.0}
    assert "give it another key" in taken.left_out[key]


@pytest.mark.parametrize("value", [True, np.bool_(True), torch.tensor(True)])
def test_truth_is_one(value: object) -> None:
    assert read_metrics({"improved": value}).numbers() == {"improved": 1.0}


@pytest.mark.parametrize(
    "value", [math.inf, -math.inf, Decimal("Infinity"), np.float32(np.inf), torch.tensor(np.inf)]
)
def test_infinite_values_are_numbers(value: object) -> None:
    assert math.isinf(read_metrics({"train/loss": value}).numbers()["train/loss"])


@pytest.mark.parametrize("value", [math.nan, Decimal("NaN"), np.float32(np.nan), torch.tensor(np.nan)])
def test_nan_is_a_number(value: object) -> None:
    assert math.isnan(read_metrics({"train/loss": value}).numbers()["train/loss"])


def test_values_are_those_of_the_call() -> None:
    tensor, array = torch.ones(()), np.ones(1)
    taken = read_metrics({"tensor": tensor, "array": array})
    tensor.zero_()
    array[:] = 0
    assert taken.numbers() == {"tensor": 1.0, "array": 1.0}


@pytest.mark.parametrize(
    "key", ["acc@1", "", "a" * 251, "a/../b", "../a", "a//b", "/a", "a,b", "loss[0]", 7, None]
)
def test_a_key_that_mlflow_refuses_is_named(key: object) -> None:
    with mlflow.start_run(), pytest.raises(Exception):  # noqa: B017, PT011  # MlflowException, or TypeError
        mlflow.log_metrics({key: 1.0})  # type: ignore[dict-item]
    taken = read_metrics({key: 1.0, "top-1 accuracy": 2.0})  # type: ignore[dict-item]
    assert taken.numbers() == {"top-1 accuracy": 2.0}
    assert repr(key) in taken.left_out[key]
    assert "MLflow takes" in taken.left_out[key]


@pytest.mark.parametrize(
    ("value", "number"), [(0, 0), (np.int64(3), 3), (torch.tensor(3), 3), (LARGEST_EPOCH, LARGEST_EPOCH)]
)
def test_the_number_of_an_epoch(value: object, number: int) -> None:
    assert epoch_number(value) == number


@pytest.mark.parametrize("value", [-1, 0.5, 1.0, "1", True, LARGEST_EPOCH + 1, [1], torch.tensor([1, 2])])
def test_what_is_no_number_of_an_epoch(value: object) -> None:
    assert epoch_number(value) is None


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def train(model: nn.Module) -> torch.Tensor:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(30):
        inputs = torch.randn(16, 6)
        loss = nn.functional.cross_entropy(model(inputs), (inputs[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss


def logged(run_id: str | None, key: str) -> dict[int, float]:
    assert run_id is not None
    return {one.step: one.value for one in mlflow.MlflowClient().get_metric_history(run_id, key)}


def test_a_sum_that_the_next_epoch_empties_is_logged_as_it_was() -> None:
    model, total = network(), torch.zeros(())
    with mlflow_dynamics.track(model) as tracker:
        for _ in range(6):
            total.zero_()
            train(model)
            total += 10
            tracker.end_epoch({"train/loss": total})
        run_id = tracker.run_id
    assert logged(run_id, "train/loss") == dict.fromkeys(range(6), 10.0)


@pytest.mark.drawn
def test_bad_values_cost_themselves_and_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    with mlflow_dynamics.track(model) as tracker, caplog.at_level(logging.WARNING, logger="mlflow_dynamics"):
        for epoch in range(4):
            tracker.end_epoch(
                {"train/loss": train(model), "acc@1": 0.5, "validation/accuracy": None if epoch % 2 else 0.5},
                note="good",
            )
        run_id = tracker.run_id
    assert run_id is not None
    assert list(logged(run_id, "train/loss")) == [0, 1, 2, 3]
    assert list(logged(run_id, "dynamics/integration")) == [1, 2, 3]
    assert list(logged(run_id, "validation/accuracy")) == [0, 2]
    assert mlflow.get_run(run_id).info.status == "FINISHED"
    assert [
        one.path for one in mlflow.MlflowClient().list_artifacts(run_id, "dynamics") if "html" in one.path
    ]
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3, lines
    assert sum("'acc@1'" in line for line in lines) == 1
    assert sum("'validation/accuracy'" in line and "NoneType" in line for line in lines) == 1
    assert sum("'note'" in line and "of type str" in line for line in lines) == 1


def test_the_number_and_what_is_no_mapping(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    with mlflow_dynamics.track(model) as tracker, caplog.at_level(logging.WARNING, logger="mlflow_dynamics"):
        for end in (
            lambda: tracker.end_epoch({"train/loss": 1.0}, epoch=4),
            lambda: tracker.end_epoch(5, **{"train/loss": 1.0}),
            lambda: tracker.end_epoch(np.int64(6), **{"train/loss": 1.0}),
            lambda: tracker.end_epoch({"epoch": 0.5, "train/loss": 1.0}),
            lambda: tracker.end_epoch(epoch=0.5, **{"train/loss": 1.0}),
            lambda: tracker.end_epoch(0.25, **{"train/loss": 1.0}),
        ):
            train(model)
            end()
        run_id = tracker.run_id
    assert list(logged(run_id, "train/loss")) == [4, 5, 6, 7, 8, 9]
    assert logged(run_id, "epoch") == {7: 0.5}
    lines = [record.getMessage() for record in caplog.records]
    assert [("epoch=0.5" in line, "of type float" in line) for line in lines] == [
        (True, False),
        (False, True),
    ]
