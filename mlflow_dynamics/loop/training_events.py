"""The events of a script's trainings. Trainings and threads are given by number, runs by MLflow's id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

NOTHING_OVER: Final[tuple[tuple[int, ...], str | None]] = ((), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A training as it is when an event happens.

    Attributes:
        training: the training's number.
        name: the name of the model's class.
        steps: the number of training steps in the open epoch.
        epochs: the number of epochs closed so far.
        shortest: the number of training steps in the shortest of the closed epochs; None before the first is closed.
        optimizers: at least one of the training's optimizers is alive.
        orphaned: the thread that made the training's last step has ended.
        failed: the training's recorder has failed.
        complete, ended, whole: as in `EpochFinder`.
        evaluated: the model was in evaluation mode in the open epoch.
        evaluating: an evaluation goes on.
        evaluated_in_part: an evaluation did not come to its end.
        if_whole: what `EpochFinder.ending` tells (cuts and doubt) if the training ends now and its open epoch is whole.
        if_cut: likewise, if the open epoch is not whole.
    """

    training: int
    name: str = "Model"
    steps: int = 0
    epochs: int = 0
    shortest: int | None = None
    optimizers: bool = True
    orphaned: bool = False
    failed: bool = False
    complete: bool = True
    ended: bool = False
    whole: bool = False
    evaluated: bool = False
    evaluating: bool = False
    evaluated_in_part: bool = False
    if_whole: tuple[tuple[int, ...], str | None] = NOTHING_OVER
    if_cut: tuple[tuple[int, ...], str | None] = NOTHING_OVER


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptRuns:
    """MLflow's runs in the thread in which an event happens.

    Attributes:
        active: the active runs, each nested in the one before it.
        ours: the innermost active run is ours.
        taken: the innermost active run is the script's and holds a training already, recorded by whichever process.
        prepared: the run that `mlflow run` has prepared, if no run is active.
    """

    active: tuple[str, ...] = ()
    ours: bool = False
    taken: bool = False
    prepared: str | None = None

    @property
    def script(self) -> str | None:
        """The active run, if it is the script's."""
        return self.active[-1] if self.active and not self.ours else None


NO_RUNS: Final = ScriptRuns()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingEvent:
    """An event in a `thread`, with all trainings that are followed (`seen`) and MLflow's `runs` at that moment."""

    thread: int
    seen: tuple[Seen, ...] = ()
    runs: ScriptRuns = NO_RUNS


class OptimizersGone(TrainingEvent):
    """An optimizer was made, for whatever model, after all optimizers of some training were freed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsFound(TrainingEvent):
    """Models of these class `names` own a new optimizer's parameters; the first one may be `tracked` already."""

    names: tuple[str, ...]
    tracked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NotFollowed(TrainingEvent):
    """A training cannot be followed, for this `reason`."""

    training: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped(TrainingEvent):
    """An optimizer is about to make a step of a training.

    Attributes:
        steps: the number of earlier steps in the open epoch.
        cuts: for each epoch that is now known to be over, the number of these steps that belong to the next epoch.
        doubt: why epochs cannot be told apart; None if they can.
        tracked: an explicit tracker, or a framework's callback, also records the model.
        instead: the name of the model to follow in its place, where the model itself is never called; None otherwise.
    """

    training: int
    steps: int
    cuts: tuple[int, ...] = ()
    doubt: str | None = None
    tracked: bool = False
    instead: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnAfterLoading(TrainingEvent):
    """A batch is drawn in training mode after weights were loaded.

    Attributes:
        training: the training's number.
        set_back: the loaded weights are those from before the first step.
        another_pass: the weights were loaded after the last step, and the batch does not belong to the open epoch.
    """

    training: int
    set_back: bool
    another_pass: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCreated(TrainingEvent):
    """MLflow has created the new run that is open."""

    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarting(TrainingEvent):
    """The script is about to start a run, or to reopen the run with this `run_id`."""

    run_id: str | None = None
    nested: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnding(TrainingEvent):
    """The script is about to end the active run."""

    status: str


class CellBegun(TrainingEvent):
    """A notebook's cell begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellEnded(TrainingEvent):
    """A notebook's cell has ended with this status."""

    status: str


class SwitchedOff(TrainingEvent):
    """`autolog` was switched off: no training is to be followed any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptEnded(TrainingEvent):
    """The script has ended with this status; None if the status is not known."""

    status: str | None


class ProcessForked(TrainingEvent):
    """This process is a fork, made while the script trained."""
