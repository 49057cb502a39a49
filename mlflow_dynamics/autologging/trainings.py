"""Which of a script's trainings is recorded: at most one at a time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any, Final
from weakref import WeakSet

import mlflow
from torch import Tensor, nn
from torch.optim import Optimizer

from mlflow_dynamics.autologging.runs import Runs
from mlflow_dynamics.config import RecordingConfig
from mlflow_dynamics.errors import RecordingError
from mlflow_dynamics.recording.boundary import Boundary
from mlflow_dynamics.recording.criterion import Origin
from mlflow_dynamics.recording.discovery import SearchTime, in_place_of, is_recorded, models_of
from mlflow_dynamics.recording.followed import FollowedTraining
from mlflow_dynamics.recording.loaders import Pass

logger = logging.getLogger(__name__)

EXPLICIT: Final = (
    "use mlflow_dynamics.track(model) with tracker.epoch(n) or tracker.end_epoch() to say where epochs end"
)

RIVAL_STEPS: Final = 50
"""A second model that makes so many steps while the first makes none is a new training, not the other half of one."""

LONG_EPOCH: Final = 1000
"""After so many steps of a first epoch the user hears why nothing has been logged yet."""


class Trainings:
    """The trainings that are followed, of which one is active: its epochs are recorded.

    Attributes:
        told: something is recorded, or the user knows why not.
        runs: in which they are recorded.
    """

    def __init__(self, recording: RecordingConfig, boundary: Boundary, runs: Runs) -> None:
        self.told = False
        self.runs = runs
        self._recording = recording
        self._boundary = boundary
        self._trainings: list[FollowedTraining] = []
        self._unrecorded: WeakSet[threading.Thread] = WeakSet()
        self._active: FollowedTraining | None = None
        self._rival_stepped = False
        self._parents: list[FollowedTraining] = []
        self._search = SearchTime()

    def here(self) -> list[FollowedTraining]:
        """Those in this thread; in one that trains none, as it draws batches ahead or is about to, all.

        Not in one whose training is not recorded: what it does is no other training's.
        """
        thread = threading.current_thread()
        mine = [training for training in self._trainings if training.thread is thread]
        return mine if mine or thread in self._unrecorded else self._trainings

    def origin_of(self, values: Tensor) -> Origin | None:
        """The training whose model returned these values lately."""
        origins = (training.origin_of(values) for training in self._trainings)
        return next((origin for origin in origins if origin is not None), None)

    def follow(self, optimizer: Optimizer) -> None:
        """An optimizer was made: follow the training of what it owns."""
        known = any(training.owns(optimizer) for training in self._trainings)
        self._let_go_of_the_dead()
        if known:
            return
        if not self._search.allowed():
            return
        with self._search:
            models = models_of(optimizer)
        if not models:
            return
        for training in self._trainings:
            if training.recorder.model is models[0]:
                training.optimizers.add(optimizer)
                return
        if is_recorded(models[0]):  # by track() or a framework's callback
            self.told = True
            return
        if len(models) > 1:
            names = [type(model).__name__ for model in models]
            logger.info("One optimizer trains %s: only %s can be recorded.", " and ".join(names), names[0])
        self._follow_model(models[0], optimizer)

    def batch(self, drawn: Pass) -> None:
        """A batch was drawn from some loader."""
        # Not as soon as the weights are set back: that may be to evaluate them.
        thread = threading.current_thread()
        for training in [t for t in self._trainings if t.set_back and t.training and t.thread is thread]:
            self._start_over(training)
        for training in self.here():
            training.batch(drawn)

    def step(self, optimizer: Optimizer, closure: bool) -> None:
        """An optimizer is about to make a step."""
        self.runs.activate()
        counting = (t for t in self._trainings if t.recorder.counts(optimizer, forward_to_come=closure))
        training = next(counting, None)
        if training is None:
            for other in self._trainings:
                other.step_not_counted(optimizer)
            return
        training.thread = threading.current_thread()
        if is_recorded(training.recorder.model, besides=training.recorder):
            self._drop(training, "it is recorded by an explicit tracker or a framework's callback")
            return
        if not (closure or training.recorder.called) and self._replace(training, optimizer):
            return
        over = training.finder.step()
        if training is not self._active and not self._take_over(training, new_epoch=bool(over)):
            training.step(optimizer, closure=closure)
            return
        if self._rival_stepped:
            self._dismiss_rivals(training)
        for late in over:
            self._close_epoch(training, late)
        training.step(optimizer, closure=closure)
        if training.steps == LONG_EPOCH and training.epochs == 0:
            logger.info("%s has made %d steps, and its first epoch is not over, before which nothing is logged; %s.",
                        training.name, LONG_EPOCH, EXPLICIT)  # fmt: skip
        doubt = training.finder.doubt
        if doubt is not None:
            self._decline(training, doubt)

    def run_begins(self, given: Mapping[str, Any]) -> None:
        """The script starts a run: ours, which it does not know of, ends first, or MLflow would refuse.

        So does the recording in an earlier run of the script, which the script has ended.
        """
        if self.runs.replaced_by(given):
            self._go_on_in_another_run("FINISHED")

    def run_ends(self, given: Mapping[str, Any]) -> None:
        """The script ends the active run: what is recorded in it ends with it."""
        status = str(given.get("status", "FINISHED"))
        if self.runs.ended_by(status):
            self._go_on_in_another_run(status)

    def resume(self) -> None:
        """A notebook's cell begins: what it logs goes to the run of the training."""
        if self._left_to_us():
            self.runs.activate()

    def pause(self, status: str) -> None:
        """A notebook's cell is over, with this status: record a complete epoch now, not with the next one's begin."""
        stepped = [training for training in self.here() if training.trained_in_cell]
        if self._active is not None and stepped and self._active not in stepped:
            self._take_over(stepped[-1], new_epoch=True)
        training = self._active
        if training is None or not self._left_to_us():
            return
        if training.pause(status):
            training.losses.no_step()
            self._close_epoch(training, 0)
        self.runs.activate()
        self.runs.pause()
        if not stepped:
            self._let_go_of_the_dead()

    def _left_to_us(self) -> bool:
        """Whether no other thread goes on with the active training."""
        thread = None if self._active is None else self._active.thread
        return thread is not None and (thread is threading.current_thread() or not thread.is_alive())

    def finish(self, status: str) -> None:
        """The process is over, and with it the last training; others that made no way for one another were before."""
        while sum(training is self._active or training.steps > 0 for training in self._trainings) > 1:
            self._finish("FINISHED")
        self._finish(status)

    def leave_to_the_parent(self) -> None:
        """In a forked process: what was being trained is the parent's to record, and the run its to end."""
        for training in self._trainings:
            training.remove()
        # Kept, as freeing what is on a GPU would call CUDA, which a forked process must not.
        self._parents = self._trainings
        self._trainings = []
        self._active = None
        self.told = False
        self.runs.leave_to_the_parent()

    def let_go(self) -> None:
        """Detach from all models."""
        for training in self._trainings:
            training.remove()
        self._trainings = []

    def _follow_model(self, model: nn.Module, *optimizers: Optimizer) -> FollowedTraining | None:
        try:
            training = FollowedTraining(model, self._recording, self._boundary)
        except RecordingError as error:
            self.told = True
            logger.info("Not recorded: %s", error)
            return None
        training.optimizers.update(optimizers)
        self._trainings.append(training)
        self._unrecorded.discard(training.thread)
        return training

    def _let_go_of_the_dead(self) -> None:
        """A model whose optimizers are gone is trained no more: following it would keep it in memory."""
        for training in [t for t in self._trainings if not t.optimizers]:
            if training is self._active:
                self._finish("FINISHED")
            elif training.steps > 0 and self._active is not None:
                self._drop(
                    training, f"its {training.steps} steps were made in the middle of {self._active.name}'s"
                )
            else:
                self._abandon(training)

    def _replace(self, training: FollowedTraining, optimizer: Optimizer) -> bool:
        """Whether another module is followed in place of this one, which is not called itself.

        Of a wrapper (for a moving average, say) the model alone may be called, or of two modules with the same layers
        the one that was made of them last.
        """
        if training.steps > 0:
            return False
        with self._search:
            other = in_place_of(training.model, optimizer, parts_alone=training.in_place)
        if other is None:
            return False
        name, module = other
        logger.info("%s is not called in training mode: %s is followed in its place, from the second step on.",
                    training.name, name)  # fmt: skip
        self._abandon(training)
        followed = self._follow_model(module, *training.optimizers)
        if followed is not None:
            followed.in_place = True
            followed.losses.begin_late()
        return True

    def _take_over(self, training: FollowedTraining, *, new_epoch: bool) -> bool:
        """Whether this training is the one to record from now on."""
        if self._active is None:
            return self._begin(training)
        over = not self._active.optimizers
        if not (self.runs.fresh or new_epoch or over or training.steps >= RIVAL_STEPS):
            self._rival_stepped = True
            return False
        if self._active.epochs == 0 and not self._active.finder.complete:
            logger.info("%d steps of %s are not recorded: another training began before an epoch was complete.",
                        self._active.steps, self._active.name)  # fmt: skip
            self._active.forget()
        self._finish("FINISHED")
        return self._begin(training)

    def _begin(self, training: FollowedTraining) -> bool:
        refusal = self.runs.bind()
        if refusal is not None:
            self._drop(training, refusal)
            return False
        self.told = True
        self._active = training
        self._rival_stepped = False
        return True

    def _dismiss_rivals(self, active: FollowedTraining) -> None:
        """Two models are trained in turn (a GAN): only the one that made the first step is recorded."""
        self._rival_stepped = False
        for rival in [t for t in self._trainings if t is not active and t.steps > 0]:
            other = f"another {active.name}" if rival.name == active.name else active.name
            self._drop(rival, f"it is trained in turn with {other}, whose dynamics are; {EXPLICIT}")

    def _close_epoch(self, training: FollowedTraining, late: int) -> None:
        if training.steps > late:  # else it was closed in a pause
            self.runs.end_epoch(training, late)

    def _close_last_epoch(self, training: FollowedTraining) -> None:
        if training.steps == 0:
            return
        training.losses.no_step()
        over, doubt = training.finder.finish(), training.finder.doubt
        if doubt is None:
            for late in over:
                self._close_epoch(training, late)
        else:
            self._decline(training, doubt)

    def _start_over(self, training: FollowedTraining) -> None:
        """The weights are again what they were before the first step: another training begins, not another epoch."""
        if training is self._active:
            self._close_last_epoch(training)
        if training not in self._trainings:
            return
        training.forget()
        if training is not self._active or self.runs.owned is None:
            return
        again = "The weights of %s are again what they were before its first step: another training begins,"
        if self.runs.owned:
            logger.info(again + " with a run of its own.", training.name)
            self._go_on_in_another_run("FINISHED")
        elif mlflow.active_run() is not None:
            logger.info(again + " as epoch %d of the same run.", training.name, training.epochs)

    def _go_on_in_another_run(self, status: str) -> None:
        """What is recorded of the active training is over; if it goes on, then as another, its epochs from 0."""
        training = self._active
        if training is None or training.thread is not threading.current_thread():  # whose runs are others
            return
        self._finish(status)
        self._follow_model(training.model, *training.optimizers)

    def _finish(self, status: str) -> None:
        """The active training is over."""
        training, self._active = self._active, None
        if training is None:
            rivals = [t for t in self._trainings if t.steps > 0]
            training = rivals[0] if rivals and self._begin(rivals[0]) else None
            self._active = None
        if training is None:
            return
        status = training.left if status == "FINISHED" else status
        whole = status == "FINISHED" or training.finder.whole
        if whole and training.recorder.failure is None:
            self._close_last_epoch(training)
        self.runs.end(status)
        training.remove()
        if training in self._trainings:
            self._trainings.remove(training)

    def _decline(self, training: FollowedTraining, reason: str) -> None:
        self.told = True
        recorded = f" after epoch {training.epochs - 1}" if training.epochs else ""
        logger.warning(
            "The dynamics of %s are not recorded%s: %s; %s.", training.name, recorded, reason, EXPLICIT
        )
        self._abandon(training)

    def _drop(self, training: FollowedTraining, reason: str) -> None:
        self.told = True
        logger.info("%s is not recorded: %s.", training.name, reason)
        self._abandon(training)

    def _abandon(self, training: FollowedTraining) -> None:
        training.remove()
        training.steps = 0
        self._trainings.remove(training)
        self._unrecorded.add(training.thread)
        if training is self._active:
            self._active = None
            self.runs.end("FINISHED")
