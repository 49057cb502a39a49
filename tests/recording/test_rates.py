"""Steps that are told ahead are those that the scheduler then makes; telling them runs no code of a script's own."""

from __future__ import annotations

import functools
import random
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from timm import scheduler as timm_scheduler
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as torch_scheduler

from mlflow_dynamics.convergence.schedule import MIN_RATE, Schedule, is_step
from mlflow_dynamics.recording.schedule_reader import schedule_from

pytestmark = pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning")

Make = Callable[[Optimizer], torch_scheduler.LRScheduler]

FACTORS = st.floats(0.05, 1.0)
TICKS = st.integers(1, 60)


def made(kind: Callable[..., object], *arguments: st.SearchStrategy[object]) -> st.SearchStrategy[Make]:
    return st.builds(lambda *values: lambda one: kind(one, *values), *arguments)


DROPPING = st.one_of(
    made(torch_scheduler.StepLR, st.integers(1, 30), FACTORS),
    made(torch_scheduler.MultiStepLR, st.lists(TICKS, max_size=5), FACTORS),
)
STEPPING = st.one_of(
    DROPPING,
    made(torch_scheduler.ConstantLR, FACTORS, st.integers(0, 60)),
    made(torch_scheduler.CosineAnnealingWarmRestarts, st.integers(2, 20), st.integers(1, 3)),
    st.builds(
        lambda first, then: lambda one: torch_scheduler.ChainedScheduler([first(one), then(one)]),
        made(torch_scheduler.ConstantLR, FACTORS, st.integers(0, 60)),
        DROPPING,
    ),
)
SMOOTH = st.one_of(
    made(torch_scheduler.ExponentialLR, FACTORS),
    made(torch_scheduler.LinearLR, FACTORS, st.floats(0.0, 1.0), TICKS),
    made(torch_scheduler.PolynomialLR, TICKS, st.floats(0.5, 3.0)),
    made(torch_scheduler.CosineAnnealingLR, TICKS, st.floats(0.0, 0.01)),
    made(torch_scheduler.OneCycleLR, st.just(0.5), st.integers(60, 90)),
)
WARMED = st.builds(
    lambda start, end, then: (
        lambda one: torch_scheduler.SequentialLR(
            one, [torch_scheduler.LinearLR(one, start, total_iters=end), then(one)], milestones=[end]
        )
    ),
    *(FACTORS, st.integers(1, 20), st.one_of(DROPPING, SMOOTH)),
)


def optimizer() -> SGD:
    groups = [
        {"params": [nn.Parameter(torch.zeros(2))]},
        {"params": [nn.Parameter(torch.zeros(3))], "lr": torch.tensor(0.3)},
    ]
    return SGD(groups, lr=0.1, momentum=0.9)


def rates_of(scheduler: torch_scheduler.LRScheduler) -> list[float]:
    rates = []
    for _ in range(60):
        rates.append(float(scheduler.optimizer.param_groups[0]["lr"]))
        scheduler.step()
    return rates


@settings(max_examples=60, deadline=None)
@given(make=STEPPING, per_epoch=st.integers(1, 20))
def test_the_steps_told_are_those_that_the_scheduler_then_makes(make: Make, per_epoch: int) -> None:
    scheduler = make(optimizer())
    restarts = isinstance(scheduler, torch_scheduler.CosineAnnealingWarmRestarts)
    assume(not restarts or per_epoch <= scheduler.T_0)  # a cycle may be too short to be looked up
    told = schedule_from(scheduler, ticks_per_epoch=float(per_epoch)).drop_epochs
    rates = rates_of(make(optimizer()))
    least = MIN_RATE * max(rates) * (1 + 1e-6)
    made = [
        tick
        for tick in range(1, 60)
        if is_step(rates[tick - 1], rates[tick])
        and max(rates[tick - 1], rates[tick]) > least
        and not (restarts and rates[tick] < rates[tick - 1])
    ]
    epochs = [epoch for epoch in sorted({tick // per_epoch for tick in made}) if epoch > 0][:20]
    last = 60 // per_epoch
    assert [epoch for epoch in told if epoch < last] == [epoch for epoch in epochs if epoch < last]


@settings(max_examples=30, deadline=None)
@given(make=SMOOTH, end=st.integers(1, 20), start=FACTORS)
def test_curves_and_warm_ups_make_no_steps(make: Make, end: int, start: float) -> None:
    def warmed(one: Optimizer) -> torch_scheduler.LRScheduler:
        parts = [
            torch_scheduler.LinearLR(one, start, total_iters=end),
            torch_scheduler.CosineAnnealingLR(one, 40),
        ]
        return torch_scheduler.SequentialLR(one, parts, milestones=[end])

    for one in (make, warmed):
        assert schedule_from(one(optimizer()), ticks_per_epoch=1.0).drop_epochs == ()


def state_of(scheduler: torch_scheduler.LRScheduler) -> str:
    """Everything that reading a scheduler could have changed."""
    one = scheduler.optimizer
    parts = [scheduler, *getattr(scheduler, "_schedulers", [])]
    return repr(
        (
            [sorted(vars(part).items(), key=lambda item: item[0]) for part in parts],
            (one.param_groups, one.state_dict(), one.step, sorted(vars(one))),
            (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()),  # noqa: NPY002
            (warnings.filters, globals().get("__warningregistry__")),
        )
    )


@settings(max_examples=60, deadline=None)
@given(
    make=st.one_of(STEPPING, SMOOTH, WARMED),
    begun=st.integers(0, 5),
    per_epoch=st.sampled_from([None, 1.0, 7.0]),
)
def test_reading_changes_neither_scheduler_nor_optimizer_and_neither_draws_nor_warns(
    make: Make, begun: int, per_epoch: float | None
) -> None:
    scheduler = make(optimizer())
    for _ in range(begun):
        scheduler.step()
    before = state_of(scheduler)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        schedule_from(scheduler, ticks_per_epoch=per_epoch)
    assert warned == []
    assert state_of(scheduler) == before


@pytest.mark.parametrize("noise", [None, 5])
def test_a_scheduler_of_timm_is_left_as_it_is_and_unknown_with_noise(noise: int | None) -> None:
    one = optimizer()
    scheduler = timm_scheduler.StepLRScheduler(one, 4, 0.1, noise_range_t=noise)
    before = state_of(scheduler)
    name = "step" if noise is None else "unknown"
    assert schedule_from(scheduler, ticks_per_epoch=1.0).name == name
    assert state_of(scheduler) == before


CALLED: list[str] = []


class Own(torch_scheduler.StepLR):
    """Of a script: whatever is asked of it is noted."""

    def step(self, epoch: int | None = None) -> None:
        CALLED.append("step")
        super().step()

    def get_lr(self) -> list[float]:
        CALLED.append("get_lr")
        return super().get_lr()

    def _get_closed_form_lr(self) -> list[float]:
        CALLED.append("closed")
        return super()._get_closed_form_lr()

    def __getattr__(self, name: str) -> object:
        CALLED.append(name)
        raise AttributeError(name)

    def __copy__(self) -> Own:
        CALLED.append("copy")
        return self


def own_rate(tick: int, factor: float = 0.9) -> float:
    CALLED.append("rate")
    return factor**tick


class OwnRate:
    """A callable that pretends to be Hugging Face's."""

    __module__ = "transformers.optimization"
    __name__ = "_get_constant_lambda"

    def __call__(self, tick: int) -> float:
        return own_rate(tick)


def with_own_method(one: Optimizer) -> torch_scheduler.LRScheduler:
    scheduler = torch_scheduler.StepLR(one, 3)
    scheduler._get_closed_form_lr = lambda: [own_rate(1)]
    return scheduler


@pytest.mark.parametrize(
    "make",
    [
        lambda one: Own(one, 3),
        lambda one: torch_scheduler.LambdaLR(one, own_rate),
        lambda one: torch_scheduler.LambdaLR(one, functools.partial(own_rate, factor=0.5)),
        lambda one: torch_scheduler.LambdaLR(one, OwnRate()),
        lambda one: torch_scheduler.MultiplicativeLR(one, own_rate),
        with_own_method,
        lambda one: torch_scheduler.ChainedScheduler([torch_scheduler.StepLR(one, 3), Own(one, 3)]),
        lambda one: torch_scheduler.SequentialLR(
            one, [torch_scheduler.ConstantLR(one), torch_scheduler.LambdaLR(one, own_rate)], milestones=[5]
        ),
    ],
)
def test_code_of_a_scripts_own_is_never_called(make: Make) -> None:
    scheduler = make(optimizer())
    CALLED.clear()
    assert schedule_from(scheduler, ticks_per_epoch=1.0) == Schedule(name="unknown")
    assert CALLED == []


@pytest.mark.parametrize(
    "broken",
    [
        lambda one: torch_scheduler.LRScheduler.__new__(torch_scheduler.StepLR),  # its constructor has raised
        lambda one: vars(one.param_groups[0]["scheduler"]).update(step_size=0),
    ],
)
def test_a_scheduler_that_cannot_be_asked_is_unknown(broken: Make) -> None:
    one = optimizer()
    one.param_groups[0]["scheduler"] = torch_scheduler.StepLR(one, 3)
    scheduler = broken(one) or one.param_groups[0]["scheduler"]
    assert schedule_from(scheduler, ticks_per_epoch=1.0) == Schedule(name="unknown")


def test_a_long_training_of_small_ticks_is_read_to_its_end() -> None:
    def read(scheduler: torch_scheduler.LRScheduler) -> Schedule:
        return schedule_from(scheduler, ticks_per_epoch=5_000.0)

    one_cycle = torch_scheduler.OneCycleLR(optimizer(), 0.1, total_steps=450_000)
    assert read(one_cycle) == Schedule(name="onecycle", planned_epochs=90)
    dropping = torch_scheduler.MultiStepLR(optimizer(), milestones=[149_999, 150_000, 400_001])
    assert read(dropping) == Schedule(name="step", drop_epochs=(29, 30, 80))
