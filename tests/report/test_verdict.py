"""The first line of a report: true for each kind of training, and silent about what cannot be told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from mlflow_dynamics.measures import measure
from mlflow_dynamics.records import EpochActivations, Layer
from mlflow_dynamics.report.history import RunHistory
from mlflow_dynamics.report.summary import summary
from mlflow_dynamics.report.verdict import verdict
from mlflow_dynamics.tracking import names

NOTHING = measure(np.zeros((2, 4)))


def run(
    accuracy: Sequence[float] | None = None,
    loss: Sequence[float] | None = None,
    train_accuracy: Sequence[float] | None = None,
    **more: object,
) -> RunHistory:
    found = RunHistory(title="a run", definitions={})
    given = {
        names.VALIDATION_ACCURACY: accuracy,
        names.TRAIN_LOSS: loss,
        names.TRAIN_ACCURACY: train_accuracy,
    }
    epochs = max(len(series) for series in given.values() if series is not None)
    for epoch in range(epochs):
        row = {key: series[epoch] for key, series in given.items() if series is not None}
        found.add(epoch, row, NOTHING)
    for name, value in more.items():
        setattr(found, name, value)
    return found


RISING = [0.1 + 0.02 * epoch for epoch in range(30)]
FLAT = [min(0.5 + 0.05 * epoch, 0.99) for epoch in range(21)] + [0.997] + [0.996] * 8
FALLING = [2.3 * 0.9**epoch for epoch in range(30)]

RUNS = {
    "Best validation accuracy 0.997 at epoch 21 of 30; the last 8 epochs gained nothing; first within half a point of "
    "it (median of 5 epochs) at epoch 21.": run(FLAT, FALLING),
    "Best validation accuracy 0.680 at epoch 29 of 30; still rising, by 10.0 points in the last 5 epochs.": run(
        RISING, FALLING
    ),
    "Best validation accuracy 0.200 at epoch 1 of 2; too few epochs to tell whether it is flat.": run(
        [0.1, 0.2], [2.0, 1.0]
    ),
    "Not learning: validation accuracy 0.027 after 3 epochs.": run([0.01, 0.03, 0.027], [4.6, 4.61, 4.59]),
    "Not learning: the training loss is 2.3 after 4 epochs, and was 2.3 in the first.": run(
        loss=[2.3, 2.31, 2.3, 2.3]
    ),
    "Validation accuracy is not logged: 30 epochs of training, training loss 2.3 in the first and 0.108 in the last.": (
        run(loss=FALLING)
    ),
    "Best validation accuracy 0.930 at epoch 3 of 10; the last 6 epochs gained nothing, and it ended 83.0 points "
    "lower.": (
        run([0.5, 0.8, 0.9, 0.93, *6 * [0.1]], FALLING[:10])
    ),
    "Best validation accuracy 97.985 at epoch 7 of 8; still rising, by 2.3 points in the last 5 epochs. Training "
    "accuracy lies 1.0 points above it there.": run(
        [80.0, 90.0, 95.718, 96.0, 96.5, 97.0, 97.5, 97.985], FALLING[:8], [81.0, 91.0, *6 * [98.986]]
    ),
    # A best epoch within the last ones, but not the last one, is no rise that goes on.
    "Best validation accuracy 0.700 at epoch 6 of 8; the last epoch gained nothing.": run(
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.68], FALLING[:8]
    ),
    "Cannot tell yet: 8 of 17 epochs; best 0.240 at epoch 7.": run(
        RISING[:8], FALLING[:8], running=True, definitions={"warning/planned_epochs": "17"}
    ),
    "Cannot tell yet: 1 epoch.": run(loss=[2.3], running=True),
    "Diverged at epoch 1: the training loss is not finite, and conv1 was the first layer that is not, at training step "
    "12.": run([0.2, 0.1, 0.1], [2.3, math.nan, math.nan], diverging_epoch=1, first_not_finite=("conv1", 12)),
    "Diverged at epoch 1.": run(
        [0.2, 0.1, 0.1], [2.3, 99.0, 99.0], diverging_epoch=1, first_not_finite=("skipped", 12)
    ),
    "Best validation accuracy 0.300 at epoch 2 of 3; too few epochs to tell whether it is flat. Training had diverged "
    "at epoch 1, and recovered.": run([0.2, 0.1, 0.3], [2.3, math.inf, 1.0], diverging_epoch=1),
    "No epoch is recorded.": RunHistory(title="", definitions={}),
    "Best validation accuracy 0.700 at epoch 1 of 2; too few epochs to tell whether it is flat. Training accuracy lies "
    "20.0 points above it there.": run([0.5, 0.7], [1.0, 0.5], [0.6, 0.9]),
    "Best validation accuracy 0.200 at epoch 1 of 2; too few epochs to tell whether it is flat. The data come in the "
    "same order each epoch, because step by step the layers repeat what they did; unless that is meant, shuffle them "
    "anew each epoch.": run(
        [0.1, 0.2], [2.0, 1.0], same_order=True
    ),
}  # fmt: skip


@pytest.mark.parametrize("said", RUNS)
def test_what_a_run_came_to(said: str) -> None:
    assert verdict(RUNS[said]) == said
    assert summary(RUNS[said])[0] == said


def test_an_accuracy_under_another_name_is_named() -> None:
    for key in ("val_acc", "valid/accuracy", "accuracy_val", "test_acc1", "Eval Accuracy"):
        history = RunHistory(title="", definitions={})
        history.add(0, {key: 0.5, names.VALIDATION_LOSS: 2.0}, NOTHING)
        history.add(1, {key: 0.6, names.VALIDATION_LOSS: 1.0}, NOTHING)
        assert verdict(history) == (
            "Validation accuracy is not logged: 2 epochs of training, validation loss 2 in the first and 1 in the last "
            f"(log {key} as validation/accuracy to have it judged)."
        )
    for key in ("train/accuracy", "accuracy", "evaluations", "latest"):
        history = RunHistory(title="", definitions={})
        history.add(0, {key: 0.5}, NOTHING)
        assert verdict(history) == "Validation accuracy is not logged: 1 epoch of training."


def test_a_network_that_had_learnt_before_is_not_said_to_learn_nothing() -> None:
    carried_on = run([0.95, 0.951, 0.95], [0.1, 0.1, 0.1])
    assert verdict(carried_on).startswith("Best validation accuracy 0.951 at epoch 1 of 3")
    epochs_without_a_value = run([0.1, math.nan, 0.5, math.nan, math.nan, math.nan, 0.4], FALLING[:7])
    assert verdict(epochs_without_a_value).startswith("Best validation accuracy 0.500 at epoch 2 of 7")


LAYERS = tuple(
    Layer(index=i, name=name, type="Linear", output_shape=(1,), parameters=1)
    for i, name in enumerate(("never", "first", "second", "sometimes"))
)


def activations(epoch: int, *, first_bad: int | None) -> EpochActivations:
    """10 steps of an epoch; from one of them on `second`, and a step later `first`, are not finite."""
    mean = np.ones((4, 10), dtype=np.float32)
    mean[0] = np.nan
    mean[3, ::2] = np.nan  # and is not called any more from step 2 on
    mean[3, 2:] = np.nan
    if first_bad is not None:
        mean[2, first_bad:] = np.inf
        mean[1, first_bad + 1 :] = np.nan
    step = np.arange(10 * epoch, 10 * epoch + 10, dtype=np.int32)
    return EpochActivations(epoch=epoch, step=step, mean=mean, std=mean, layers=LAYERS)


def test_the_layer_that_ceased_to_be_finite_first_is_found_and_one_that_is_not_called_is_not() -> None:
    history = run(loss=[1.0])
    history.look_at(activations(1, first_bad=None))
    assert history.first_not_finite is None
    history.look_at(activations(2, first_bad=4))
    assert history.first_not_finite == ("second", 24)
    history.look_at(activations(3, first_bad=2))
    assert history.first_not_finite == ("second", 24)
    assert RunHistory.unpacked(history.packed()).first_not_finite == ("second", 24)


def test_of_a_warning_that_could_not_fire_it_is_not_said_that_it_did_not() -> None:
    history = run(loss=[1.0])
    assert summary(history)[1] == "The early warning was off."
    history.metrics[0][names.CONVERGENCE_SIGNAL] = 0.0
    assert summary(history)[1] == "The early warning could not fire: no epoch could be judged."
    assert summary(replace(history, running=True))[1] == "The early warning has judged no epoch so far."
    history.metrics[0][names.CONVERGENCE_SCORE] = 0.4
    assert summary(history)[1] == "The early warning did not fire."
    assert summary(replace(history, running=True))[1] == "The early warning has not fired so far."
