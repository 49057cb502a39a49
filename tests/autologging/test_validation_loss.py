"""Validation loss and accuracy are the script's own, or left out: which criterion, on which data, how often."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from loops import evaluate
from recorded import Record, not_logged, records
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import (
    DataLoader,
    Dataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from witness import BATCH, Witness, data, loader, net, sgd

import mlflow_dynamics

EPOCHS = 3
Criterion = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture
def w(caplog: pytest.LogCaptureFixture) -> Witness:
    """A model that is recorded from here on."""
    caplog.set_level(logging.INFO, "mlflow_dynamics")
    mlflow_dynamics.autolog()
    torch.manual_seed(7)
    return Witness(net())


def recorded() -> Record:
    mlflow_dynamics.autolog(disable=True)
    (record,) = records()
    assert list(record.steps) == [0, 1, 2]
    return record


def train(
    w: Witness,
    evaluation: Callable[[int], None],
    criterion: Criterion | None = None,
    batches: DataLoader[Any] | None = None,
) -> Record:
    """Train three epochs with an evaluation after each; what is logged."""
    optimizer, batches = sgd(w.model), batches or loader()
    for epoch in range(EPOCHS):
        for x, y in batches:
            optimizer.zero_grad()
            (criterion or entropy)(w.model(x), y).backward()
            optimizer.step()
        evaluation(epoch)
    return recorded()


def losses(w: Witness) -> object:
    return pytest.approx({epoch: loss for epoch, (loss, _) in w.validation.items()}, rel=1e-5)


def accuracies(w: Witness) -> object:
    return pytest.approx({epoch: accuracy for epoch, (_, accuracy) in w.validation.items()}, rel=1e-6)


def missing(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines on a validation loss that is not logged."""
    return [
        line for line in caplog.messages if line.startswith("The validation loss") and "not logged" in line
    ]


def both_missing(reason: str) -> list[str]:
    return [not_logged("validation loss", "validation accuracy", reason=reason)]


def evaluate_with(w: Witness, *criteria: Criterion) -> Callable[[int], None]:
    """An evaluation by all of these criteria, on one output."""
    batches = loader(10, seed=2)

    def evaluation(epoch: int) -> None:
        w.model.eval()
        right = total = 0
        with torch.no_grad():
            for x, y in batches:
                output = w.model(x)
                total += sum(criterion(output, y).item() * len(x) for criterion in criteria)
                right += (output.argmax(1) == y).sum().item()
        w.validation[epoch] = total / 10, right / 10
        w.model.train()

    return evaluation


def entropy(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output, y)


def squared(output: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(output, F.one_hot(y, 3).float())


def squared_sum(output: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(output, F.one_hot(y, 3).float(), reduction="sum")


def test_where_the_training_loss_has_more_terms_only_the_accuracy_is_known(
    w: Witness, caplog: pytest.LogCaptureFixture
) -> None:
    validation = loader(10, seed=2)
    record = train(
        w,
        lambda epoch: evaluate(w, validation, epoch),
        lambda output, y: F.cross_entropy(output, y) + 0.1 * output.square().mean(),
    )
    assert record.metric("train/loss") == record.metric("validation/loss") == {}
    assert record.metric("validation/accuracy") == accuracies(w)
    reason = "the training loss is not a known criterion's value alone, nor may the validation loss be"
    assert missing(caplog) == [not_logged("validation loss", reason=reason)]


def test_where_no_known_criterion_is_evaluated_it_is_said_once(
    w: Witness, caplog: pytest.LogCaptureFixture
) -> None:
    w.model.eval()
    with torch.no_grad():
        w.model(data().tensors[0])  # a summary of the model, no evaluation
    w.model.train()

    def accuracy(epoch: int) -> None:
        assert epoch > 0 or not missing(caplog)
        w.model.eval()
        with torch.no_grad():
            for x, _ in loader(10, seed=2):
                w.model(x).argmax(1)
        w.model.train()

    record = train(w, accuracy)
    assert record.metric("validation/loss") == record.metric("validation/accuracy") == {}
    assert missing(caplog) == both_missing("no known criterion is called on the model's output in evaluation")


class Labelled(Tensor):
    """A tensor of a class of its own, as fastai's: torch's functions take it to `__torch_function__` first."""


@pytest.mark.parametrize("own_class", [True, False], ids=["a class of tensors", "a default device"])
def test_a_call_that_torch_takes_to_an_override_first_is_one_call(w: Witness, own_class: bool) -> None:
    def criterion(output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output, y.as_subclass(Labelled) if own_class else y)

    default = None if own_class else "cpu"
    torch.set_default_device(default)
    try:
        record = train(w, evaluate_with(w, criterion), criterion)
    finally:
        torch.set_default_device(None)
    assert record.metric("validation/loss") == losses(w)
    assert record.metric("validation/accuracy") == accuracies(w)
    assert list(record.metric("train/loss")) == [0, 1, 2]


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.one, self.other = nn.Linear(192, 8), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x.flatten(1)).relu()
        return self.one(features), self.other(features)


def test_of_two_tasks_neither_gives_loss_or_accuracy(caplog: pytest.LogCaptureFixture) -> None:
    mlflow_dynamics.autolog()
    model, batches, validation = TwoHeads(), loader(), loader(10, seed=2)
    optimizer = sgd(model)
    for _ in range(EPOCHS):
        for x, y in batches:
            optimizer.zero_grad()
            one, other = model(x)
            (F.cross_entropy(one, y) + F.cross_entropy(other, y % 2)).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            for x, y in validation:
                one, other = model(x)
                F.cross_entropy(one, y)
                F.cross_entropy(other, y % 2)
        model.train()
    record = recorded()
    for key in ("train/loss", "validation/loss", "validation/accuracy"):
        assert record.metric(key) == {}


@pytest.mark.parametrize(
    ("trained", "evaluated"),
    [(squared, entropy), (entropy, squared), (squared, squared_sum)],
    ids=["other criterion", "another", "other reduction"],
)
def test_a_loss_by_another_criterion_than_in_training_is_left_out(
    w: Witness, trained: Criterion, evaluated: Criterion, caplog: pytest.LogCaptureFixture
) -> None:
    record = train(w, evaluate_with(w, evaluated), trained)
    assert len(record.metric("train/loss")) == EPOCHS
    assert record.metric("validation/loss") == {}
    assert record.metric("validation/accuracy") == (accuracies(w) if evaluated is entropy else {})
    assert len(missing(caplog)) == 1


@pytest.mark.parametrize(
    ("criterion", "mean"),
    [
        (squared, squared),
        # Scaled, or the training would diverge.
        (lambda output, y: 0.1 * squared_sum(output, y), lambda output, y: squared_sum(output, y) / len(y)),
    ],
    ids=["mean over elements", "sum over each sample"],
)
def test_a_loss_by_the_criterion_of_the_training_is_logged(
    w: Witness, criterion: Criterion, mean: Criterion
) -> None:
    record = train(w, evaluate_with(w, mean), criterion)
    assert record.metric("validation/loss") == losses(w)


def test_labels_are_smoothed_in_training_only(w: Witness) -> None:
    record = train(
        w,
        evaluate_with(w, entropy),
        lambda output, y: F.cross_entropy(output, y, label_smoothing=0.1),
    )
    assert record.metric("validation/loss") == losses(w)


def test_of_two_criteria_on_one_output_none_is_logged(w: Witness, caplog: pytest.LogCaptureFixture) -> None:
    record = train(w, evaluate_with(w, entropy, squared))
    assert record.metric("validation/loss") == {}
    assert record.metric("validation/accuracy") == accuracies(w)
    reason = "more than one criterion value is computed on a batch"
    assert missing(caplog) == [not_logged("validation loss", reason=reason)]


def test_of_two_outputs_for_a_batch_neither_is_judged(w: Witness) -> None:
    validation = loader(10, seed=2)

    def clean_and_attacked(epoch: int) -> None:
        w.model.eval()
        with torch.no_grad():
            for x, y in validation:
                F.cross_entropy(w.model(x), y)
                F.cross_entropy(w.model(x + 0.5), y.clone())
        w.model.train()

    record = train(w, clean_and_attacked)
    assert record.metric("validation/loss") == record.metric("validation/accuracy") == {}


SOURCE = data(10, seed=2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(SOURCE, batch_size=BATCH),
        lambda: DataLoader(SOURCE, batch_size=BATCH, shuffle=True),
        lambda: DataLoader(TensorDataset(*SOURCE.tensors), batch_size=3),
        lambda: DataLoader(SOURCE, batch_size=BATCH, num_workers=1),
    ],
    ids=["in order", "shuffled", "around the same tensors", "in a worker"],
)
def test_a_loader_made_anew_draws_the_same_data(w: Witness, make: Callable[[], DataLoader[Any]]) -> None:
    record = train(w, lambda epoch: evaluate(w, make(), epoch))
    assert record.metric("validation/loss") == losses(w)
    assert record.metric("validation/accuracy") == accuracies(w)


class Listed(Dataset[Any]):
    """Equal to every other one, and not to be hashed."""

    __hash__ = None

    def __init__(self, size: int, seed: int) -> None:
        self.items = list(data(size, seed))

    def __eq__(self, other: object) -> bool:
        return True

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.items[index]


def test_a_data_set_made_anew_is_not_known(w: Witness, caplog: pytest.LogCaptureFixture) -> None:
    record = train(w, lambda epoch: evaluate(w, DataLoader(Listed(10, 2 + epoch), batch_size=4), epoch))
    assert record.metric("validation/loss") == pytest.approx({0: w.validation[0][0]}, rel=1e-5)
    assert missing(caplog) == both_missing(
        "the data set evaluated is not known to be that of the earlier epochs; keep one object for all epochs"
    )


def test_parts_of_one_data_set_are_told_apart_by_their_samplers(w: Witness) -> None:
    whole = data(60)
    parts = [SubsetRandomSampler(range(start, start + 20)) for start in (0, 20, 40)]
    training, validation, test = (DataLoader(whole, batch_size=BATCH, sampler=part) for part in parts)

    def evaluation(epoch: int) -> None:
        evaluate(w, validation, epoch)
        if epoch == EPOCHS - 1:
            evaluate(w, test)

    record = train(w, evaluation, batches=training)
    assert record.metric("validation/loss") == losses(w)


def test_the_training_data_evaluated_are_no_validation(w: Witness) -> None:
    source, validation = data(), DataLoader(Subset(data(40, seed=2), range(10)), batch_size=BATCH)

    def evaluation(epoch: int) -> None:
        evaluate(w, DataLoader(source, batch_size=8))
        evaluate(w, validation, epoch)

    record = train(w, evaluation, batches=DataLoader(source, batch_size=BATCH, shuffle=True))
    assert record.metric("validation/loss") == losses(w)


def test_two_data_sets_from_the_first_epoch_on_leave_no_validation_loss(
    w: Witness, caplog: pytest.LogCaptureFixture
) -> None:
    sources = [loader(10, seed=2), loader(10, seed=3)]

    def evaluation(epoch: int) -> None:
        for source in sources:
            evaluate(w, source)

    record = train(w, evaluation)
    assert record.metric("validation/loss") == record.metric("validation/accuracy") == {}
    assert len(missing(caplog)) == 1


def look(w: Witness, batches: DataLoader[Any]) -> None:
    """At one batch."""
    x, y = next(iter(batches))
    w.model.eval()
    with torch.no_grad():
        entropy(w.model(x), y)
    w.model.train()


def noise(w: Witness, batches: DataLoader[Any]) -> None:
    """The weights are others for a while."""
    kept = [parameter.detach().clone() for parameter in w.model.parameters()]
    with torch.no_grad():
        for parameter in w.model.parameters():
            parameter.mul_(3)
        evaluate(w, batches)
        for parameter, value in zip(w.model.parameters(), kept, strict=True):
            parameter.copy_(value)


def reload(w: Witness, batches: DataLoader[Any]) -> None:
    w.model.load_state_dict({key: 2 * value for key, value in w.model.state_dict().items()})
    evaluate(w, batches)


def no_loader(w: Witness, batches: DataLoader[Any]) -> None:
    """Tensors, in pieces."""
    x, y = data(12, seed=3).tensors
    w.model.eval()
    with torch.no_grad():
        for piece in range(0, 12, 6):
            entropy(w.model(x[piece : piece + 6]), y[piece : piece + 6])
    w.model.train()


@pytest.mark.parametrize("afterwards", [look, noise, reload, no_loader])
def test_what_is_evaluated_after_the_validation_is_no_part_of_it(
    w: Witness, afterwards: Callable[[Witness, DataLoader[Any]], None]
) -> None:
    validation = loader(10, seed=2)

    def evaluation(epoch: int) -> None:
        evaluate(w, validation, epoch)
        afterwards(w, validation)

    record = train(w, evaluation)
    assert record.metric("validation/loss") == losses(w)
    assert record.metric("validation/accuracy") == accuracies(w)


def evaluate_with_gradients(w: Witness, batches: DataLoader[Any], epoch: int | None = None) -> None:
    """As where `torch.no_grad` was forgotten."""
    w.model.eval()
    total = right = 0
    for x, y in batches:
        output = w.model(x)
        total += entropy(output, y) * len(x)
        right += (output.argmax(1) == y).sum().item()
    if epoch is not None:
        w.validation[epoch] = total.item() / 10, right / 10
    w.model.train()


def test_gradients_may_be_on_in_an_evaluation(w: Witness) -> None:
    validation = loader(10, seed=2)
    record = train(w, lambda epoch: evaluate_with_gradients(w, validation, epoch))
    assert record.metric("validation/loss") == losses(w)
    assert record.metric("validation/accuracy") == accuracies(w)


def attack(w: Witness, batches: DataLoader[Any], *, backward: bool = True) -> None:
    """Evaluate inputs that are changed along their gradients (FGSM): which value is the loss, nobody knows."""
    w.model.eval()
    for x, y in batches:
        x.requires_grad_()
        loss = entropy(w.model(x), y)
        if backward:
            loss.backward()
        gradient = x.grad if backward else torch.autograd.grad(loss, x)[0]
        with torch.no_grad():
            entropy(w.model(x + 0.1 * gradient.sign()), y)
    w.model.zero_grad()
    w.model.train()


def attack_by_hand(w: Witness, batches: DataLoader[Any]) -> None:
    attack(w, batches, backward=False)


@torch.no_grad()
def in_evaluation(w: Witness, batches: DataLoader[Any], judge: Callable[[Tensor, Tensor], object]) -> None:
    w.model.eval()
    for x, y in batches:
        judge(x, y)
    w.model.train()


def two_views(w: Witness, batches: DataLoader[Any]) -> None:
    def judge(x: Tensor, y: Tensor) -> None:
        one, other = w.model(x), w.model(x.flip(-1))
        (entropy(one, y) + entropy(other, y)) / 2

    in_evaluation(w, batches, judge)


def without_the_last(w: Witness, batches: DataLoader[Any]) -> None:
    """The last batch is padded, and its output cut."""
    full = torch.zeros(BATCH, 3, 8, 8)

    def judge(x: Tensor, y: Tensor) -> None:
        full[: len(x)] = x
        output = w.model(full)
        entropy(output if len(x) == BATCH else output[: len(x)], y)

    in_evaluation(w, batches, judge)


def an_extra_value(w: Witness, batches: DataLoader[Any]) -> None:
    """One batch is evaluated twice."""
    w.model.eval()
    for number, (x, y) in enumerate(batches):
        entropy(w.model(x), y)
        if number == 0:
            with torch.no_grad():
                entropy(w.model(x + 1), y)
    w.model.train()


def an_average(w: Witness, batches: DataLoader[Any]) -> None:
    average = copy.deepcopy(w.model).eval()
    in_evaluation(w, batches, lambda x, y: entropy(average(x), y))


def in_training_mode(w: Witness, batches: DataLoader[Any]) -> None:
    with torch.no_grad():
        for x, y in batches:
            entropy(w.model(x), y)


@pytest.mark.parametrize(
    ("only", "reason"),
    [
        (look, "the data evaluated is not drawn to its end"),
        (attack, "backward is called on what is evaluated"),
        (attack_by_hand, "more than one criterion value is computed on a batch"),
        (two_views, "more than one criterion value is computed on a batch"),
        (an_extra_value, "more than one criterion value is computed on a batch"),
        (
            without_the_last,
            "not on every batch evaluated a known criterion is called, on what the model returned",
        ),
        (
            an_average,
            "a criterion is evaluated on what another model returned, or on what is made of the output, and no model "
            "returned its value",
        ),
        (no_loader, "what is evaluated is not drawn from a DataLoader of its own"),
        (in_training_mode, "the model is evaluated in training mode"),
        (reload, "the weights evaluated were loaded after the last step"),
    ],
)
def test_a_validation_that_is_not_whole_leaves_no_loss(
    w: Witness,
    only: Callable[[Witness, DataLoader[Any]], None],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    validation = loader(10, seed=2)
    record = train(w, lambda _: only(w, validation))
    assert record.metric("validation/loss") == record.metric("validation/accuracy") == {}
    assert missing(caplog) == both_missing(reason)


@pytest.mark.parametrize(
    "training_part",
    [
        lambda source: DataLoader(
            source, batch_size=BATCH, sampler=WeightedRandomSampler([1.0] * len(source), 20)
        ),
        lambda source: DataLoader(Subset(source, range(12)), batch_size=BATCH),
    ],
    ids=["a part trained", "a subset trained"],
)
def test_training_data_in_another_order_are_no_validation(
    w: Witness, training_part: Callable[[Any], DataLoader[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    source = data()
    record = train(w, lambda _: evaluate(w, DataLoader(source, batch_size=8)), batches=training_part(source))
    assert record.metric("validation/loss") == {}
    assert missing(caplog) == both_missing("the data evaluated is the data trained on")


def test_targets_that_the_criterion_ignores_are_not_counted(w: Witness) -> None:
    images, targets = data(20, seed=2).tensors
    targets[::3] = -100
    batches = DataLoader(TensorDataset(images, targets), batch_size=BATCH)
    counted = int((targets != -100).sum())

    def evaluation(epoch: int) -> None:
        w.model.eval()
        total = right = 0.0
        with torch.no_grad():
            for x, y in batches:
                output = w.model(x)
                total += entropy(output, y).item() * (y != -100).sum().item()
                right += (output.argmax(1) == y).sum().item()
        w.validation[epoch] = total / counted, right / counted
        w.model.train()

    record = train(
        w, evaluation, batches=DataLoader(TensorDataset(images, targets.clone()), batch_size=BATCH)
    )
    assert record.metric("validation/loss") == losses(w)
    assert record.metric("validation/accuracy") == accuracies(w)
    assert set(record.metric("train/loss")) == {0, 1, 2}


@pytest.mark.filterwarnings("ignore:size_average and reduce args will be deprecated")
def test_a_sum_by_the_deprecated_argument_is_no_mean(w: Witness) -> None:
    def summed(output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output, y, size_average=False)

    record = train(w, evaluate_with(w, summed), summed)
    assert record.metric("train/loss") == record.metric("validation/loss") == {}
