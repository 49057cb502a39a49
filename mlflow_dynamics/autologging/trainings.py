"""Tells `choose` what happens to a script's trainings in torch, MLflow and notebooks, and does what it chooses."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlflow
from mlflow.tracking.context.registry import resolve_tags
from torch import Tensor, nn
from torch.optim import Optimizer

from mlflow_dynamics.autologging.recorded_run import AutologConfig, RecordedRun
from mlflow_dynamics.autologging.script_metrics import ScriptMetrics
from mlflow_dynamics.errors import RecordingError
from mlflow_dynamics.loop import training_actions as actions
from mlflow_dynamics.loop import training_events as events
from mlflow_dynamics.loop.epochs import EpochFinder
from mlflow_dynamics.loop.events import LoaderGone, PassEnded
from mlflow_dynamics.loop.followed_training import FollowedTraining
from mlflow_dynamics.loop.passes import Pass
from mlflow_dynamics.loop.training_state import State, heard_in
from mlflow_dynamics.loop.trainings import choose, is_ordinary
from mlflow_dynamics.recording.boundary import Boundary
from mlflow_dynamics.recording.criterion import Origin
from mlflow_dynamics.recording.discovery import SearchTime, in_place_of, is_recorded, models_of
from mlflow_dynamics.text import printable
from mlflow_dynamics.tracking import activate_run, active_runs, new_run, run_to_join, script_run
from mlflow_dynamics.tracking.joining import HOLDS_ANOTHER, holds_training, nested_run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Given:
    """The objects that an event is about, which `choose` never sees.

    Attributes:
        optimizer: the optimizer that was made or steps.
        closure: the optimizer's step has a closure.
        module: the module to follow.
    """

    optimizer: Optimizer | None = None
    closure: bool = False
    module: nn.Module | None = None


class Trainings:
    """The trainings that are followed, and the run of the one that is recorded. `choose` decides about them.

    Args:
        config: the arguments of `autolog`.
        boundary: keeps failures of the hooks on models out of the script.
        new_finder: makes the object that finds a training's epochs.
        script_metrics: knows which metrics the script logs itself.
    """

    def __init__(
        self,
        config: AutologConfig,
        boundary: Boundary,
        new_finder: Callable[[], EpochFinder],
        script_metrics: ScriptMetrics,
    ) -> None:
        self._config = config
        self._boundary = boundary
        self._new_finder = new_finder
        self._script_metrics = script_metrics
        self._tags = resolve_tags(
            dict(config.extra_tags)
        )  # asks git, which is too slow during a training step
        self._state = State(exclusive=config.exclusive)
        self._choosing = threading.Lock()
        # Always replaced, never changed: other threads, and the end of a loader at any moment, iterate over it.
        self._trainings: Mapping[int, FollowedTraining] = {}
        self._run: RecordedRun | None = None
        self._parents: list[object] = []
        self._search = SearchTime()
        self._thread = threading.local()
        self._threads = itertools.count()

    @property
    def told(self) -> bool:
        """Whether something is recorded, or the user was told why not."""
        return self._state.told

    def here(self) -> list[FollowedTraining]:
        """The trainings that hear what happens in this thread."""
        heard, trainings = heard_in(self._state, self._this_thread()), self._trainings
        return [trainings[one] for one in heard if one in trainings]

    def origin_of(self, values: Tensor) -> Origin | None:
        """The training whose model returned these values lately, if any; None if no training is followed."""
        followed = self._trainings.values()
        origins = (training.origin_of(values) for training in followed)
        known = next((origin for origin in origins if origin is not None), None)
        if known is not None or not followed:
            return known
        evaluating = not any(training.recorder.model.training for training in followed)
        return Origin(None, values, alone=False, evaluating=evaluating)

    def follow(self, optimizer: Optimizer) -> None:
        """An optimizer was made."""
        known = any(training.owns(optimizer) for training in self._trainings.values())
        if not all(training.optimizers for training in self._trainings.values()):
            self._hear(events.OptimizersGone)
        if known or not self._search.allowed():
            return
        with self._search:
            models = models_of(optimizer)
        for training in self._trainings.values():
            if models and training.recorder.model is models[0]:
                training.optimizers.add(optimizer)
                return
        if models:
            names = tuple(printable(type(model).__name__) for model in models)
            given = _Given(optimizer, module=models[0])
            self._hear(events.ModelsFound, given, names=names, tracked=is_recorded(models[0]))

    def batch(self, drawn: Pass) -> None:
        """A batch was drawn from some loader."""
        for number, training in self._trainings.items():
            if (training.set_back or training.replaced) and training.training:
                another = training.replaced and not training.finder.goes_on(drawn.latest)
                self._hear(
                    events.DrawnAfterLoading,
                    training=number,
                    set_back=training.set_back,
                    another_pass=another,
                )
        for training in self.here():
            training.batch(drawn)

    def ended(self, event: PassEnded | LoaderGone) -> None:
        """A pass or a loader has ended: told at any moment and in any thread."""
        for training in self._trainings.values():
            training.ended(event)

    def step(self, optimizer: Optimizer, closure: bool) -> None:
        """An optimizer is about to make a step."""
        self._ask_for_run()
        counting = (
            (number, training)
            for number, training in self._trainings.items()
            if training.recorder.counts(optimizer, forward_to_come=closure)
        )
        number, training = next(counting, (-1, None))
        if training is None:
            for other in self._trainings.values():
                other.step_not_counted(optimizer)
            return
        found = None
        if training.steps == 0 and not (closure or training.recorder.called):
            with self._search:
                found = in_place_of(training.model, optimizer, parts_alone=training.in_place)
        training.thread = threading.current_thread()
        tracked = is_recorded(training.recorder.model, besides=training.recorder)
        cuts, doubt, steps = training.finder.step(), training.finder.doubt, training.steps
        told = found is not None or tracked or cuts or doubt is not None
        if not told and is_ordinary(self._state, number, steps=steps, thread=self._this_thread()):
            training.step(optimizer, closure=closure)
            return
        self._hear(
            events.Stepped,
            _Given(optimizer, closure, found and found[1]),
            training=number,
            steps=steps,
            cuts=cuts,
            doubt=doubt,
            tracked=tracked,
            instead=found and found[0],
        )

    def run_begins(self, given: Mapping[str, Any]) -> None:
        """The script starts a run."""
        self._hear(events.RunStarting, run_id=given.get("run_id"), nested=bool(given.get("nested")))

    def run_ends(self, given: Mapping[str, Any]) -> None:
        """The script ends the active run."""
        self._hear(events.RunEnding, status=str(given.get("status", "FINISHED")))

    def cell_begun(self) -> None:
        """A notebook's cell begins."""
        self._hear(events.CellBegun)

    def cell_ended(self, status: str) -> None:
        """A notebook's cell has ended with this status."""
        self._hear(events.CellEnded, status=status)
        self._ask_for_run()

    def finish(self) -> None:
        """Follow no training any more."""
        self._hear(events.SwitchedOff)

    def script_ended(self, status: str | None) -> None:
        """The script has ended with this status; None if the status is not known."""
        self._hear(events.ScriptEnded, status=status)

    def forked(self) -> None:
        """This process is a fork."""
        self._choosing = threading.Lock()
        self._hear(events.ProcessForked)

    def let_go(self) -> None:
        """Detach from all models."""
        for training in self._trainings.values():
            training.remove()
        self._trainings = {}

    def end_run(self, status: str) -> None:
        """End the recording, if there is one."""
        run = self._run
        if run is not None:
            try:
                run.close(status)
            finally:  # not before: a signal may come that has to find it
                self._run = None

    def _this_thread(self) -> int:
        """A number that no other thread has, had or will have."""
        try:
            number: int = self._thread.number
        except AttributeError:
            number = self._thread.number = next(self._threads)
        return number

    def _ask_for_run(self, *, waiting: bool = False) -> None:
        """Tell `choose` about a new run once MLflow has created it; if `waiting`, wait for that."""
        run = self._state.run
        if run is None or not run.owned or run.run_id is not None or self._run is None:
            return
        created = self._run.created(waiting=waiting)
        if created is not None:
            self._hear(events.RunCreated, run_id=str(created.info.run_id))

    def _hear(self, kind: type[events.TrainingEvent], given: _Given | None = None, **what: Any) -> None:
        event = kind(thread=self._this_thread(), seen=self._seen(), runs=_script_runs(), **what)
        self._choose(event, given or _Given())

    def _choose(self, event: events.TrainingEvent, given: _Given) -> None:
        before = self._trainings
        # Waits one second only: a signal's handler or a fork may have interrupted a choice, whose lock is never freed.
        held = self._choosing.acquire(timeout=1)
        try:
            self._state, chosen = choose(self._state, event)
        finally:
            if held:
                self._choosing.release()
        for action in chosen:
            self._do(action, given, before)

    def _do(self, action: actions.Action, given: _Given, before: Mapping[int, FollowedTraining]) -> None:
        training = before.get(getattr(action, "training", -1))
        match action, training:
            case actions.Follow(), _:
                self._follow(action, given, before)
            case actions.Take(), FollowedTraining():
                assert given.optimizer is not None
                training.step(given.optimizer, closure=given.closure)
            case actions.OpenRun(), FollowedTraining():
                self._run = self._open_run(training, action)
            case actions.CloseEpoch(), FollowedTraining():
                assert self._run is not None
                if action.last:
                    training.losses.no_step()
                self._run.end_epoch(training, action.cut)
            case actions.Forget(), FollowedTraining():
                training.forget()
            case actions.LetGo() | actions.Decline(), FollowedTraining():
                if isinstance(action, actions.Decline):
                    logger.log(logging.WARNING if action.warning else logging.INFO, "%s", action.line)
                training.remove()
                training.steps = 0
                self._trainings = {
                    one: other for one, other in self._trainings.items() if other is not training
                }
            case actions.EndRun(), _:
                self.end_run(action.status)
            case actions.Activate(), _:
                created = None if self._run is None else self._run.created()
                if created is not None:
                    activate_run(created)
            case actions.AwaitRun(), _:
                self._ask_for_run(waiting=True)
            case actions.AwaitUser(), _:
                if self._run is not None:
                    self._run.pause()
            case actions.LeaveToParent(), _:
                # Kept alive: to free tensors on a GPU calls CUDA, which a forked process must not.
                self._parents += [self._trainings, self._run]
                self.let_go()
                self._run = None
            case actions.Tell(), _:
                logger.info("%s", action.line)

    def _follow(self, action: actions.Follow, given: _Given, before: Mapping[int, FollowedTraining]) -> None:
        earlier = None if action.of is None else before[action.of]
        module = given.module if earlier is None or not action.again else earlier.model
        assert module is not None
        try:
            training = FollowedTraining(module, self._config.recording, self._boundary, self._new_finder)
        except RecordingError as error:
            self._hear(events.NotFollowed, training=action.training, reason=str(error))
            return
        if earlier is not None:
            training.optimizers.update(earlier.optimizers)
        elif given.optimizer is not None:
            training.optimizers.add(given.optimizer)
        if earlier is not None and not action.again:
            training.in_place = True
            training.losses.begin_late()
        self._trainings = {**self._trainings, action.training: training}

    def _open_run(self, training: FollowedTraining, action: actions.OpenRun) -> RecordedRun:
        if action.under is not None:
            logger.info(HOLDS_ANOTHER, action.under, action.under)
        new = new_run(self._tags) if action.under is None else nested_run(action.under, self._tags)
        return RecordedRun(training, action.joins or new, self._config, self._script_metrics)

    def _seen(self) -> tuple[events.Seen, ...]:
        return tuple([_seen(number, training) for number, training in self._trainings.items()])


def _seen(number: int, training: FollowedTraining) -> events.Seen:
    finder, evaluations = training.finder, training.losses.evaluations
    return events.Seen(
        training=number,
        name=training.name,
        steps=training.steps,
        epochs=training.epochs,
        shortest=training.shortest,
        optimizers=bool(training.optimizers),
        orphaned=not training.thread.is_alive(),
        failed=training.recorder.failure is not None,
        complete=finder.complete,
        ended=finder.ended,
        whole=finder.whole,
        evaluated=training.evaluated_in_epoch,
        evaluating=any(one.unfinished for one in evaluations),
        evaluated_in_part=not all(one.complete for one in evaluations),
        if_whole=finder.ending(whole=True),
        if_cut=finder.ending(whole=False),
    )


def _script_runs() -> events.ScriptRuns:
    script = script_run()
    active = mlflow.active_run()
    return events.ScriptRuns(
        active=tuple(active_runs()),
        ours=active is not None and script is None,
        taken=script is not None and holds_training(script),
        prepared=run_to_join() if active is None else None,
    )
