"""What was decided so far about a script's trainings: the state between two events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mlflow_dynamics.loop import training_events as events


@dataclass(frozen=True, slots=True)
class Followed:
    """A training that is followed.

    Attributes:
        thread: the thread in which the training was found, or in which it made its last step.
        epochs_before: the number of epochs closed before the training's first step in the notebook's current cell; None
            if it has made no step in that cell.
        left: how the last cell that trained it ended, as a run's status. A script counts as one cell.
    """

    thread: int
    epochs_before: int | None = None
    left: str = "FINISHED"


@dataclass(frozen=True, slots=True)
class OpenedRun:
    """The run in which the active training is recorded.

    Attributes:
        owned: the run is ours to end.
        run_id: the run's id; None until the new run is created, and for a run that is not ours.
    """

    owned: bool
    run_id: str | None = None


@dataclass(frozen=True, slots=True)
class State:
    """What was decided so far.

    Attributes:
        exclusive: nothing is recorded in the script's own runs.
        followed: the trainings that are followed, by number, in the order in which they were found.
        active: the number of the training whose epochs are recorded.
        rivalry: another training has made steps since the active training made its last one.
        unrecorded: threads whose own training is not recorded.
        run: the run that is open.
        bound: the script's run that was active when the active training began.
        used: runs in which a training was recorded.
        told: something is recorded, or the user was told why not.
        found: the number of trainings that were ever followed.
    """

    exclusive: bool = False
    followed: Mapping[int, Followed] = field(default_factory=dict)
    active: int | None = None
    rivalry: bool = False
    unrecorded: frozenset[int] = frozenset()
    run: OpenedRun | None = None
    bound: str | None = None
    used: frozenset[str] = frozenset()
    told: bool = False
    found: int = 0


def heard_in(state: State, thread: int) -> list[int]:
    """The trainings that hear what happens in a thread: those that the thread trains, or all if it trains none.

    A thread that trains none may draw batches for any training. A thread whose own training is not recorded must not be
    matched with another thread's training, so no training hears of it.
    """
    mine = [one for one, followed in state.followed.items() if followed.thread == thread]
    return mine if mine or thread in state.unrecorded else list(state.followed)


def epoch_ends_with_cell(seen: events.Seen, before: int | None, status: str, left: str) -> bool:
    """Whether the open epoch is over when a notebook's cell ends.

    The epoch is not over while an evaluation goes on, or if the cell failed in an evaluation. The first epoch that the
    cell trained is not over before it is evaluated, which the next cell may do. The training's very first epoch is not
    over if it was left early, because it may have been a rehearsal.

    Args:
        seen: the training.
        before: its epochs before the cell, or None, as `Followed.epochs_before`.
        status: how the cell ended, as a run's status.
        left: how the last cell that trained it ended, likewise.
    """
    if seen.steps == 0 or seen.failed or not seen.ended:
        return False
    if before == seen.epochs and not seen.evaluated:
        return False
    if seen.evaluating or (status != "FINISHED" and seen.evaluated_in_part):
        return False
    rehearsal = seen.epochs == 0 and not seen.complete
    return seen.whole or (status == left == "FINISHED" and not rehearsal)


def epoch_ends_with_script(seen: events.Seen, status: str | None, *, left_by_cell: bool) -> bool:
    """Whether the open epoch is over when the script ends with this status.

    The epoch is over if its pass came to its end, or if nothing more can be drawn in it and it has as many steps as the
    shortest epoch before it. If the script ends well, that number of steps is enough, and the epoch is also over if it
    is the only one, or if a notebook's cell left it open.
    """
    as_ever = seen.shortest is not None and seen.steps >= seen.shortest
    if status == "FINISHED":
        return seen.whole or as_ever or seen.epochs == 0 or left_by_cell
    return seen.whole or (as_ever and seen.ended)
