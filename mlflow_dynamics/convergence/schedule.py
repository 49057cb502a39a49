"""What is known of the learning rate ahead, and what a change of it means for the warning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mlflow_dynamics.checks import is_whole, require
from mlflow_dynamics.errors import ConfigError

RATE_STEP: Final = 1.5
"""A learning rate that changes by this factor from one epoch to the next has made a step."""

HOLD_OFF: Final = 5
"""So many epochs, from a step of the learning rate on, are not read: they show the transient of that step."""

MIN_RATE: Final = 1e-3
"""Below this fraction of the first rate so little is learnt that a further step is not waited for."""

SMOOTH: Final = ("cosine", "cosine_restarts", "linear", "onecycle", "polynomial", "wsd")
"""Schedules that lower the rate most, or only (wsd: warm-up, stable, decay), at the end, where accuracy still rises."""

_UNKNOWN: Final = "unknown"
_NONE: Final = "none"

LAST_PHASE: Final = 0.75
"""Under a smooth schedule the last phase begins at this fraction of the planned epochs (at 15 % of a cosine's rate)."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What is known of the learning rate ahead.

    Attributes:
        name: "constant", "step", "cosine", "onecycle" or another; "unknown" if no schedule could be read. Under a
            smooth schedule (`SMOOTH`) a stop waits for the last phase.
        planned_epochs: the length of the training; None if it is not known.
        drop_epochs: the epochs, from 0, at whose start the rate makes a step: is lowered, or is raised by a restart.
    """

    name: str = "constant"
    planned_epochs: int | None = None
    drop_epochs: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require(isinstance(self.name, str), "name", self.name, "the name of a schedule, such as 'cosine'")
        known = self.planned_epochs is None or is_whole(self.planned_epochs, least=1)
        words = "at least 1, a whole number, or None if it is not known"
        require(known, "planned_epochs", self.planned_epochs, words)
        listed = isinstance(self.drop_epochs, tuple | list) and all(
            is_whole(epoch, least=0) for epoch in self.drop_epochs
        )
        require(listed, "drop_epochs", self.drop_epochs, "a tuple of whole numbers of at least 0")

    @property
    def parameters(self) -> Mapping[str, int | str]:
        """The schedule as parameters of a run, from which `schedule_of` reads it back."""
        return {
            "schedule": self.name,
            "planned_epochs": _UNKNOWN if self.planned_epochs is None else self.planned_epochs,
            "drop_epochs": ",".join(map(str, self.drop_epochs)) or _NONE,
        }

    @property
    def smooth(self) -> bool:
        """Whether the rate is lowered all the time rather than by steps."""
        return self.name in SMOOTH

    def waits_for(self, epoch: int) -> str | None:
        """What a stop after `epoch` would still have to wait for, in words; None if for nothing."""
        coming = [drop for drop in self.drop_epochs if drop > epoch]
        if coming:
            return f"the learning rate will change at epoch {min(coming)}"
        if not self.smooth:
            return None
        if self.planned_epochs is None:
            return f"the last phase of the {self.name} schedule is not known without the planned number of epochs"
        last_phase = math.ceil(LAST_PHASE * self.planned_epochs)
        if epoch < last_phase:
            return f"the last phase of the {self.name} schedule begins at epoch {last_phase}"
        return None


def schedule_of(parameters: Mapping[str, str]) -> Schedule:
    """The schedule that `Schedule.parameters` has written into a run; a parameter that is missing is not known.

    Raises:
        ConfigError: a value is not one that `Schedule.parameters` writes.
    """
    planned = parameters.get("planned_epochs", _UNKNOWN)
    drops = parameters.get("drop_epochs", _NONE)
    try:
        return Schedule(
            name=parameters.get("schedule", _UNKNOWN),
            planned_epochs=None if planned == _UNKNOWN else int(planned),
            drop_epochs=() if drops == _NONE else tuple(int(drop) for drop in drops.split(",")),
        )
    except ValueError as error:
        raise ConfigError(
            f"planned_epochs={planned!r} and drop_epochs={drops!r} must be whole numbers (the latter separated by "
            f"commas), {_UNKNOWN!r} or {_NONE!r}."
        ) from error


def is_step(before: float | None, after: float | None) -> bool:
    """Whether the learning rate has made a step between two epochs; not if either is unknown."""
    if before is None or after is None or before == after:
        return False
    low, high = sorted((abs(before), abs(after)))
    return high >= RATE_STEP * low
