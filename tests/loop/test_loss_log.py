"""Random sequences of steps and evaluations: each epoch's losses are those that a plain account of it comes to.

The account knows where epochs begin and keeps a list of everything; the log hears of an epoch's end late.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mlflow_dynamics.loop import loss_log
from mlflow_dynamics.loop.events import BatchDrawn
from mlflow_dynamics.loop.loss_log import LossLog, StepValues
from mlflow_dynamics.loop.passes import Pass
from mlflow_dynamics.recording.criterion import Call

OPTIMIZER = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)


@dataclass(frozen=True)
class Value:
    """Of a criterion on one batch: the sum over its samples, how many, how many ignored, how many right."""

    total: float
    samples: int
    ignored: int
    right: int


@dataclass(frozen=True)
class Trained:
    """A training step, on one value or, gathered, several; `other`: something else is differentiated too."""

    values: list[Value]
    criterion: str
    other: bool


@dataclass(frozen=True)
class Evaluated:
    """A pass over a data set, to its end or not."""

    data: int
    values: list[Value]
    whole: bool


@dataclass(frozen=True)
class EpochOf:
    """An epoch, which begins with a step, and how many steps of the next one are made before its end is known.

    Attributes:
        doubts: at these items it seems that an epoch may begin.
    """

    items: list[Trained | Evaluated]
    late: int
    doubts: set[int]


numbers = st.integers(-8, 8).map(lambda number: number / 4)
values = st.builds(
    Value,
    total=numbers,
    samples=st.integers(2, 4),
    ignored=st.integers(0, 2),
    right=st.integers(0, 2),
)
endless = values.map(lambda value: replace(value, total=math.inf))
rarely = st.integers(0, 11).map(lambda number: number == 0)
criteria = st.integers(0, 11).map(lambda number: "cross_entropy" if number else "mse_loss")
steps = st.builds(
    Trained, values=st.lists(values | endless, min_size=1, max_size=3), criterion=criteria, other=rarely
)
data_sets = st.integers(0, 7).map(lambda number: 2 if number == 7 else 1)
evaluations = st.builds(
    Evaluated, data=data_sets, values=st.lists(values, min_size=1, max_size=3), whole=st.booleans()
)
epochs = st.builds(
    lambda first, items, late, doubts: EpochOf([first, *items], late, doubts),
    steps,
    st.lists(steps | evaluations, max_size=6),
    st.integers(0, 3),
    st.sets(st.integers(1, 6), max_size=3),
)


def account(epoch: EpochOf, chosen: list[int]) -> dict[str, tuple[float, float]]:
    """What is known of the epoch, by the definitions; the validation data are put into `chosen`, if they are found."""
    trained = [item for item in epoch.items if isinstance(item, Trained)]
    found: dict[str, tuple[float, float]] = {}
    plain = len({step.criterion for step in trained}) == 1 and not any(step.other for step in trained)
    if plain:
        counted = [
            value
            for step in trained
            for place, value in enumerate(step.values, 1)
            if place == len(step.values) or math.isfinite(value.total)
        ]
        found["train_loss"] = mean(counted)
    last: dict[int, Evaluated] = {}
    since_step: set[int] = set()
    for item in epoch.items:
        if isinstance(item, Trained):
            since_step = set()
        elif item.whole and item.data not in since_step:
            since_step.add(item.data)
            last[item.data] = item
    if last and not chosen:
        chosen += list(last)
    if len(chosen) == 1 and chosen[0] in last:
        validation = last[chosen[0]].values
        if not any(step.other for step in trained) and {step.criterion for step in trained} == {
            "cross_entropy"
        }:
            found["validation_loss"] = mean(validation)
        found["validation_accuracy"] = float(sum(value.right for value in validation)), mean(validation)[1]
    return {key: value for key, value in found.items() if value[1]}


def mean(counted: list[Value]) -> tuple[float, float]:
    return sum(value.total for value in counted), sum(value.samples - value.ignored for value in counted)


@dataclass
class Script:
    """Makes the calls, each on tensors of its own, and tells a log of them."""

    log: LossLog = field(default_factory=LossLog)
    _kept: list[Tensor] = field(default_factory=list)
    _passes: int = 0

    def new_pass(self, data: int, length: int) -> Pass:
        self._passes += 1
        return Pass(BatchDrawn(data, self._passes, 0, length), (data,))

    def draw(self, drawn: Pass) -> None:
        before = drawn.latest
        drawn.latest = BatchDrawn(before.loader, before.pass_, before.number + 1, before.length)
        drawn.asked += 1

    def call(self, value: Value, criterion: str, *, evaluating: bool = False) -> Call:
        self._kept = [torch.zeros(1), torch.zeros(1)]
        total, ignored, right = (
            torch.tensor(float(one)) for one in (value.total, value.ignored, value.right)
        )
        tensors = (weakref.ref(one) for one in self._kept)
        return Call(
            self, criterion, total, value.samples, ignored, right, False, True, evaluating, *tensors, None
        )

    def train(self, step: Trained, drawn: Pass, *, perhaps: bool, settled: bool) -> None:
        for value in step.values:
            self.draw(drawn)
            self.log.differentiated(self.call(value, step.criterion), drawn)
        if step.other:
            self.log.differentiated(None, drawn)
        self.log.step(OPTIMIZER, closure=False, perhaps_begins=perhaps, settled=settled)

    def evaluate(self, item: Evaluated) -> None:
        drawn = self.new_pass(item.data, len(item.values) + (not item.whole))
        for value in item.values:
            self.draw(drawn)
            self.log.evaluated(self.call(value, "cross_entropy", evaluating=True), drawn)


def heard(training: list[EpochOf]) -> list[dict[str, tuple[float, float]]]:
    """What the log says of each epoch, which it is asked for as late as the epoch says."""
    script, found = Script(), []
    due: int | None = None  # steps left until the end of the last epoch is known
    for epoch in training:
        drawn, made = script.new_pass(0, 99), 0
        for place, item in enumerate(epoch.items):
            if isinstance(item, Evaluated):
                script.evaluate(item)
                continue
            if due == 0:
                found.append(script.log.close(made, evaluated=True))
                due = None
            begins = due is not None and made == 0
            doubt = begins or place in epoch.doubts
            script.train(item, drawn, perhaps=doubt, settled=due is None and not doubt and not epoch.doubts)
            made += 1
            due = None if due is None else due - 1
        if due is not None:  # the next epoch ended before that
            found.append(script.log.close(made, evaluated=True))
        due = epoch.late
    found.append(script.log.close(0, evaluated=True))
    return found


@given(training=st.lists(epochs, min_size=1, max_size=4))
@settings(max_examples=1000, deadline=None)
def test_an_epoch_cut_late_has_the_losses_of_its_own_steps(training: list[EpochOf]) -> None:
    chosen: list[int] = []
    expected = [account(epoch, chosen) for epoch in training]
    assert heard(training) == expected  # multiples of a quarter: exact


def test_many_values_make_few_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_log, "CHUNK", 4)
    script, kept = Script(), StepValues()
    for step in range(10):
        kept.add(step, script.call(Value(step, 2, 1, 0), "mse_loss"), if_finite=False)
        assert len(kept._open) <= 4
    assert [len(chunk) for chunk in kept._chunks] == [4, 4]
    assert kept.take(7) == loss_log.Mean(21, 7)
    assert kept.take(10) == loss_log.Mean(24, 3)
    assert kept.take(10) == loss_log.Mean(0, 0)


def test_a_value_whose_script_has_no_tensor_of_those_ignored_counts_all() -> None:
    kept, script = StepValues(), Script()
    for step, ignored in enumerate([None, torch.tensor(1.0), None]):
        kept.add(step, replace(script.call(Value(1, 2, 0, 0), "l1_loss"), ignored=ignored), if_finite=False)
    assert kept.take(3) == loss_log.Mean(3, 5)
