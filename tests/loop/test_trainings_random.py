"""What holds of each choice, whatever a script does: thousands of scripts, of random events."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlflow_dynamics.loop import training_actions as actions
from mlflow_dynamics.loop import training_events as events
from mlflow_dynamics.loop.training_events import ScriptRuns, Seen
from mlflow_dynamics.loop.training_state import State
from mlflow_dynamics.loop.trainings import RIVAL_STEPS, choose, is_ordinary

STATUSES = ("FINISHED", "FAILED", "KILLED")
FLAGS = ("orphaned", "failed", "complete", "ended", "whole", "evaluated", "evaluating", "evaluated_in_part")


class Choices:
    """Chooses by one byte after the other: hypothesis draws and shrinks a string of bytes fast."""

    def __init__(self, drawn: bytes) -> None:
        self._drawn = iter(drawn)

    def below(self, number: int) -> int:
        return next(self._drawn, 0) % number

    def of(self, *values: Any) -> Any:
        return values[self.below(len(values))]

    def once_in(self, number: int) -> bool:
        return self.below(number) == number - 1


@dataclass
class Told:
    """A training as the shell of `choose` keeps it: the numbers of its steps, epoch by epoch."""

    open: list[int] = field(default_factory=list)
    closed: list[list[int]] = field(default_factory=list)
    optimizers: bool = True
    name: str = "Model"


class Shell:
    """Carries out what is chosen, and finds every action possible."""

    def __init__(self, exclusive: bool) -> None:
        self.state = State(exclusive=exclusive)
        self.trainings: dict[int, Told] = {}
        self.gone: dict[int, Told] = {}
        self.reasons: dict[int, str] = {}
        self.forked = False
        self.recorded: int | None = None
        self.opened = self.ended = self.steps = 0
        self.joined: list[str] = []
        self.stack: tuple[str, ...] = ()
        self.ours = False

    def seen(self, choices: Choices) -> tuple[Seen, ...]:
        return tuple([self.see(number, training, choices) for number, training in self.trainings.items()])

    def see(self, number: int, training: Told, choices: Choices) -> Seen:
        bits = choices.below(256)
        return Seen(
            training=number,
            name=training.name,
            steps=len(training.open),
            epochs=len(training.closed),
            shortest=min(map(len, training.closed), default=None),
            optimizers=training.optimizers,
            if_whole=self.ending(training, choices),
            if_cut=self.ending(training, choices),
            **{flag: bool(bits >> bit & 1) for bit, flag in enumerate(FLAGS)},
        )

    def ending(self, training: Told, choices: Choices) -> tuple[tuple[int, ...], str | None]:
        return self.cuts(training, choices), "in doubt" if choices.once_in(5) else None

    def cuts(self, training: Told, choices: Choices) -> tuple[int, ...]:
        """So many steps ago epochs were over: the earliest first."""
        some = {choices.below(len(training.open) + 1) for _ in range(choices.below(3))}
        return tuple(sorted(some, reverse=True))

    def hear(self, told: events.TrainingEvent) -> None:
        before = replace(self.state, followed=dict(self.state.followed))
        state, chosen = choose(self.state, told)
        assert (state, chosen) == choose(self.state, told)
        assert self.state == before
        if isinstance(told, events.Stepped) and not (told.cuts or told.doubt or told.tracked or told.instead):
            taken = (self.state, (actions.Take(told.training),))
            if is_ordinary(self.state, told.training, steps=told.steps, thread=told.thread):
                assert (state, chosen) == taken
        self.state = state
        for action in chosen:
            self.carry_out(action)
        self.check()

    def carry_out(self, action: actions.Action) -> None:
        match action:
            case actions.Follow():
                assert action.training not in self.trainings.keys() | self.gone.keys()
                assert action.of is None or action.of in self.gone
                self.trainings[action.training] = Told()
            case actions.Take():
                self.trainings[action.training].open.append(self.steps)
                self.steps += 1
            case actions.OpenRun():
                assert self.recorded is None
                assert action.training in self.trainings
                assert action.joins is None or action.under is None
                if action.joins is not None:
                    self.joined.append(action.joins)
                assert len(self.joined) == len(set(self.joined)), "two trainings in a run"
                self.recorded = action.training
                self.opened += 1
            case actions.CloseEpoch():
                assert action.training == self.recorded
                training = self.trainings[action.training]
                end = len(training.open) - action.cut
                assert end > 0, "an epoch is closed twice"
                training.closed.append(training.open[:end])
                training.open = training.open[end:]
            case actions.Forget():
                self.trainings[action.training].open = []
            case actions.LetGo() | actions.Decline():
                if isinstance(action, actions.Decline):
                    assert action.training not in self.reasons
                    self.reasons[action.training] = action.line
                self.gone[action.training] = self.trainings.pop(action.training)
            case actions.EndRun():
                assert self.recorded is not None
                self.recorded = None
                self.ended += 1
            case actions.Activate():
                assert not self.stack
                self.stack, self.ours = ("ours",), True
            case actions.LeaveToParent():
                self.gone |= self.trainings
                self.trainings = {}
                self.ended += self.recorded is not None
                self.recorded, self.forked = None, True

    def check(self) -> None:
        state = self.state
        assert set(state.followed) == set(self.trainings)
        assert state.active is None or state.active in self.trainings
        assert (state.run is not None) == (self.recorded is not None)
        assert self.recorded in (None, state.active), "another training than the active one has the run"
        assert self.opened - self.ended == (self.recorded is not None)
        assert all(self.reasons.values())
        assert state.told or self.forked or not self.reasons
        closed = [step for one in [*self.trainings.values(), *self.gone.values()] for epoch in one.closed
                  for step in epoch]  # fmt: skip
        assert len(closed) == len(set(closed)), "a step in two epochs"


def happen(shell: Shell, choices: Choices) -> None:
    """One event of a script, which may do anything at any time."""
    kind = choices.of(*KINDS)
    number = choices.of(*shell.trainings, 99)
    now: dict[str, Any] = {
        "thread": choices.below(2),
        "seen": shell.seen(choices),
        "runs": ScriptRuns(
            active=shell.stack,
            ours=shell.ours,
            taken=choices.once_in(3),
            prepared=None if shell.stack else choices.of(None, "prepared"),
        ),
    }
    if kind is events.ModelsFound:
        names = choices.of(("Model",), ("Model", "Other"))
        shell.hear(events.ModelsFound(names=names, tracked=choices.once_in(5), **now))
    elif kind is events.NotFollowed:
        # At once: nothing has happened to the training by then.
        found = shell.state.found - 1
        if shell.trainings.get(number) == Told() and number == found and number != shell.state.active:
            shell.gone[number] = shell.trainings.pop(number)
            shell.hear(events.NotFollowed(training=number, reason="why", **now))
    elif kind is events.Stepped:
        for _ in range(choices.of(1, 1, 2, 3, RIVAL_STEPS + 1)):
            training = shell.trainings.get(number, Told())
            shell.hear(
                events.Stepped(
                    training=number,
                    steps=len(training.open),
                    cuts=shell.cuts(training, choices) if choices.once_in(5) else (),
                    doubt="in doubt" if choices.once_in(50) else None,
                    tracked=choices.once_in(50),
                    instead="its part" if choices.once_in(20) else None,
                    **now | {"seen": shell.seen(choices)},
                )
            )
    elif kind is events.DrawnAfterLoading:
        set_back, another_pass = choices.of((True, True), (False, True), (False, False))
        shell.hear(
            events.DrawnAfterLoading(training=number, set_back=set_back, another_pass=another_pass, **now)
        )
    elif kind is events.RunCreated:
        run = shell.state.run
        if run is not None and run.owned and run.run_id is None:
            shell.hear(events.RunCreated(run_id="ours", **now))
    elif kind is events.RunStarting:
        run_id = choices.of(None, "a", "b")
        shell.hear(events.RunStarting(run_id=run_id, nested=choices.of(False, True), **now))
        shell.stack, shell.ours = (*shell.stack, run_id or f"run {shell.steps}"), False
    elif kind is events.RunEnding:
        shell.hear(events.RunEnding(status=choices.of(*STATUSES), **now))
        shell.stack, shell.ours = shell.stack[:-1], False
    elif kind is events.CellEnded:
        shell.hear(events.CellEnded(status=choices.of(*STATUSES), **now))
    elif kind is events.ScriptEnded:
        shell.hear(events.ScriptEnded(status=choices.of(None, *STATUSES), **now))
    elif kind is None:
        if number in shell.trainings:
            shell.trainings[number].optimizers = False
    else:
        shell.hear(kind(**now))


KINDS: list[Any] = [
    events.ModelsFound, events.ModelsFound, *[events.Stepped] * 6, events.OptimizersGone, events.NotFollowed,
    events.DrawnAfterLoading, events.RunCreated, events.RunStarting, events.RunEnding, events.CellBegun,
    *[events.CellEnded] * 2, events.ScriptEnded, events.ProcessForked, None,
]  # fmt: skip
"""None: the optimizers of a training are let go of."""


@given(st.booleans(), st.binary(min_size=400, max_size=400))
@settings(
    max_examples=2000,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
def test_whatever_a_script_does(exclusive: bool, drawn: bytes) -> None:
    shell, choices = Shell(exclusive), Choices(drawn)
    for _ in range(5 + choices.below(20)):
        happen(shell, choices)
    runs = ScriptRuns(active=shell.stack, ours=shell.ours)
    shell.hear(events.SwitchedOff(thread=0, seen=shell.seen(choices), runs=runs))
    assert shell.state.active is None
    assert shell.opened == shell.ended
    assert all(not training.open for training in shell.trainings.values())


@pytest.mark.parametrize("kind", [events.Seen, State, *dict.fromkeys(KINDS[:-1])])
def test_a_state_and_an_event_cannot_be_changed(kind: type[Any]) -> None:
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen
