"""Weights that are set back to what they were before the first step: what follows is another training."""

from __future__ import annotations

import copy
import logging

import mlflow
import pytest
import torch
from recorded import steps_of_epochs
from small_training import STEPS, loader, network, sgd, step, train
from torch import nn

import mlflow_dynamics

pytestmark = pytest.mark.usefixtures("autologged")


def recorded() -> list[list[int]]:
    """The steps of each epoch of each run, once recording is over."""
    mlflow_dynamics.autolog(disable=True)
    return steps_of_epochs()


@pytest.mark.parametrize("more", [0, 3], ids=["whole passes", "and a part of one"])
def test_a_learning_rate_finder_of_more_than_one_pass_has_a_run_of_its_own(
    more: int, caplog: pytest.LogCaptureFixture
) -> None:
    model, batches = network(), loader()
    optimizer, before = sgd(model), copy.deepcopy(model.state_dict())
    with caplog.at_level(logging.INFO, "mlflow_dynamics"):
        train(model, optimizer, batches, 2)
        for index, (images, targets) in enumerate(batches):
            if index == more:
                break
            nn.functional.cross_entropy(model(images), targets).backward()
            optimizer.step()
        model.load_state_dict(before)
        train(model, optimizer, batches, 3)
        assert recorded() == [[STEPS] * 2 + [more] * (more > 0), [STEPS] * 3]
    said = [line.message for line in caplog.records if "another training begins" in line.message]
    assert said == [
        "The weights of Sequential are again what they were before its first step: another training begins, with a "
        "run of its own."
    ]


class Unusual(nn.Sequential):
    """With a weight that is no float, and a layer that is never called and has no shape yet."""

    def __init__(self) -> None:
        super().__init__(*network())
        self.table = nn.Parameter(torch.arange(3), requires_grad=False)
        self.spare = nn.LazyLinear(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self[2](self[1](self[0](x)))
        return y


def test_weights_of_unusual_kinds_are_no_hindrance() -> None:
    model = Unusual()
    trained = [*model[0].parameters(), *model[2].parameters()]
    train(model, torch.optim.SGD(trained, lr=0.01), loader(), 2)
    assert recorded() == [[STEPS] * 2]


def test_folds_that_set_the_weights_back_are_trainings_of_their_own() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    for fold in range(3):
        model.load_state_dict(before)
        train(model, sgd(model), loader(fold), 1)
    assert recorded() == [[STEPS]] * 3


def test_folds_in_one_run_of_the_script_have_a_nested_run_each_but_the_first(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, batches = network(), loader()
    optimizer, before = sgd(model), copy.deepcopy(model.state_dict())
    with caplog.at_level(logging.INFO, "mlflow_dynamics"), mlflow.start_run() as own:
        train(model, optimizer, batches, 2)
        model.load_state_dict(before)
        train(model, optimizer, batches, 3)
        other = network()
        train(other, sgd(other), loader(1), 1)
        mlflow_dynamics.autolog(disable=True)
        assert mlflow.active_run().info.run_id == own.info.run_id
    found = mlflow.search_runs(search_all_experiments=True, output_format="list")
    nested = [run for run in found if run.info.run_id != own.info.run_id]
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} == {own.info.run_id}
    assert {run.info.status for run in found} == {"FINISHED"}
    assert sorted(recorded()) == [[STEPS], [STEPS] * 2, [STEPS] * 3]
    assert caplog.text.count("holds another training") == 2


def test_a_run_for_each_fold_holds_that_fold() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    for fold in range(2):
        with mlflow.start_run():
            model.load_state_dict(before)
            train(model, sgd(model), loader(fold), 2)
    assert recorded() == [[STEPS] * 2] * 2


def test_other_weights_begin_no_other_training() -> None:
    """The best so far, and the averaged or the first ones for an evaluation and back."""
    model, batches = network(), loader()
    optimizer, first = sgd(model), copy.deepcopy(model.state_dict())
    train(model, optimizer, batches, 1)
    best = copy.deepcopy(model.state_dict())
    train(model, optimizer, batches, 1)
    model.load_state_dict(best)
    train(model, optimizer, batches, 1)
    now = copy.deepcopy(model.state_dict())
    for weights in (best, first):
        model.eval().load_state_dict(weights)
        with torch.no_grad():
            for images, _ in loader(1):
                model(images)
    model.train().load_state_dict(now)
    train(model, optimizer, batches, 1)
    assert recorded() == [[STEPS] * 4]


def test_weights_that_are_replaced_in_the_middle_of_a_first_pass_leave_it_whole() -> None:
    model, batches = network(), loader()
    optimizer = sgd(model)
    for _ in range(2):
        for index, (images, targets) in enumerate(batches):
            step(model, optimizer, images, targets)
            if index % 3 == 2:  # an average is swapped in to be evaluated
                kept = copy.deepcopy(model.state_dict())
                model.load_state_dict({key: value / 2 for key, value in kept.items()})
                model.load_state_dict(kept)
    assert recorded() == [[STEPS] * 2]
