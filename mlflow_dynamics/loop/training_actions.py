"""What is to be done about a script's trainings. Trainings are given by number."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Follow:
    """Follow a model as a new training.

    Attributes:
        training: the new training's number.
        of: the training that this one replaces; None if the model was just found.
        again: the model is the one of the training that is replaced.
    """

    training: int
    of: int | None = None
    again: bool = False


@dataclass(frozen=True, slots=True)
class Take:
    """Count the step that is being made to the open epoch."""

    training: int


@dataclass(frozen=True, slots=True)
class OpenRun:
    """Record the training in the run that it `joins`, or else in a new run, which may be nested `under` another."""

    training: int
    joins: str | None
    under: str | None


@dataclass(frozen=True, slots=True)
class CloseEpoch:
    """Close the open epoch, which ended `cut` steps ago. If it is the `last` one, no step is being made."""

    training: int
    cut: int
    last: bool


@dataclass(frozen=True, slots=True)
class Forget:
    """Drop the open epoch, which was no part of a training, and everything learned in it."""

    training: int


@dataclass(frozen=True, slots=True)
class LetGo:
    """Follow the training no more."""

    training: int


@dataclass(frozen=True, slots=True)
class Decline:
    """Follow the training no more, and tell the user why: as a `warning` if no other training is the reason."""

    training: int
    line: str
    warning: bool = False


@dataclass(frozen=True, slots=True)
class EndRun:
    """End the recording; the run ends with this status if it is ours."""

    status: str


@dataclass(frozen=True, slots=True)
class Activate:
    """Make the run that MLflow has created the active one."""


@dataclass(frozen=True, slots=True)
class AwaitRun:
    """Wait until MLflow has created the open run, if it is a new one."""


@dataclass(frozen=True, slots=True)
class AwaitUser:
    """The training waits for its user."""


@dataclass(frozen=True, slots=True)
class LeaveToParent:
    """Leave all trainings and the open run to the parent process."""


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell the user a line."""

    line: str


Action = (
    Follow | Take | OpenRun | CloseEpoch | Forget | LetGo | Decline | EndRun | Activate | AwaitRun | AwaitUser
    | LeaveToParent | Tell
)  # fmt: skip
