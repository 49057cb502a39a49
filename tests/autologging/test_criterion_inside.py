"""The criterion is called inside the outermost module: losses and accuracy are the script's own, or a line each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import timm
import torch
import transformers
from recorded import Record, not_logged, records
from timm.task import ClassificationTask
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from witness import loader, net, sgd

import mlflow_dynamics

EPOCHS = 3
WORDS = 11


class Judged(NamedTuple):
    """What a script says of one batch: its loss, how many answers were right, and of how many."""

    loss: Tensor
    right: Tensor
    count: int


Judge = Callable[[Tensor, Tensor], Judged]


class Shape(NamedTuple):
    """A script: what its optimizer trains, and how it comes to the values of a batch.

    Attributes:
        model: the outermost module.
        judge: in training.
        evaluated: what is put into evaluation mode.
        judge_again: in evaluation.
        data: for training or, with another seed, for validation.
    """

    model: nn.Module
    judge: Judge
    evaluated: nn.Module
    judge_again: Judge
    data: Callable[..., DataLoader[Any]] = loader


def of_classes(loss: Tensor, output: Tensor, y: Tensor) -> Judged:
    return Judged(loss, (output.argmax(1) == y).sum(), len(y))


def vision_transformer() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4,
        num_labels=3,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def hugging_face() -> Shape:
    model = vision_transformer()

    def judge(x: Tensor, y: Tensor) -> Judged:
        outputs = model(pixel_values=x, labels=y)
        return of_classes(outputs.loss, outputs.logits, y)

    return Shape(model, judge, model, judge)


def hugging_face_evaluated_without_labels() -> Shape:
    shape = hugging_face()

    def judge(x: Tensor, y: Tensor) -> Judged:
        logits = shape.model(pixel_values=x).logits
        return of_classes(F.cross_entropy(logits, y), logits, y)

    return shape._replace(judge_again=judge)


class LossAlone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = vision_transformer()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        outputs = self.model(pixel_values=x, labels=y)
        self.logits = outputs.logits
        return outputs.loss


def hugging_face_within_a_module() -> Shape:
    model = LossAlone()

    def judge(x: Tensor, y: Tensor) -> Judged:
        loss = model(x, y)
        return of_classes(loss, model.logits, y)

    return Shape(model, judge, model, judge)


def hugging_face_with_gradients_in_evaluation() -> Shape:
    shape = hugging_face()
    return shape._replace(judge_again=torch.enable_grad()(shape.judge))


def texts(size: int = 24, seed: int = 1) -> DataLoader[Any]:
    """Sequences of words of which the last ones are not to be predicted."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, WORDS, (size, 6), generator=generator)
    wanted = words.clone()
    wanted[::2, 4:] = -100
    return DataLoader(TensorDataset(words, wanted), batch_size=4)


def language_model() -> Shape:
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=8, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)

    def judge(x: Tensor, y: Tensor) -> Judged:
        outputs = model(input_ids=x, labels=y)
        answers, wanted = outputs.logits.argmax(2)[:, :-1], y[:, 1:]
        return Judged(outputs.loss, (answers == wanted).sum(), int((wanted != -100).sum()))

    return Shape(model, judge, model, judge, texts)


def timm_task() -> Shape:
    """As timm's train.py: a task module trains, its model alone is evaluated, by an evaluator beside it."""
    classifier = timm.create_model("test_vit", num_classes=3, img_size=32)
    task = ClassificationTask(classifier, nn.CrossEntropyLoss(), verbose=False)

    def judge(x: Tensor, y: Tensor) -> Judged:
        result = task(x.repeat(1, 1, 4, 4), y)
        return of_classes(result["loss"], result["output"], y)

    def judge_again(x: Tensor, y: Tensor) -> Judged:
        evaluator = task.create_evaluator()
        output = task.get_eval_model()(x.repeat(1, 1, 4, 4))
        evaluator.update(output, y)
        return of_classes(torch.tensor(evaluator.summary()["loss"]), output, y)

    return Shape(task, judge, task.get_eval_model(), judge_again)


class WithCriterion(nn.Module):
    """A model and its criterion; returns the loss alone."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.criterion = net(), nn.CrossEntropyLoss()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.output = self.model(x)
        return self.criterion(self.output, y)


def wrapper_that_returns_the_loss() -> Shape:
    model = WithCriterion()

    def judge(x: Tensor, y: Tensor) -> Judged:
        return of_classes(model(x, y), model.output, y)

    return Shape(model, judge, model, judge)


def wrapper_whose_model_is_evaluated() -> Shape:
    shape = wrapper_that_returns_the_loss()
    classifier = shape.model.get_submodule("model")

    def judge(x: Tensor, y: Tensor) -> Judged:
        output = classifier(x)
        return of_classes(F.cross_entropy(output, y), output, y)

    return shape._replace(evaluated=classifier, judge_again=judge)


class OutputAndLoss(nn.Module):
    """Returns a pair, as nanoGPT does; no part of it holds all weights.

    Args:
        changed: what the loss becomes, by the output.
    """

    def __init__(self, changed: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.head, self.changed = nn.Linear(192, 8), nn.Linear(8, 3), changed

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        output = self.head(self.body(x.flatten(1)).relu())
        return output, self.changed(F.cross_entropy(output.view(-1, 3), y.view(-1)), output)


def pair_of_output_and_loss(
    changed: Callable[[Tensor, Tensor], Tensor] = lambda loss, output: loss,
) -> Shape:
    model = OutputAndLoss(changed)

    def judge(x: Tensor, y: Tensor) -> Judged:
        output, loss = model(x, y)
        return of_classes(loss, output, y)

    return Shape(model, judge, model, judge)


SHAPES = (
    hugging_face,
    hugging_face_evaluated_without_labels,
    hugging_face_with_gradients_in_evaluation,
    hugging_face_within_a_module,
    language_model,
    timm_task,
    wrapper_that_returns_the_loss,
    wrapper_whose_model_is_evaluated,
    pair_of_output_and_loss,
)


def train(shape: Shape) -> tuple[Record, dict[str, dict[int, float]]]:
    """What was logged, and the script's own account."""
    mlflow_dynamics.autolog()
    optimizer, training, validation = sgd(shape.model), shape.data(27), shape.data(10, seed=2)
    own: dict[str, dict[int, float]] = {"train/loss": {}, "validation/loss": {}, "validation/accuracy": {}}
    for epoch in range(EPOCHS):
        shape.model.train()
        own["train/loss"][epoch], _ = account(update(optimizer, *batch, shape.judge) for batch in training)
        shape.evaluated.eval()
        with torch.no_grad():
            judged = account(shape.judge_again(*batch) for batch in validation)
        own["validation/loss"][epoch], own["validation/accuracy"][epoch] = judged
    mlflow_dynamics.autolog(disable=True)
    (record,) = records()
    return record, own


def update(optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, judge: Judge) -> Judged:
    optimizer.zero_grad()
    judged = judge(x, y)
    judged.loss.backward()
    optimizer.step()
    return judged


def account(judged: Iterator[Judged]) -> tuple[float, float]:
    """The means of loss and accuracy over all answers."""
    total = right = count = 0.0
    for one in judged:
        total += one.loss.item() * one.count
        right += one.right.item()
        count += one.count
    return total / count, right / count


@pytest.mark.parametrize("make", SHAPES)
def test_losses_and_accuracy_are_the_scripts_own(make: Callable[[], Shape]) -> None:
    torch.manual_seed(3)
    record, own = train(make())
    for key, values in own.items():
        assert record.metric(key) == pytest.approx(values, rel=1e-6), key


@pytest.mark.parametrize(
    "changed",
    [
        lambda loss, output: loss + 0.1 * output.square().mean(),
        lambda loss, output: loss / 2,
        lambda loss, output: loss + F.mse_loss(output, output.detach().round()),
    ],
    ids=["a penalty", "a half", "two criteria"],
)
def test_a_model_that_returns_something_else_gives_none_and_a_line_each(
    changed: Callable[[Tensor, Tensor], Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "mlflow_dynamics")
    record, own = train(pair_of_output_and_loss(changed))
    assert [record.metric(key) for key in own] == [{}, {}, {}]
    criteria = (
        "cross_entropy, nll_loss, binary_cross_entropy, binary_cross_entropy_with_logits, mse_loss, l1_loss, "
        "smooth_l1_loss, huber_loss"
    )
    assert [line for line in caplog.messages if "not logged" in line] == [
        not_logged(
            "training loss",
            reason="backward is not called on the value of one criterion on the model's output alone, nor on that of "
            f"one which the model calls and returns, of those that are known ({criteria})",
        ),
        not_logged(
            "validation loss",
            "validation accuracy",
            reason="a criterion is evaluated on what another model returned, or on what is made of the output, and no "
            "model returned its value",
        ),
    ]
