"""What is known of an epoch's losses, from frozen values: no training, no store, no device."""

from __future__ import annotations

import pytest

from mlflow_dynamics.loop.losses import Evaluation, Mean, StepKind, Steps, Unknown, losses

ENTROPY, SQUARED = frozenset({"cross_entropy"}), frozenset({"mse_loss"})
TRAINED, WHOLE, HELD_OUT, OTHER = (1,), (1, 2), (3,), (4,)
STEPS = Steps((StepKind(ENTROPY, data=TRAINED),), Mean(6.0, 12))
EVALUATION = Evaluation(HELD_OUT, ENTROPY, loss=Mean(2.0, 8), accuracy=Mean(5.0, 8))


def with_kind(**more: object) -> Steps:
    """The same steps, and some of another kind."""
    return Steps((*STEPS.kinds, StepKind(**more)), STEPS.loss)


def changed(**more: object) -> Evaluation:
    return Evaluation(**(vars(EVALUATION) | more))


def test_all_three_are_known_and_the_validation_data_are_remembered() -> None:
    found = losses(STEPS, [EVALUATION])
    assert (found.train, found.validation, found.accuracy) == (Mean(6.0, 12), Mean(2.0, 8), Mean(5.0, 8))
    assert found.data == HELD_OUT


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (Steps(), "backward is not called"),
        (with_kind(unknown="in a closure"), "in a closure"),
        (with_kind(criteria=SQUARED), "different criteria are differentiated"),
    ],
)
def test_why_there_is_no_training_loss(steps: Steps, reason: str) -> None:
    train = losses(steps, []).train
    assert isinstance(train, Unknown)
    assert reason in train.reason


def test_an_epoch_whose_first_step_was_not_seen_has_no_loss_and_no_reason() -> None:
    assert losses(with_kind(criteria=ENTROPY, unseen=True), []).train is None


def test_without_an_evaluation_there_is_no_validation_loss_and_a_rejected_one_is_the_reason() -> None:
    assert losses(STEPS, []).validation is None
    found = losses(STEPS, [], rejected="evaluated in training mode")
    assert found.validation == found.accuracy == Unknown("evaluated in training mode")


@pytest.mark.parametrize(
    ("evaluations", "reason"),
    [
        ([changed(complete=False)], "the data evaluated is not drawn to its end"),
        ([changed(attacked=True)], "backward is called on what is evaluated"),
        ([changed(data=TRAINED)], "the data evaluated is the data trained on"),
        ([changed(data=WHOLE)], "the data evaluated is the data trained on"),
        ([changed(gaps=True)], "not on every batch evaluated a known criterion is called"),
        ([EVALUATION, changed(data=OTHER)], "2 data sets are evaluated in an epoch"),
    ],
)
def test_why_neither_validation_loss_nor_accuracy_is_known(
    evaluations: list[Evaluation], reason: str
) -> None:
    found = losses(STEPS, evaluations)
    assert isinstance(found.validation, Unknown)
    assert reason in found.validation.reason
    assert found.accuracy == found.validation
    assert isinstance(found.train, Mean)


@pytest.mark.parametrize(
    ("steps", "evaluation", "reason"),
    [
        (with_kind(other_terms=True), EVALUATION, "the training loss is not a known criterion's value alone"),
        (STEPS, changed(several=True), "more than one criterion value is computed on a batch"),
        (STEPS, changed(criteria=SQUARED), "mse_loss is evaluated, cross_entropy is trained"),
        (STEPS, changed(criteria=SQUARED | ENTROPY), "cross_entropy and mse_loss are evaluated"),
    ],
)
def test_why_the_accuracy_alone_is_known(steps: Steps, evaluation: Evaluation, reason: str) -> None:
    found = losses(steps, [evaluation])
    assert isinstance(found.validation, Unknown)
    assert reason in found.validation.reason
    assert found.accuracy == EVALUATION.accuracy


@pytest.mark.parametrize(
    ("steps", "evaluation", "reason"),
    [
        (STEPS, changed(accuracy=Mean()), "the criterion's targets are not one class for each sample"),
        (STEPS, changed(rated=False, several=True), "more than one criterion value is computed on a batch"),
        (with_kind(other_terms=True), changed(rated=False), "which of the values that the model returned"),
    ],
)
def test_why_the_accuracy_is_not_known(steps: Steps, evaluation: Evaluation, reason: str) -> None:
    accuracy = losses(steps, [evaluation]).accuracy
    assert isinstance(accuracy, Unknown)
    assert reason in accuracy.reason


def test_a_certain_loss_tells_which_output_is_judged() -> None:
    assert losses(STEPS, [changed(rated=False)]).accuracy == EVALUATION.accuracy


def test_the_last_whole_pass_counts_and_the_data_of_the_first_epoch() -> None:
    later = changed(loss=Mean(1.0, 8))
    others = [changed(data=OTHER), changed(data=TRAINED), changed(complete=False, loss=Mean(9.0, 2))]
    found = losses(STEPS, [EVALUATION, later, *others], data=HELD_OUT)
    assert found.validation == later.loss
    unknown = losses(STEPS, [changed(data=OTHER)], data=HELD_OUT)
    assert isinstance(unknown.validation, Unknown)
    assert "keep one object for all epochs" in unknown.validation.reason
    assert unknown.data == HELD_OUT


def test_what_was_ambiguous_once_stays_so() -> None:
    first = losses(STEPS, [EVALUATION, changed(data=OTHER)])
    assert losses(STEPS, [EVALUATION], data=first.data).validation == first.validation == first.data
