"""The training loss is the script's own, also where steps are skipped or gathered; where it is not certain, none."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable

import pytest
import torch
from loops import Prefetcher, evaluate, train_batch
from recorded import not_logged, records
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset
from witness import BATCH, Witness, data, loader, net, sgd

import mlflow_dynamics

EPOCHS = 3
TWICE = not_logged(
    "training loss",
    reason="backward is called more than once on a batch, and which of the values is the loss is not known",
)


@pytest.fixture
def w(caplog: pytest.LogCaptureFixture) -> Witness:
    """A model that is recorded from here on."""
    caplog.set_level(logging.INFO, "mlflow_dynamics")
    mlflow_dynamics.autolog()
    witness = Witness(net())
    torch.manual_seed(7)
    return witness


def train_losses() -> dict[int, float]:
    """What was logged."""
    mlflow_dynamics.autolog(disable=True)
    (record,) = records()
    assert list(record.steps) == [0, 1, 2]
    return record.metric("train/loss")


def expected(w: Witness) -> object:
    return pytest.approx({epoch: w.train_loss(epoch) for epoch in range(EPOCHS)}, rel=1e-5)


def with_a_nan() -> DataLoader:
    """Batches of which the third gives a loss that is NaN."""
    whole = data()
    images, targets = whole.tensors
    images[2 * BATCH] = math.nan
    return DataLoader(TensorDataset(images, targets), batch_size=BATCH)


def scaled(optimizer: Optimizer) -> Callable[[Tensor], None]:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def update(loss: Tensor) -> None:
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return update


def checked(zero: Callable[[Optimizer], None], *, before: bool) -> Callable[..., Callable[[Tensor], None]]:
    def make(optimizer: Optimizer) -> Callable[[Tensor], None]:
        def update(loss: Tensor) -> None:
            if before:
                zero(optimizer)
            loss.backward()
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
            if all(gradient.isfinite().all() for gradient in gradients):
                optimizer.step()
            if not before:
                zero(optimizer)

        return update

    return make


def none_by_hand(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


@pytest.mark.parametrize(
    "updater",
    [
        scaled,
        checked(Optimizer.zero_grad, before=True),
        checked(Optimizer.zero_grad, before=False),
        checked(lambda optimizer: optimizer.zero_grad(set_to_none=False), before=True),
        checked(none_by_hand, before=False),
    ],
    ids=["GradScaler", "zeroed before", "zeroed after", "zeros", "by hand"],
)
def test_a_batch_whose_step_is_skipped_for_its_nan_is_left_out(
    w: Witness, updater: Callable[[Optimizer], Callable[[Tensor], None]], caplog: pytest.LogCaptureFixture
) -> None:
    optimizer, batches = sgd(w.model), with_a_nan()
    update = updater(optimizer)
    for epoch in range(EPOCHS):
        for x, y in batches:
            loss = F.cross_entropy(w.model(x), y)
            update(loss)
            if loss.isfinite():
                w.loss(epoch, loss, len(x))
    assert train_losses() == expected(w)
    assert "diverg" not in caplog.text


def test_a_batch_whose_step_a_fused_optimizer_skips_for_its_nan_is_left_out(w: Witness) -> None:
    optimizer, batches = torch.optim.SGD(w.model.parameters(), lr=0.05, fused=True), with_a_nan()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for epoch in range(EPOCHS):
        for x, y in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(w.model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            if loss.isfinite():
                w.loss(epoch, loss, len(x))
    assert train_losses() == expected(w)


def test_a_nan_on_which_a_step_was_made_is_seen(w: Witness) -> None:
    optimizer = sgd(w.model)
    for _ in range(EPOCHS):
        for x, y in with_a_nan():
            optimizer.zero_grad()
            F.cross_entropy(w.model(x), y).backward()
            optimizer.step()
    assert all(math.isnan(value) for value in train_losses().values())


@pytest.mark.parametrize("prefetched", [False, True])
@pytest.mark.parametrize("zeroed", ["after a step", "before an epoch", "before the first of a group"])
def test_batches_after_the_last_step_of_an_epoch_count_to_that_epoch(
    w: Witness, zeroed: str, prefetched: bool
) -> None:
    batches, optimizer = loader(27), sgd(w.model)  # 7 batches in groups of 3, the last of 3 samples
    for epoch in range(EPOCHS):
        if zeroed == "before an epoch":
            w.model.zero_grad()
        stream = Prefetcher(batches)
        for index, (x, y) in enumerate(iter(stream.next, None) if prefetched else batches):
            if zeroed == "before the first of a group" and index % 3 == 0:
                optimizer.zero_grad()
            loss = F.cross_entropy(w.model(x), y)
            w.loss(epoch, loss, len(x))
            (loss / 3).backward()
            if index % 3 == 2:
                optimizer.step()
                if zeroed != "before the first of a group":
                    w.model.zero_grad()
    assert train_losses() == expected(w)


@pytest.mark.parametrize("of_several_passes", [False, True])
def test_a_batch_in_pieces_is_one_step(w: Witness, of_several_passes: bool) -> None:
    source = ConcatDataset([data(11), data(16, seed=4)]) if of_several_passes else data(27)
    batches, optimizer = DataLoader(source, batch_size=6), sgd(w.model)
    for epoch in range(EPOCHS):
        for x, y in batches:
            optimizer.zero_grad()
            for piece in range(0, len(x), 2):
                part = slice(piece, piece + 2)
                loss = F.cross_entropy(w.model(x[part]), y[part])
                w.loss(epoch, loss, len(x[part]))
                (loss * len(x[part]) / len(x)).backward()
            optimizer.step()
    assert train_losses() == expected(w)


@pytest.mark.parametrize("zeroed_by", ["optimizer", "model", "hand"])
def test_an_attack_with_the_models_own_backward_leaves_no_loss(
    w: Witness, zeroed_by: str, caplog: pytest.LogCaptureFixture
) -> None:
    """FGSM: the gradient of the images, then that of the weights on the attacked images."""
    optimizer, validation = sgd(w.model), loader(10, seed=2)
    zero = {
        "optimizer": optimizer.zero_grad,
        "model": w.model.zero_grad,
        "hand": lambda: none_by_hand(optimizer),
    }
    for epoch in range(EPOCHS):
        for x, y in loader():
            x.requires_grad_()
            F.cross_entropy(w.model(x), y).backward()
            attacked = (x + 0.1 * x.grad.sign()).detach()
            zero[zeroed_by]()
            F.cross_entropy(w.model(attacked), y.clone()).backward()
            optimizer.step()
            optimizer.zero_grad()
        evaluate(w, validation, epoch)
    assert train_losses() == {}
    (record,) = records()
    assert record.metric("validation/loss") == pytest.approx(
        {epoch: loss for epoch, (loss, _) in w.validation.items()}, rel=1e-5
    )
    assert [line for line in caplog.messages if "not logged" in line] == [TWICE]


def test_an_attack_that_asks_for_its_own_gradient_leaves_the_loss(w: Witness) -> None:
    optimizer = sgd(w.model)
    for epoch in range(EPOCHS):
        for x, y in loader():
            x.requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(w.model(x), y), x)
            loss = F.cross_entropy(w.model((x + 0.1 * gradient.sign()).detach()), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            w.loss(epoch, loss, len(x))
    assert train_losses() == expected(w)


def test_sharpness_aware_minimisation_in_two_steps_leaves_no_loss(
    w: Witness, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = sgd(w.model)
    for _ in range(EPOCHS):
        for x, y in loader():
            F.cross_entropy(w.model(x), y).backward()
            moves = [0.05 * parameter.grad for parameter in w.model.parameters()]
            with torch.no_grad():
                for parameter, move in zip(w.model.parameters(), moves, strict=True):
                    parameter.add_(move)
            optimizer.zero_grad()
            F.cross_entropy(w.model(x), y).backward()
            with torch.no_grad():
                for parameter, move in zip(w.model.parameters(), moves, strict=True):
                    parameter.sub_(move)
            optimizer.step()
            optimizer.zero_grad()
    assert train_losses() == {}
    assert TWICE in caplog.messages


def test_two_outputs_that_are_differentiated_one_after_the_other_leave_no_loss(w: Witness) -> None:
    """R-drop without its divergence: dropout makes the outputs differ."""
    optimizer = sgd(w.model)
    for _ in range(EPOCHS):
        for x, y in loader():
            optimizer.zero_grad()
            for _ in range(2):
                F.cross_entropy(w.model(x), y).backward()
            optimizer.step()
    assert train_losses() == {}


def test_criteria_in_turn_leave_no_loss(w: Witness) -> None:
    optimizer = sgd(w.model)
    for _ in range(EPOCHS):
        for index, (x, y) in enumerate(loader()):
            optimizer.zero_grad()
            output = w.model(x)
            wanted = F.one_hot(y, 3).float()
            (F.cross_entropy(output, y) if index % 2 else F.mse_loss(output, wanted)).backward()
            optimizer.step()
    assert train_losses() == {}


def test_gradients_that_are_only_looked_at_count_nowhere(w: Witness) -> None:
    """Fisher information over all data after each epoch, as elastic weight consolidation takes it."""
    batches, optimizer = loader(), sgd(w.model)
    for epoch in range(EPOCHS):
        for x, y in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(w.model(x), y)
            loss.backward()
            optimizer.step()
            w.loss(epoch, loss, len(x))
        for x, y in loader(seed=3):
            w.model.zero_grad()
            (3 * F.cross_entropy(w.model(x), y)).backward()
    assert train_losses() == expected(w)


def test_a_model_that_was_trained_before_takes_nothing_from_the_next_ones_loss() -> None:
    mlflow_dynamics.autolog()
    teacher, student = Witness(net()), Witness(net(1))
    optimizers = [sgd(each.model) for each in (teacher, student)]
    for each, optimizer in zip((teacher, student), optimizers, strict=True):
        batches = loader()
        for epoch in range(EPOCHS):
            for x, y in batches:
                train_batch(each, optimizer, x, y, epoch)
    mlflow_dynamics.autolog(disable=True)
    assert [record.metric("train/loss") for record in records()] == [expected(teacher), expected(student)]


def test_nothing_of_a_step_is_kept_alive(w: Witness) -> None:
    optimizer: Optimizer = sgd(w.model)
    alive: list[weakref.ref[Tensor]] = []
    for index, (x, y) in enumerate(loader()):
        output = w.model(x)
        loss = nn.CrossEntropyLoss()(output, y)
        alive += [weakref.ref(output), weakref.ref(loss)]
        (loss / 2).backward()
        if index % 2:
            optimizer.step()
            optimizer.zero_grad()
        del output, loss
        assert [reference() for reference in alive] == [None] * len(alive)


def headed(head: nn.Module) -> Witness:
    torch.manual_seed(3)
    return Witness(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), head))


@pytest.mark.parametrize(
    ("head", "criterion"),
    [
        (nn.Sequential(nn.Linear(144, 1), nn.Sigmoid()), lambda o, y: nn.BCELoss()(o.squeeze(1), y % 2.0)),
        (nn.Linear(144, 1), lambda o, y: F.binary_cross_entropy_with_logits(o.view(-1), y % 2.0)),
        (nn.Unflatten(1, (3, 48)), lambda o, y: F.mse_loss(o.flatten(1), torch.ones(len(y), 144))),
        (nn.Linear(144, 3), lambda o, y: F.cross_entropy(o.contiguous().view(-1, o.size(-1)), y).mean()),
    ],
    ids=["squeeze", "view", "flatten", "all at once, and a mean of one value"],
)
def test_the_output_in_another_shape_is_still_the_models(
    head: nn.Module, criterion: Callable[[Tensor, Tensor], Tensor]
) -> None:
    mlflow_dynamics.autolog()
    w = headed(head)
    optimizer = sgd(w.model)
    for epoch in range(EPOCHS):
        for x, y in loader(27):
            loss = criterion(w.model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            w.loss(epoch, loss, len(x))
    assert train_losses() == expected(w)


def test_a_transformed_call_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Under torch.func a tensor has no memory to be known by."""
    mlflow_dynamics.autolog()
    model = net()[2:]
    model[1] = nn.Linear(192, 144)  # no random numbers, which torch.func would ask about
    optimizer, weights = sgd(model), dict(model.named_parameters())

    def loss(given: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, given, (x,)).view(-1, 3), y)

    for _ in range(EPOCHS):
        for x, y in loader():
            torch.func.grad(loss)(weights, x, y)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert list(train_losses()) == [0, 1, 2]
    assert "internal error" not in caplog.text


@pytest.mark.parametrize(
    "criterion",
    [
        lambda o, y: F.cross_entropy(o[:, :3], y),
        lambda o, y: F.cross_entropy(o.view(-1, 3), y.repeat_interleave(2)),
        lambda o, y: F.mse_loss(o.view(len(y), 3, 2).transpose(1, 2), torch.ones(len(y), 2, 3)),
        lambda o, y: F.cross_entropy(o.clone(), y),
    ],
    ids=["a part", "samples in pieces", "transposed", "a copy"],
)
def test_a_criterion_on_values_made_of_the_output_gives_no_loss(
    criterion: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Of a part or of samples in pieces the mean may be over other samples than the batch's."""
    mlflow_dynamics.autolog()
    w = headed(nn.Linear(144, 6))
    optimizer = sgd(w.model)
    for _ in range(EPOCHS):
        for x, y in loader():
            optimizer.zero_grad()
            criterion(w.model(x), y).backward()
            optimizer.step()
    assert train_losses() == {}
