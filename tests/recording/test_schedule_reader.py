"""What is read from a scheduler that is alive: beside the rates it sets when it is really stepped."""

from __future__ import annotations

import gc

import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from timm import scheduler as timm_scheduler
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as torch_scheduler

from mlflow_dynamics.convergence import Schedule
from mlflow_dynamics.convergence.schedule import is_step
from mlflow_dynamics.recording.schedule_reader import (
    ScheduleReader,
    read_schedule,
    schedule_from,
    schedulers_of,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated:FutureWarning"),
]

EPOCHS, STEPS = 12, 5
TOTAL = EPOCHS * STEPS


def optimizer() -> SGD:
    return SGD([nn.Parameter(torch.zeros(2))], lr=0.1)


PER_EPOCH = {
    "constant": lambda one: torch_scheduler.ConstantLR(one, factor=1.0, total_iters=0),
    "late": lambda one: torch_scheduler.ConstantLR(one, factor=0.1, total_iters=4),
    "step": lambda one: torch_scheduler.StepLR(one, step_size=3),
    "gentle": lambda one: torch_scheduler.StepLR(one, step_size=1, gamma=0.8),
    "milestones": lambda one: torch_scheduler.MultiStepLR(one, milestones=[4, 9, 9]),
    "cosine": lambda one: torch_scheduler.CosineAnnealingLR(one, T_max=EPOCHS),
}

SCHEDULES = {
    "constant": Schedule(),
    "late": Schedule(drop_epochs=(4,)),
    "step": Schedule(name="step", drop_epochs=(3, 6, 9)),
    "gentle": Schedule(name="step"),
    "milestones": Schedule(name="step", drop_epochs=(4, 9)),
    "cosine": Schedule(name="cosine", planned_epochs=EPOCHS),
}


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("stepped_first", [False, True])
def test_a_scheduler_stepped_once_an_epoch_is_read_whether_or_not_it_was_stepped_already(
    kind: str, stepped_first: bool
) -> None:
    assert_read(PER_EPOCH[kind](optimizer()), SCHEDULES[kind], ticks=int(stepped_first))


def assert_read(scheduler: object, expected: Schedule, *, ticks: int, epoch: int = 0) -> None:
    for _ in range(ticks):
        scheduler.step()
    one = scheduler.optimizer
    assert read_schedule([getattr(one, "optimizer", one)], epoch=epoch, steps=STEPS) == expected


@pytest.mark.parametrize("kind", ["constant", "late", "step", "gentle", "milestones"])
def test_the_epochs_of_steps_are_those_at_which_the_rate_makes_one(kind: str) -> None:
    scheduler = PER_EPOCH[kind](optimizer())
    seen = []
    for _ in range(EPOCHS):
        seen.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.step()
    steps = tuple(e for e in range(1, EPOCHS) if is_step(seen[e - 1], seen[e]))
    assert steps == SCHEDULES[kind].drop_epochs


def warm_up(one: Optimizer) -> torch_scheduler.LinearLR:
    return torch_scheduler.LinearLR(one, start_factor=0.01, total_iters=2 * STEPS)


PER_STEP = {
    "onecycle": lambda one: torch_scheduler.OneCycleLR(one, max_lr=0.1, total_steps=TOTAL),
    "linear": lambda one: torch_scheduler.LinearLR(one, 1.0, end_factor=0.0, total_iters=TOTAL),
    "polynomial": lambda one: torch_scheduler.PolynomialLR(one, total_iters=TOTAL, power=2),
    "constant": warm_up,
    "cosine": lambda one: torch_scheduler.SequentialLR(
        one,
        [warm_up(one), torch_scheduler.CosineAnnealingLR(one, T_max=TOTAL - 2 * STEPS)],
        milestones=[2 * STEPS],
    ),
    "step": lambda one: torch_scheduler.SequentialLR(
        one, [warm_up(one), torch_scheduler.MultiStepLR(one, milestones=[20])], milestones=[2 * STEPS]
    ),
    "step, chained": lambda one: torch_scheduler.ChainedScheduler(
        [
            torch_scheduler.MultiStepLR(one, milestones=[33]),
            torch_scheduler.ConstantLR(one, factor=1.0, total_iters=0),
        ]
    ),
}


@pytest.mark.parametrize("kind", PER_STEP)
def test_a_scheduler_stepped_every_batch_is_read_in_epochs(kind: str) -> None:
    name = kind.split(",")[0]
    drops = (6,) if name == "step" else ()
    planned = None if name in ("constant", "step") else EPOCHS
    expected = Schedule(name=name, planned_epochs=planned, drop_epochs=drops)
    assert_read(PER_STEP[kind](optimizer()), expected, ticks=STEPS)


def test_steps_that_the_gradient_scaler_skips_do_not_hide_the_rest() -> None:
    scheduler = torch_scheduler.OneCycleLR(optimizer(), max_lr=0.1, total_steps=TOTAL)
    assert_read(
        scheduler, Schedule(name="onecycle", planned_epochs=round(TOTAL / (STEPS + 1))), ticks=STEPS + 1
    )


def test_a_resumed_scheduler_is_read_where_the_epochs_go_on_too() -> None:
    scheduler = torch_scheduler.MultiStepLR(optimizer(), milestones=[8 * STEPS])
    assert_read(scheduler, Schedule(name="step", drop_epochs=(8,)), ticks=4 * STEPS, epoch=3)


def test_a_resumed_scheduler_with_epochs_from_0_has_steps_nobody_can_place() -> None:
    scheduler = torch_scheduler.MultiStepLR(optimizer(), milestones=[8 * STEPS])
    assert_read(scheduler, Schedule(name="step"), ticks=4 * STEPS)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda one: torch_scheduler.LambdaLR(one, lambda t: 0.9**t), "unknown"),
        (lambda one: torch_scheduler.CyclicLR(one, 0.01, 0.1), "unknown"),
        (lambda one: type("Mine", (torch_scheduler.StepLR,), {})(one, 3), "unknown"),
        (lambda one: torch_scheduler.ReduceLROnPlateau(one), "plateau"),
        (lambda one: torch_scheduler.ExponentialLR(one, 0.9), "exponential"),
        (lambda one: torch_scheduler.LinearLR(one, 1.0, 0.5, 10), "linear"),
    ],
)
def test_nothing_is_claimed_that_is_not_certain(make: object, name: str) -> None:
    assert_read(make(optimizer()), Schedule(name=name), ticks=0)


def test_restarts_are_steps_of_the_rate() -> None:
    scheduler = torch_scheduler.CosineAnnealingWarmRestarts(optimizer(), T_0=2, T_mult=2)
    assert schedule_from(scheduler, ticks_per_epoch=1, planned_epochs=20) == Schedule(
        name="cosine_restarts", planned_epochs=20, drop_epochs=(2, 6, 14)
    )


def test_two_schedulers_of_one_optimizer_are_unknown() -> None:
    one, other = optimizer(), optimizer()
    kept = [torch_scheduler.StepLR(one, 3), torch_scheduler.StepLR(one, 4), torch_scheduler.StepLR(other, 5)]
    assert read_schedule([one], epoch=0, steps=STEPS).name == "unknown"
    assert schedulers_of([other]) == kept[2:]
    assert read_schedule([optimizer()], epoch=0, steps=STEPS) is None


def test_without_a_scheduler_the_rate_is_constant_if_it_never_moved_until_the_end() -> None:
    one, reader = optimizer(), ScheduleReader()
    for epoch in range(3):
        assert reader.read([one], epoch=epoch, steps=STEPS) is None
        assert reader.ended() == (Schedule() if epoch > 0 else None)
    one.param_groups[0]["lr"] = 0.01
    assert reader.read([one], epoch=3, steps=STEPS) == Schedule(name="unknown")
    for epoch in (4, 5):
        assert reader.read([one], epoch=epoch, steps=STEPS) is None
        assert reader.ended() is None


def test_only_a_mark_or_a_move_of_the_rate_has_the_training_wait_for_a_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searches = []
    monkeypatch.setattr(gc, "get_referrers", lambda *_: searches.append(1) or [])
    one, reader = optimizer(), ScheduleReader()
    for epoch in range(3):
        reader.read([one], epoch=epoch, steps=STEPS)
    assert searches == []
    one.param_groups[0]["initial_lr"] = 0.1  # as a checkpoint has it
    for epoch in range(3, 6):
        reader.read([one], epoch=epoch, steps=STEPS)
    assert searches == [1]
    one.param_groups[0]["lr"] = 0.01
    for epoch in range(6, 9):
        reader.read([one], epoch=epoch, steps=STEPS)
    assert searches == [1, 1]


def test_a_plateau_scheduler_is_named_when_it_first_lowers_the_rate() -> None:
    one, reader = optimizer(), ScheduleReader()
    scheduler = torch_scheduler.ReduceLROnPlateau(one, patience=1)
    told = []
    for epoch in range(6):
        told.append(reader.read([one], epoch=epoch, steps=STEPS))
        scheduler.step(1.0)
    assert [(epoch, schedule) for epoch, schedule in enumerate(told) if schedule] == [
        (3, Schedule(name="plateau"))
    ]


@pytest.mark.parametrize("rate", [torch.tensor(0.1), None])
def test_a_rate_in_a_tensor_is_followed_and_an_optimizer_without_a_rate_counts_as_constant(
    rate: object,
) -> None:
    one, reader = optimizer(), ScheduleReader()
    one.param_groups[0]["lr"] = rate
    assert reader.read([one], epoch=0, steps=STEPS) is None
    assert reader.read([one], epoch=1, steps=STEPS) is None
    assert reader.ended() == Schedule()
    if rate is not None:
        rate.mul_(0.5)  # in place
        assert reader.read([one], epoch=2, steps=STEPS) == Schedule(name="unknown")


def test_a_rate_on_a_device_is_not_waited_for() -> None:
    one = optimizer()
    one.param_groups[0]["lr"] = torch.tensor(0.1, device="meta")  # raises where it is read
    assert ScheduleReader().read([one], epoch=0, steps=STEPS) == Schedule(name="unknown")
    scheduler = torch_scheduler.StepLR(one, 3)
    scheduler.base_lrs = [torch.tensor(0.1, device="meta")]
    assert ScheduleReader().read([one], epoch=0, steps=STEPS).drop_epochs == (3, 6, 9)


def test_a_rate_that_moves_after_the_first_epoch_is_unknown_unless_a_scheduler_moves_it() -> None:
    one, reader = optimizer(), ScheduleReader()
    reader.read([one], epoch=0, steps=STEPS)
    one.param_groups[0]["lr"] = 0.01
    assert reader.read([one], epoch=1, steps=STEPS) == Schedule(name="unknown")
    other, reader = optimizer(), ScheduleReader()
    reader.read([other], epoch=0, steps=STEPS)
    scheduler = torch_scheduler.ExponentialLR(other, 0.9)
    scheduler.step()
    assert reader.read([other], epoch=1, steps=STEPS) == Schedule(name="exponential")


@pytest.mark.parametrize(
    "make",
    [
        lambda one: torch_scheduler.StepLR(one, 3),
        lambda one: torch_scheduler.ReduceLROnPlateau(one),
        lambda one: torch_scheduler.ChainedScheduler([torch_scheduler.StepLR(one, 3)]),
        lambda one: torch_scheduler.SequentialLR(
            one, [torch_scheduler.ConstantLR(one), torch_scheduler.StepLR(one, 3)], milestones=[5]
        ),
    ],
)
def test_a_scheduler_is_found_and_its_parts_are_none(make: object) -> None:
    one = optimizer()
    scheduler = make(one)
    mentioned = {"optimizer": one}
    assert schedulers_of([one]) == [scheduler]
    vars(scheduler)  # from here on Python keeps the attributes in a dictionary
    assert schedulers_of([mentioned["optimizer"]]) == [scheduler]


def test_a_scheduler_of_an_optimizer_that_accelerate_wraps_is_read() -> None:
    try:
        one = optimizer()
        scheduler = torch_scheduler.StepLR(Accelerator(cpu=True).prepare(one), 3)
        assert schedulers_of([one]) == [scheduler]
        assert_read(scheduler, Schedule(name="step", drop_epochs=(3, 6, 9)), ticks=0)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


HUGGING_FACE = {
    "constant": ({}, Schedule()),
    "constant_with_warmup": ({}, Schedule()),
    "linear": ({}, Schedule(name="linear", planned_epochs=EPOCHS)),
    "cosine": ({}, Schedule(name="cosine", planned_epochs=EPOCHS)),
    "cosine_with_restarts": (
        {"num_cycles": 3},
        Schedule(name="cosine_restarts", planned_epochs=EPOCHS, drop_epochs=(4, 8)),
    ),
    "polynomial": ({}, Schedule(name="polynomial", planned_epochs=EPOCHS)),
    "cosine_with_min_lr": ({"min_lr_rate": 0.1}, Schedule(name="cosine", planned_epochs=EPOCHS)),
    "cosine_warmup_with_min_lr": ({"min_lr_rate": 0.1}, Schedule(name="cosine", planned_epochs=EPOCHS)),
    "warmup_stable_decay": ({"num_decay_steps": 10}, Schedule(name="wsd", planned_epochs=EPOCHS)),
    "inverse_sqrt": ({}, Schedule(name="unknown")),
}


@pytest.mark.parametrize("kind", HUGGING_FACE)
def test_hugging_faces_schedules_are_read_from_what_they_were_made_with(kind: str) -> None:
    more, expected = HUGGING_FACE[kind]
    scheduler = transformers.get_scheduler(
        kind, optimizer(), num_warmup_steps=5, num_training_steps=TOTAL, scheduler_specific_kwargs=more
    )
    assert_read(scheduler, expected, ticks=STEPS)


@pytest.mark.parametrize("in_epochs", [True, False])
def test_timms_schedulers_are_told_where_they_are_and_need_no_count(in_epochs: bool) -> None:
    scale = 1 if in_epochs else STEPS
    made = {
        "cosine": timm_scheduler.CosineLRScheduler(
            optimizer(), t_initial=10 * scale, warmup_t=2 * scale, warmup_prefix=True, t_in_epochs=in_epochs
        ),
        "polynomial": timm_scheduler.PolyLRScheduler(
            optimizer(), t_initial=EPOCHS * scale, t_in_epochs=in_epochs
        ),
        "wsd": timm_scheduler.WSDLRScheduler(
            optimizer(), t_initial=10 * scale, decay_t=3 * scale, warmup_t=2 * scale, t_in_epochs=in_epochs
        ),
    }
    for name, scheduler in made.items():
        assert_read(scheduler, Schedule(name=name, planned_epochs=EPOCHS), ticks=0)
    step = timm_scheduler.StepLRScheduler(optimizer(), 4 * scale, 0.1, t_in_epochs=in_epochs)
    assert_read(step, Schedule(name="step", drop_epochs=(4, 8, 12)), ticks=0)
    milestones = timm_scheduler.MultiStepLRScheduler(optimizer(), [4, 8], 0.1)
    seen = [milestones._get_lr(epoch)[0] for epoch in range(EPOCHS)]
    steps = tuple(e for e in range(1, EPOCHS) if is_step(seen[e - 1], seen[e]))
    assert_read(milestones, Schedule(name="step", drop_epochs=steps), ticks=0)
    assert_read(timm_scheduler.PlateauLRScheduler(optimizer()), Schedule(name="plateau"), ticks=0)
    cycles = timm_scheduler.CosineLRScheduler(optimizer(), t_initial=4, cycle_limit=3)
    assert_read(cycles, Schedule(name="unknown"), ticks=0)


def test_a_known_length_of_the_training_goes_before_that_of_the_scheduler() -> None:
    scheduler = torch_scheduler.MultiStepLR(optimizer(), milestones=[10, 30])
    assert schedule_from(scheduler, ticks_per_epoch=1, planned_epochs=20) == Schedule(
        name="step", planned_epochs=20, drop_epochs=(10,)
    )
    assert schedule_from(scheduler, ticks_per_epoch=None, planned_epochs=20) == Schedule(
        name="step", planned_epochs=20
    )
