"""Which training is recorded, and in which run: each rule on events alone, without a training or a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from mlflow_dynamics.loop import training_actions as actions
from mlflow_dynamics.loop import training_events as events
from mlflow_dynamics.loop.training_actions import (
    Activate,
    AwaitRun,
    AwaitUser,
    CloseEpoch,
    Decline,
    EndRun,
    Follow,
    Forget,
    LeaveToParent,
    LetGo,
    OpenRun,
    Take,
    Tell,
)
from mlflow_dynamics.loop.training_events import NOTHING_OVER, ScriptRuns, Seen
from mlflow_dynamics.loop.training_state import State, heard_in
from mlflow_dynamics.loop.trainings import EXPLICIT, LONG_EPOCH, RIVAL_STEPS, choose

OURS = ScriptRuns(active=("ours",), ours=True)
SCRIPT = ScriptRuns(active=("script",))
OVER: tuple[tuple[int, ...], None] = ((0,), None)
"""The open epoch is over with the training."""


class Script:
    """What a script does, told to `choose`.

    Attributes:
        seen: the trainings followed.
    """

    def __init__(self, **state: Any) -> None:
        self.state = State(**state)
        self.seen: dict[int, Seen] = {}
        self.runs = ScriptRuns()

    def hear(self, kind: type[events.TrainingEvent], *, thread: int = 0, **what: Any) -> list[actions.Action]:
        event = kind(thread=thread, seen=tuple(self.seen.values()), runs=self.runs, **what)
        self.state, chosen = choose(self.state, event)
        return list(chosen)

    def follow(self, *names: str, thread: int = 0) -> int:
        """An optimizer is made for a new model; its training's number."""
        training = self.state.found
        assert self.hear(events.ModelsFound, thread=thread, names=names or ("Model",))[-1] == Follow(training)
        self.see(training, name=names[0] if names else "Model")
        return training

    def see(self, training: int, **what: Any) -> None:
        known = self.seen.get(training)
        fields = {} if known is None else {name: getattr(known, name) for name in Seen.__slots__}
        self.seen[training] = Seen(**{**fields, "training": training, **what})

    def step(self, training: int, *, steps: int = 0, thread: int = 0, **what: Any) -> list[actions.Action]:
        """A step, `steps` of the open epoch having been made before it."""
        self.see(training, steps=steps)
        chosen = self.hear(events.Stepped, thread=thread, training=training, steps=steps, **what)
        self.see(training, steps=(what["cuts"][-1] if what.get("cuts") else steps) + 1)
        return chosen

    def record(self, training: int, **what: Any) -> None:
        """Record a first epoch of three steps, and one step of the second."""
        self.step(training, **what)
        opened, closed, taken = self.step(training, steps=3, cuts=(0,), **what)
        assert (type(opened), closed, taken) == (OpenRun, CloseEpoch(training, 0, False), Take(training))
        self.see(training, epochs=1, shortest=3)


def told(chosen: Sequence[actions.Action]) -> list[str]:
    return [one.line for one in chosen if isinstance(one, Tell | Decline)]


def test_the_first_epoch_opens_the_run_and_the_next_ones_are_of_it() -> None:
    script = Script()
    training = script.follow()
    assert script.step(training) == [Take(training)]
    assert script.step(training, steps=3, cuts=(0,)) == [
        OpenRun(training, None, None),
        CloseEpoch(training, 0, False),
        Take(training),
    ]
    script.see(training, epochs=1)
    assert script.step(training, steps=3, cuts=(2,)) == [CloseEpoch(training, 2, False), Take(training)]


def test_an_epoch_that_a_pause_has_closed_is_not_closed_again() -> None:
    script = Script()
    script.record(training := script.follow())
    assert script.step(training, steps=0, cuts=(0,)) == [Take(training)]


@pytest.mark.parametrize(
    ("runs", "joins", "under"),
    [
        (ScriptRuns(), None, None),
        (ScriptRuns(prepared="prepared"), "prepared", None),
        (SCRIPT, "script", None),
        (ScriptRuns(active=("outer", "script")), "script", None),
        (ScriptRuns(active=("script",), taken=True), None, "script"),
        (OURS, None, None),
    ],
)
def test_the_run_is_the_scripts_if_it_holds_no_training(
    runs: ScriptRuns, joins: str | None, under: str | None
) -> None:
    script = Script()
    script.runs = runs
    script.step(training := script.follow())
    assert script.step(training, steps=3, cuts=(0,))[0] == OpenRun(training, joins, under)


def test_a_second_training_in_a_run_of_the_script_is_nested_under_it() -> None:
    script = Script()
    script.runs = SCRIPT
    script.record(first := script.follow())
    second = script.follow()
    script.see(first, optimizers=False, if_whole=OVER)
    assert script.step(second) == [
        CloseEpoch(first, 0, True),
        EndRun("FINISHED"),
        LetGo(first),
        Take(second),
    ]
    assert script.step(second, steps=3, cuts=(0,))[0] == OpenRun(second, None, "script")


def test_nothing_is_recorded_in_a_run_of_the_scripts_own_if_exclusive() -> None:
    script = Script(exclusive=True)
    script.runs = SCRIPT
    training = script.follow()
    assert script.step(training) == [
        Decline(training, "Model is not recorded: exclusive=True and a run of your own is active.")
    ]
    assert script.state.told
    assert not script.state.followed


def test_a_model_that_a_tracker_records_is_neither_followed_nor_recorded_further() -> None:
    script = Script()
    assert script.hear(events.ModelsFound, names=("Model",), tracked=True) == []
    assert script.state.told
    script.record(training := script.follow())
    declined, ended = script.step(training, steps=1, tracked=True)
    assert told([declined]) == [
        "Model is not recorded: it is recorded by an explicit tracker or a framework's callback."
    ]
    assert ended == EndRun("FINISHED")


def test_of_several_models_in_an_optimizer_the_first_is_followed() -> None:
    script = Script()
    assert told(script.hear(events.ModelsFound, names=("Body", "Head"))) == [
        "One optimizer trains Body and Head: only Body can be recorded."
    ]


def test_a_model_that_cannot_be_followed_is_told_of() -> None:
    script = Script()
    training = script.follow()
    assert told(script.hear(events.NotFollowed, training=training, reason="why")) == ["Not recorded: why"]
    assert not script.state.followed


def test_a_module_that_is_not_called_itself_makes_way_for_the_one_that_is() -> None:
    script = Script()
    training = script.follow()
    line, gone, instead = script.step(training, instead="its part x, a Linear,")
    assert told([line]) == [
        "Model is not called in training mode: its part x, a Linear, is followed in its place, from the second step on."
    ]
    assert (gone, instead) == (LetGo(training), Follow(training + 1, of=training))
    assert heard_in(script.state, 0) == [training + 1]


def test_of_models_trained_in_turn_the_one_that_stepped_first_is_recorded() -> None:
    script = Script()
    first, second = script.follow("Critic"), script.follow("Generator")
    script.step(first)
    assert script.step(second) == [Take(second)]
    assert script.step(first, steps=1) == [
        Decline(
            second,
            f"Generator is not recorded: it is trained in turn with Critic, whose dynamics are; {EXPLICIT}.",
        ),
        Take(first),
    ]
    assert script.step(second, steps=1) == []


def test_a_model_that_makes_many_steps_alone_is_the_next_training() -> None:
    script = Script()
    script.record(first := script.follow())
    second = script.follow()
    assert script.step(second, steps=RIVAL_STEPS - 1) == [Take(second)]
    assert script.step(second, steps=RIVAL_STEPS) == [EndRun("FINISHED"), LetGo(first), Take(second)]


@pytest.mark.parametrize("why", ["a new epoch", "no optimizers", "a new run of the script"])
def test_another_training_takes_over(why: str) -> None:
    script = Script()
    script.record(first := script.follow())
    second = script.follow()
    script.see(first, optimizers=why != "no optimizers", if_whole=OVER)
    script.runs = SCRIPT if why == "a new run of the script" else OURS
    cuts = (0,) if why == "a new epoch" else ()
    chosen = script.step(second, steps=1, cuts=cuts)
    assert chosen[:3] == [CloseEpoch(first, 0, True), EndRun("FINISHED"), LetGo(first)]
    assert script.state.active == second


def test_a_training_that_another_one_cuts_in_its_first_epoch_is_told_of() -> None:
    script = Script()
    script.step(first := script.follow())
    script.see(first, steps=2, complete=False)
    second = script.follow()
    chosen = script.step(second, steps=1, cuts=(0,))
    assert told(chosen) == [
        "2 steps of Model are not recorded: another training began before an epoch was complete."
    ]
    assert chosen[1:3] == [Forget(first), LetGo(first)]


def test_a_model_without_optimizers_is_let_go_of() -> None:
    script = Script()
    script.record(active := script.follow())
    idle, between = script.follow(), script.follow("Other")
    script.step(between)
    for training in (idle, between):
        script.see(training, optimizers=False)
    assert script.hear(events.OptimizersGone) == [
        LetGo(idle),
        Decline(between, "Other is not recorded: its 1 steps were made in the middle of Model's."),
    ]
    script.see(active, optimizers=False, if_whole=OVER)
    assert script.hear(events.OptimizersGone) == [
        CloseEpoch(active, 0, True),
        EndRun("FINISHED"),
        LetGo(active),
    ]


def test_a_training_whose_epochs_are_in_doubt_is_declined() -> None:
    script = Script()
    script.record(training := script.follow())
    taken, declined, ended = script.step(training, steps=1, doubt="because")
    assert told([declined]) == [f"The dynamics of Model are not recorded after epoch 0: because; {EXPLICIT}."]
    assert (taken, ended) == (Take(training), EndRun("FINISHED"))


def test_a_long_first_epoch_is_told_of_once() -> None:
    script = Script()
    training = script.follow()
    said = [told(script.step(training, steps=steps)) for steps in range(LONG_EPOCH - 2, LONG_EPOCH + 1)]
    assert [len(lines) for lines in said] == [0, 1, 0]


def test_weights_that_are_set_back_begin_another_training_in_its_thread_alone() -> None:
    script = Script()
    script.record(training := script.follow())
    script.see(training, if_whole=OVER)
    loaded: dict[str, Any] = {"training": training, "set_back": True, "another_pass": True}
    assert script.hear(events.DrawnAfterLoading, thread=1, **loaded) == []
    closed, forgotten, line, *rest = script.hear(events.DrawnAfterLoading, **loaded)
    assert (closed, forgotten) == (CloseEpoch(training, 0, True), Forget(training))
    assert "another training begins" in told([line])[0]
    assert rest == [EndRun("FINISHED"), LetGo(training), Follow(training + 1, of=training, again=True)]


@pytest.mark.parametrize("whole", [False, True])
def test_a_first_epoch_whose_weights_were_restored_was_a_rehearsal_if_it_was_left(whole: bool) -> None:
    script = Script()
    script.step(training := script.follow())
    script.see(training, steps=5, complete=whole)
    loaded: dict[str, Any] = {"training": training, "set_back": False}
    assert script.hear(events.DrawnAfterLoading, another_pass=False, **loaded) == []
    chosen = script.hear(events.DrawnAfterLoading, another_pass=True, **loaded)
    assert chosen[1:] == ([] if whole else [Forget(training)])


@pytest.mark.parametrize(
    ("given", "active", "splits"),
    [
        ({}, (), True),
        ({"nested": True}, ("ours",), False),
        ({}, ("ours",), True),
    ],
)
def test_our_run_ends_before_one_of_the_script_begins(
    given: dict[str, Any], active: tuple[str, ...], splits: bool
) -> None:
    script = Script()
    script.record(training := script.follow())
    script.runs = ScriptRuns(active=active, ours=True)
    chosen = script.hear(events.RunStarting, **given)
    split = [EndRun("FINISHED"), LetGo(training), Follow(training + 1, training, again=True)]
    assert chosen == (split if splits else [])


@pytest.mark.parametrize(
    ("given", "active", "splits"),
    [
        ({"run_id": "other"}, (), True),
        ({}, (), True),
        ({"run_id": "script"}, (), False),
        ({"nested": True}, ("script",), False),
    ],
)
def test_a_run_of_the_script_that_was_ended_holds_no_more_unless_it_is_taken_up_again(
    given: dict[str, Any], active: tuple[str, ...], splits: bool
) -> None:
    script = Script()
    script.runs = SCRIPT
    script.record(training := script.follow())
    script.runs = ScriptRuns(active=active)
    assert (script.hear(events.RunStarting, **given)[-1:] == [Follow(training + 1, training, True)]) == splits


@pytest.mark.parametrize(
    ("own", "status", "splits"),
    [(True, "FINISHED", True), (False, "FINISHED", False), (False, "FAILED", True)],
)
def test_a_run_that_the_script_ends(own: bool, status: str, splits: bool) -> None:
    script = Script()
    script.runs = ScriptRuns() if own else SCRIPT
    script.record(script.follow())
    if own:
        assert script.hear(events.RunCreated, run_id="ours") == [Activate()]
        script.runs = OURS
    assert (EndRun(status) in script.hear(events.RunEnding, status=status)) == splits


def test_a_run_that_the_script_ends_in_another_thread_is_another_trainings() -> None:
    script = Script()
    script.runs = SCRIPT
    script.record(script.follow())
    assert script.hear(events.RunEnding, thread=1, status="FAILED") == []


def test_a_new_run_becomes_the_active_one_in_its_thread_unless_the_script_has_one() -> None:
    script = Script()
    script.record(script.follow())
    assert script.hear(events.RunCreated, thread=1, run_id="ours") == []
    script.runs = SCRIPT
    assert script.hear(events.RunCreated, run_id="ours") == []


def test_a_thread_hears_of_its_own_training_or_of_all_if_it_trains_none() -> None:
    script = Script()
    first, second = script.follow(thread=1), script.follow(thread=2)
    assert [heard_in(script.state, thread) for thread in (0, 1, 2)] == [[first, second], [first], [second]]
    script.step(second, thread=2, tracked=True)
    assert heard_in(script.state, 2) == []
    script.step(first, thread=3)
    assert heard_in(script.state, 3) == [first]


@pytest.mark.parametrize(
    ("seen", "status", "closes"),
    [
        ({"ended": True, "whole": True, "evaluated": True}, "FINISHED", True),
        ({"ended": True, "whole": True, "evaluated": False}, "FINISHED", False),
        ({"ended": False, "evaluated": True}, "FINISHED", False),
        ({"ended": True, "whole": True, "evaluated": True, "evaluating": True}, "FINISHED", False),
        ({"ended": True, "whole": True, "evaluated": True, "evaluated_in_part": True}, "FAILED", False),
        ({"ended": True, "whole": True, "evaluated": True, "evaluated_in_part": True}, "FINISHED", True),
        ({"ended": True, "evaluated": True, "complete": False}, "FINISHED", False),
        ({"ended": True, "evaluated": True, "complete": True}, "FINISHED", True),
        ({"ended": True, "evaluated": True, "complete": True}, "FAILED", False),
        ({"ended": True, "whole": True, "evaluated": True, "failed": True}, "FINISHED", False),
    ],
)
def test_a_complete_epoch_is_closed_as_its_cell_ends(seen: dict[str, Any], status: str, closes: bool) -> None:
    script = Script()
    script.step(training := script.follow())
    script.see(training, **seen)
    *closed, waiting = script.hear(events.CellEnded, status=status)
    assert closed == ([OpenRun(training, None, None), CloseEpoch(training, 0, True)] if closes else [])
    assert waiting == AwaitUser()


def test_an_epoch_that_the_cell_did_not_begin_with_needs_no_evaluation() -> None:
    script = Script()
    script.record(training := script.follow())
    script.see(training, ended=True, whole=True)
    assert script.hear(events.CellEnded, status="FINISHED") == [CloseEpoch(training, 0, True), AwaitUser()]


def test_a_cell_waits_for_the_run_of_a_training_that_no_other_thread_goes_on_with() -> None:
    script = Script()
    assert script.hear(events.CellBegun) == []
    script.record(training := script.follow(thread=1), thread=1)
    assert script.hear(events.CellBegun) == []
    assert script.hear(events.CellBegun, thread=1) == [AwaitRun()]
    script.see(training, orphaned=True)
    assert script.hear(events.CellBegun) == [AwaitRun()]


def test_what_another_thread_trains_is_left_to_it_until_it_ends() -> None:
    script = Script()
    script.record(training := script.follow(thread=1), thread=1)
    script.see(training, ended=True, whole=True, evaluated=True)
    assert script.hear(events.CellEnded, status="FINISHED") == []
    script.see(training, orphaned=True)
    assert script.hear(events.CellEnded, status="FINISHED")[-1] == AwaitUser()


def test_the_training_of_the_cell_is_the_one_to_record() -> None:
    script = Script()
    script.record(first := script.follow())
    script.hear(events.CellEnded, status="FAILED")
    script.step(second := script.follow())
    assert EndRun("FAILED") in script.hear(events.CellEnded, status="FINISHED")
    assert script.state.active == second
    assert first not in script.state.followed


@pytest.mark.parametrize(
    ("seen", "status", "ends", "cut"),
    [
        ({"whole": True}, "FINISHED", "FINISHED", False),
        ({"whole": True}, "FAILED", "FAILED", False),
        ({"whole": True}, None, "FINISHED", False),
        ({"steps": 2}, "FINISHED", "FINISHED", True),
        ({"steps": 3}, "FINISHED", "FINISHED", False),
        ({"steps": 3}, "FAILED", "FAILED", True),
        ({"steps": 3, "ended": True}, "FAILED", "FAILED", False),
        ({"steps": 2}, None, "FAILED", True),
        ({"steps": 0}, None, "FINISHED", False),
    ],
)
def test_the_open_epoch_at_the_scripts_end(
    seen: dict[str, Any], status: str | None, ends: str, cut: bool
) -> None:
    script = Script()
    script.record(training := script.follow())
    script.see(training, if_whole=OVER, if_cut=NOTHING_OVER, **seen)
    chosen = script.hear(events.ScriptEnded, status=status)
    assert chosen[-2:] == [EndRun(ends), LetGo(training)]
    assert ("ended in the middle of their epoch" in "".join(told(chosen))) == cut
    assert (CloseEpoch(training, 0, True) in chosen) == (not cut and seen.get("steps") != 0)


def test_doubt_at_the_end_declines_and_ends_the_run() -> None:
    script = Script()
    script.record(training := script.follow())
    script.see(training, if_whole=((0,), "because"))
    declined, ended = script.hear(events.SwitchedOff)
    assert (type(declined), ended) == (Decline, EndRun("FINISHED"))


def test_a_training_whose_recorder_has_failed_closes_no_epoch() -> None:
    script = Script()
    script.record(training := script.follow())
    script.see(training, failed=True, if_whole=OVER)
    assert script.hear(events.SwitchedOff) == [EndRun("FINISHED"), LetGo(training)]


def test_trainings_that_are_still_active_are_all_recorded_at_the_end() -> None:
    script = Script()
    script.record(first := script.follow())
    script.step(second := script.follow())
    for training in (first, second):
        script.see(training, if_whole=OVER)
    assert script.hear(events.SwitchedOff) == [
        CloseEpoch(first, 0, True),
        EndRun("FINISHED"),
        LetGo(first),
        OpenRun(second, None, None),
        CloseEpoch(second, 0, True),
        EndRun("FINISHED"),
        LetGo(second),
    ]


def test_a_forked_process_leaves_all_to_its_parent() -> None:
    script = Script()
    script.record(training := script.follow())
    assert script.hear(events.ProcessForked) == [LeaveToParent()]
    assert (script.state.active, script.state.run, dict(script.state.followed)) == (None, None, {})
    assert script.hear(events.SwitchedOff) == []
    assert script.follow() != training
