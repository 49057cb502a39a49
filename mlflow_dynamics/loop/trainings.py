"""Which of a script's trainings is recorded, at most one at a time, and in which run: a function of the events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from mlflow_dynamics.loop import training_actions as actions
from mlflow_dynamics.loop import training_events as events
from mlflow_dynamics.loop.training_state import (
    Followed,
    OpenedRun,
    State,
    epoch_ends_with_cell,
    epoch_ends_with_script,
    heard_in,
)

EXPLICIT: Final = (
    "use mlflow_dynamics.track(model) with tracker.epoch(n) or tracker.end_epoch() to say where epochs end"
)

RIVAL_STEPS: Final = 50
"""A second model that makes so many steps while the first makes none is a new training, not trained in turn with it."""

LONG_EPOCH: Final = 1000
"""After so many steps in the first epoch the user is told why nothing has been logged yet."""


def choose(state: State, event: events.TrainingEvent) -> tuple[State, tuple[actions.Action, ...]]:
    """The state after an event, and the actions that the event calls for, in their order."""
    if getattr(event, "training", None) not in (None, *state.followed):  # another thread ended the training
        return state, ()
    choice = _Choice(state, event)
    _RULES[type(event)](choice, event)
    return choice.state, tuple(choice.chosen)


def is_ordinary(state: State, training: int, *, steps: int, thread: int) -> bool:
    """Whether a step without other news only adds one more step to the epoch that is recorded."""
    if training != state.active or state.rivalry or steps + 1 == LONG_EPOCH:
        return False
    followed = state.followed[training]
    return followed.thread == thread and followed.epochs_before is not None


class _Choice:
    """The choice for one event, in progress.

    Attributes:
        state: the state so far.
        chosen: the actions chosen so far.
        seen: the trainings as they will be once these actions are carried out.
    """

    def __init__(self, state: State, event: events.TrainingEvent) -> None:
        self.state = state
        self.chosen: list[actions.Action] = []
        self.seen = {one: events.Seen(training=one) for one in state.followed}
        self.seen |= {seen.training: seen for seen in event.seen}
        self.thread = event.thread
        self.runs = event.runs

    def stepped(self, event: events.Stepped) -> None:
        """An optimizer is about to make a step."""
        training = event.training
        self._update(training, thread=event.thread)
        if event.tracked:
            self._decline(training, "it is recorded by an explicit tracker or a framework's callback")
            return
        if event.instead is not None and event.steps == 0:
            # The script may call only the model inside a wrapper (for a moving average, say), or only the one of two
            # modules with the same layers that was made last.
            self._tell(f"{self.seen[training].name} is not called in training mode: {event.instead} is followed in "
                       "its place, from the second step on.")  # fmt: skip
            self._abandon(training)
            self._follow(of=training)
            return
        if training != self.state.active and not self._take_over(training, new_epoch=bool(event.cuts)):
            if training in self.state.followed:
                self._take(training)
            return
        if self.state.rivalry:
            self._dismiss_rivals()
        self._close(training, event.cuts)
        self._take(training)
        seen = self.seen[training]
        if seen.steps == LONG_EPOCH and seen.epochs == 0:
            self._tell(f"{seen.name} has made {LONG_EPOCH} steps, and its first epoch is not over, before which "
                       f"nothing is logged; {EXPLICIT}.")  # fmt: skip
        if event.doubt is not None:
            self._doubt(training, event.doubt)

    def optimizers_gone(self, event: events.OptimizersGone) -> None:
        """Let go of the trainings that have lost their optimizers, now that another optimizer is made."""
        self._let_go_without_optimizers()

    def not_followed(self, event: events.NotFollowed) -> None:
        """Tell the user why the training is not followed."""
        self._remove(event.training)
        self._tell(f"Not recorded: {event.reason}")
        self._set(told=True)

    def models_found(self, event: events.ModelsFound) -> None:
        """Follow the first of an optimizer's models, unless a tracker or a framework's callback records it."""
        if event.tracked:
            self._set(told=True)
            return
        if len(event.names) > 1:
            trained = " and ".join(event.names)
            self._tell(f"One optimizer trains {trained}: only {event.names[0]} can be recorded.")
        self._follow()

    def drawn_after_loading(self, event: events.DrawnAfterLoading) -> None:
        """Another training may begin now, though not as soon as weights are loaded: they may only be evaluated."""
        training = event.training
        seen = self.seen[training]
        if event.set_back:
            if self.state.followed[training].thread == self.thread:
                self._start_over(training)
        elif event.another_pass and seen.epochs == 0 and not seen.complete and training in self._heard():
            self._tell(f"The first {seen.steps} training steps of {seen.name} are not recorded: its weights were "
                       "restored after them, as a learning-rate finder does.")  # fmt: skip
            self._forget(training)

    def run_created(self, event: events.RunCreated) -> None:
        """Make the new run the active one in the training's thread, unless the script has an active run by now."""
        if self.state.run is not None and self._left_to_us():
            self._set(run=replace(self.state.run, run_id=event.run_id))
            if not self.runs.active:
                self._set(used=self.state.used | {event.run_id})
                self._do(actions.Activate())

    def run_starting(self, event: events.RunStarting) -> None:
        """End our run before the script's own begins: the script does not know of ours, and MLflow would refuse.

        The recording also ends if it goes into an earlier run of the script, which the script has ended.
        """
        run = self.state.run
        if run is None:
            return
        ended = self.state.bound not in (None, event.run_id, *self.runs.active)
        if ended or (run.owned and not event.nested):
            self._go_on_in_another_run("FINISHED")

    def run_ending(self, event: events.RunEnding) -> None:
        """End the recording with the run, if the script ends our run, or ends its own run as failed.

        The script may reopen a run of its own that has not failed, for the next epoch.
        """
        run = self.state.run
        ending = self.runs.active[-1] if self.runs.active else None
        if ending is None or run is None:
            return
        ours = run.owned and ending == run.run_id
        if ours or (event.status != "FINISHED" and ending == self.state.bound):
            self._go_on_in_another_run(event.status)

    def cell_begun(self, event: events.CellBegun) -> None:
        """Wait for the training's run, so that the metrics that the cell logs go to that run."""
        if self._left_to_us():
            self._do(actions.AwaitRun())

    def cell_ended(self, event: events.CellEnded) -> None:
        """Record a complete epoch when a notebook's cell ends, not only when the next epoch begins.

        The training to record is the one that the cell has trained.
        """
        trained = [one for one in self._heard() if self.state.followed[one].epochs_before is not None]
        if self.state.active is not None and trained and self.state.active not in trained:
            self._take_over(trained[-1], new_epoch=True)
        active = self.state.active
        if active is None or not self._left_to_us():
            return
        followed = self.state.followed[active]
        left = followed.left if followed.epochs_before is None else event.status
        self._update(active, epochs_before=None, left=left)
        if epoch_ends_with_cell(self.seen[active], followed.epochs_before, event.status, left):
            self._close(active, (0,), last=True)
        self._do(actions.AwaitUser())
        if not trained:
            self._let_go_without_optimizers()

    def script_ended(self, event: events.ScriptEnded) -> None:
        """End the last training with its script, and close its open epoch if that is over.

        A status that is not known counts as a failure if the open epoch is not over.
        """
        training = self._last()
        if training is None:
            return
        seen, followed = self.seen[training], self.state.followed[training]
        status = followed.left if event.status == "FINISHED" else event.status
        left_by_cell = followed.epochs_before is None
        over = seen.steps == 0 or epoch_ends_with_script(seen, status, left_by_cell=left_by_cell)
        self._finish(training, status or ("FINISHED" if over else "FAILED"), whole=over)

    def switched_off(self, event: events.SwitchedOff) -> None:
        """End the last training, with its open epoch."""
        training = self._last()
        if training is not None:
            self._finish(training, "FINISHED")

    def process_forked(self, event: events.ProcessForked) -> None:
        """Leave the trainings to the parent process, which records them and ends the run."""
        self._do(actions.LeaveToParent())
        self._set(followed={}, active=None, rivalry=False, run=None, bound=None, told=False)

    def _last(self) -> int | None:
        """Finish all trainings but the last, and return that one, which is active; None if none has made a step.

        Several trainings may still be going, because none of them gave way to another.
        """
        while going := [one for one, seen in self._each() if one == self.state.active or seen.steps > 0]:
            active = self.state.active
            if active is None:
                self._begin(going[0])
            elif len(going) == 1:
                return active
            else:
                self._finish(active, "FINISHED")
        return None

    def _let_go_without_optimizers(self) -> None:
        """Let go of each model whose optimizers are gone: it is trained no more, and would stay in memory."""
        for training, seen in self._each():
            active = self.state.active
            if seen.optimizers:
                continue
            if training == active:
                self._finish(training, "FINISHED")
            elif seen.steps > 0 and active is not None:
                middle = f"its {seen.steps} steps were made in the middle of {self.seen[active].name}'s"
                self._decline(training, middle)
            else:
                self._abandon(training)

    def _do(self, action: actions.Action) -> None:
        self.chosen.append(action)

    def _tell(self, line: str) -> None:
        self._do(actions.Tell(line))

    def _set(self, **changes: object) -> None:
        self.state = replace(self.state, **changes)  # type: ignore[arg-type]

    def _each(self) -> list[tuple[int, events.Seen]]:
        return [(one, self.seen[one]) for one in self.state.followed]

    def _heard(self) -> list[int]:
        return heard_in(self.state, self.thread)

    def _remove(self, training: int) -> None:
        self._set(followed={one: what for one, what in self.state.followed.items() if one != training})

    def _update(self, training: int, **changes: object) -> None:
        updated = replace(self.state.followed[training], **changes)  # type: ignore[arg-type]
        self._set(followed={**self.state.followed, training: updated})

    def _left_to_us(self) -> bool:
        """Whether no other thread goes on with the active training."""
        active = self.state.active
        return active is not None and (
            self.state.followed[active].thread == self.thread or self.seen[active].orphaned
        )

    def _follow(self, of: int | None = None, *, again: bool = False) -> None:
        """Follow a model as a new training in this thread, which from now on hears of that training alone."""
        training = self.state.found
        self._set(
            found=training + 1,
            followed={**self.state.followed, training: Followed(self.thread)},
            unrecorded=self.state.unrecorded - {self.thread},
        )
        self._do(actions.Follow(training, of, again))

    def _take_over(self, training: int, *, new_epoch: bool) -> bool:
        """Make this training the one to record, if there is reason to; returns whether there is.

        There is if no training is active, if the script has a new run active, if this training begins an epoch, or if
        the active training has lost its optimizers or has made no step for long.
        """
        active = self.state.active
        if active is None:
            return self._begin(training)
        fresh = self.runs.script is not None and self.runs.script not in self.state.used
        lost = not self.seen[active].optimizers or self.seen[training].steps >= RIVAL_STEPS
        if not (fresh or new_epoch or lost):
            self._set(rivalry=True)
            return False
        before = self.seen[active]
        if before.epochs == 0 and not before.complete:
            self._tell(f"{before.steps} steps of {before.name} are not recorded: another training began before an "
                       "epoch was complete.")  # fmt: skip
            self._forget(active)
        self._finish(active, "FINISHED")
        return self._begin(training)

    def _begin(self, training: int) -> bool:
        """Make this training the active one, recorded in the script's run if that is active; returns whether it is."""
        self._set(bound=self.runs.script)
        if self.runs.script is not None and self.state.exclusive:
            self._decline(training, "exclusive=True and a run of your own is active")
            return False
        self._set(told=True, active=training, rivalry=False)
        return True

    def _dismiss_rivals(self) -> None:
        """Decline the models trained in turn with the active one (a GAN): only the first to step is recorded."""
        self._set(rivalry=False)
        active = self.state.active
        assert active is not None
        name = self.seen[active].name
        for training, rival in self._each():
            if rival.steps > 0 and training != active:
                other = f"another {name}" if rival.name == name else name
                self._decline(training, f"it is trained in turn with {other}, whose dynamics are; {EXPLICIT}")

    def _take(self, training: int) -> None:
        """Count the step to the training's open epoch. If it is the training's first step in a cell, note so."""
        seen = self.seen[training]
        self.seen[training] = replace(seen, steps=seen.steps + 1)
        if self.state.followed[training].epochs_before is None:
            self._update(training, epochs_before=seen.epochs, left="FINISHED")
        self._do(actions.Take(training))

    def _close(self, training: int, cuts: tuple[int, ...], *, last: bool = False) -> None:
        """Close the active training's open epoch and those after it; each of them ended `cut` steps ago."""
        for cut in cuts:
            seen = self.seen[training]
            if seen.steps > cut:  # otherwise the epoch was closed when a cell ended
                if self.state.run is None:
                    self._open_run(training)
                self._do(actions.CloseEpoch(training, cut, last))
                self.seen[training] = replace(seen, steps=cut, epochs=seen.epochs + 1)

    def _open_run(self, training: int) -> None:
        """Open the run, which the first epoch does: the script's run, or one that `mlflow run` has prepared.

        If that run holds a training already, the run is a new one nested under it; if there is no such run, a new one.
        """
        joins, under = self.state.bound or self.runs.script or self.runs.prepared, None
        taken = self.runs.script if self.runs.taken else None
        if joins is not None and joins in {*self.state.used, taken}:
            joins, under = None, joins
        self._set(run=OpenedRun(owned=joins is None), used=self.state.used | ({joins} if joins else set()))
        self._do(actions.OpenRun(training, joins, under))

    def _close_last(self, training: int, *, whole: bool) -> bool:
        """Close the open epoch of a training that is over, if it is `whole`; returns whether its epochs can be told."""
        seen = self.seen[training]
        if seen.steps == 0:
            return True
        cuts, doubt = seen.if_whole if whole else seen.if_cut
        if doubt is not None:
            self._doubt(training, doubt)
            return False
        self._close(training, cuts, last=True)
        rest = self.seen[training].steps
        if rest > 0 and not whole:
            self._tell(f"The last {rest} training steps of {seen.name} are not recorded: it ended in the middle of "
                       "their epoch.")  # fmt: skip
        return True

    def _start_over(self, training: int) -> None:
        """Begin another training, not another epoch: the weights are again what they were before the first step."""
        active = training == self.state.active
        if active and not self._close_last(training, whole=True):
            return
        self._forget(training)
        if active and self.state.run is not None:
            self._tell(f"The weights of {self.seen[training].name} are again what they were before its first step: "
                       "another training begins, with a run of its own.")  # fmt: skip
            self._go_on_in_another_run("FINISHED")

    def _go_on_in_another_run(self, status: str) -> None:
        """End the active training's recording; if the training goes on, it is a new one with epochs from 0."""
        active = self.state.active
        if active is None:
            return
        if self.state.followed[active].thread == self.thread:  # another thread has runs of its own
            self._finish(active, status)
            self._follow(of=active, again=True)

    def _finish(self, training: int, status: str, *, whole: bool | None = None) -> None:
        """End the active training. If `whole` is None, its open epoch is whole unless the training failed in it."""
        self._set(active=None)
        seen = self.seen[training]
        status = self.state.followed[training].left if status == "FINISHED" else status
        if whole is None:
            whole = status == "FINISHED" or seen.whole
        known = seen.failed or self._close_last(training, whole=whole)
        self._end_run(status)
        if known:
            self._do(actions.LetGo(training))
            self._remove(training)

    def _end_run(self, status: str) -> None:
        if self.state.run is not None:
            self._set(run=None)
            self._do(actions.EndRun(status))

    def _forget(self, training: int) -> None:
        self._do(actions.Forget(training))
        self.seen[training] = replace(self.seen[training], steps=0)

    def _doubt(self, training: int, doubt: str) -> None:
        """Record the training no further, because its epochs cannot be told."""
        seen = self.seen[training]
        recorded = f" after epoch {seen.epochs - 1}" if seen.epochs else ""
        line = f"The dynamics of {seen.name} are not recorded{recorded}: {doubt}; {EXPLICIT}."
        self._leave(training, actions.Decline(training, line, warning=True))

    def _decline(self, training: int, reason: str) -> None:
        """Follow the training no more, and tell the user the reason."""
        line = f"{self.seen[training].name} is not recorded: {reason}."
        self._leave(training, actions.Decline(training, line))

    def _abandon(self, training: int) -> None:
        """Follow the training no more, and tell nothing: nothing of it was to be recorded."""
        self._leave(training, actions.LetGo(training))

    def _leave(self, training: int, action: actions.Decline | actions.LetGo) -> None:
        """Follow the training no more, and end its recording. Its thread is not matched with other trainings."""
        self._do(action)
        self._set(
            unrecorded=self.state.unrecorded | {self.state.followed[training].thread},
            told=self.state.told or isinstance(action, actions.Decline),
        )
        self._remove(training)
        if training == self.state.active:
            self._set(active=None)
            self._end_run("FINISHED")


_RULES: Final[dict[type[events.TrainingEvent], Callable[[_Choice, Any], None]]] = {
    events.OptimizersGone: _Choice.optimizers_gone,
    events.ModelsFound: _Choice.models_found,
    events.NotFollowed: _Choice.not_followed,
    events.Stepped: _Choice.stepped,
    events.DrawnAfterLoading: _Choice.drawn_after_loading,
    events.RunCreated: _Choice.run_created,
    events.RunStarting: _Choice.run_starting,
    events.RunEnding: _Choice.run_ending,
    events.CellBegun: _Choice.cell_begun,
    events.CellEnded: _Choice.cell_ended,
    events.SwitchedOff: _Choice.switched_off,
    events.ScriptEnded: _Choice.script_ended,
    events.ProcessForked: _Choice.process_forked,
}
