"""Which training steps begin an epoch, read from what each step was made on."""

from __future__ import annotations

from typing import Final, NamedTuple

from mlflow_dynamics.loop.events import EpochKey
from mlflow_dynamics.loop.steps import Draw, Step

STEPS_WITHOUT_BATCHES: Final = 1000
"""After so many steps (or two epochs' worth) without a batch from a DataLoader, epochs cannot be inferred."""

FEW_STEPS: Final = 8
"""Up to so many steps without a batch, or each on a pass of its own, prove nothing yet."""

NO_PASSES: Final = "its training steps make no passes over a DataLoader, so epochs are unknown"
TANGLED: Final = "it is trained on several DataLoaders in an order that tells no epochs"


class _Known(NamedTuple):
    """A step, and whether it is on the primary loader."""

    step: Step
    on_primary: bool


class Reading:
    """Reads one step after the other, and keeps only what may still decide something.

    An epoch is a pass over the loader whose batches the model is trained on, and begins with the first step on that
    pass. If the model is trained on several loaders, only the passes of one of them, the primary, count: the loader
    that was drawn from last before the first step, or the first of several that are drawn from together (zipped).

    A step on another loader alone (a rival) is understood only later, and is pending until then. If the primary is
    drawn from again, the loaders are drawn from in turn, and the primary stays the primary. If the rival begins a
    second pass, or the primary can begin none, the epoch ended before that step: the rival becomes the primary at that
    step, and the steps since are read again.

    Attributes:
        current: the primary's draw at the last step on the primary; None before the first such step.
        pending: the steps that are not yet understood, with their numbers.
        shared: the last step, with its number, if it may be on the primary's batch or on another loader's first one.
        several: other loaders are drawn from in turn with the primary.
        found: a pass was seen that is more than one batch taken out of several.
        idle: the number of steps since the last one on the primary.
    """

    def __init__(self) -> None:
        self.current: Draw | None = None
        self.pending: list[tuple[int, Step]] = []
        self.shared: tuple[int, Step] | None = None
        self.several = False
        self.idle = 0
        self._starts: list[int] = []
        # Steps that changed nothing, by address: the same steps will change nothing again.
        self._known: dict[int, _Known] = {}
        self._first = True
        # Whether the last epoch that ended was made of steps on the primary alone.
        self._repeated = False
        self._companions: set[int] = set()
        # The latest draw from each loader of the pending steps. If two steps follow each other again and again, as when
        # two loaders are drawn from in turn, only the first such pair is pending.
        self._rivals: dict[int, Draw] = {}
        self._followed: set[tuple[Step | None, Step]] = set()
        self._elsewhere: Step | None = None
        # Primaries so far, each with its epoch that ended last: the loader may return, but not with that epoch. None:
        # the loader must not return at all, because that epoch was its only one.
        self._left: dict[int, EpochKey | None] = {}
        self._tangled = False
        self._trained = False
        self.found = False
        self._looks = 0
        self._gap = 0

    def read(self, number: int, step: Step) -> list[int]:
        """Read a step, and return the numbers of the steps that are now known to have begun an epoch."""
        known = self._known.get(id(step))
        if known is not None:
            if known.on_primary:
                self._gap, self.idle = max(self._gap, self.idle), 0
            else:
                self.idle += 1
            return []
        before = self.current
        self._read(number, step)
        self._know(before, step)
        starts, self._starts = self._starts, []
        return starts

    def conclude(self, *, looked: bool) -> list[int]:
        """There are no more steps. Returns, as `read` does, the first of the steps that are still pending.

        Args:
            looked: only one batch of several was drawn from the last of the pending steps' loaders.
        """
        if not self.pending or looked:
            return []
        self._tangled |= len(self._rivals) > 1
        return [self.pending[0][0]]

    @property
    def rival(self) -> Draw | None:
        """The latest draw from the rival that joined last; None if no step is pending."""
        return next(reversed(self._rivals.values()), None)

    @property
    def watched(self) -> list[Draw]:
        """The draws whose passes and loaders have to be watched for their end."""
        pending = [draw for _, step in self.pending for draw in step.fed]
        return [*pending, *self._rivals.values(), *([] if self.current is None else [self.current])]

    def knows(self, loader: int) -> bool:
        """Whether the loader is remembered although it may not be drawn from now."""
        return loader in self._left or loader in self._companions

    def forget(self, loader: int) -> None:
        """Forget a loader from which no more batches can be drawn."""
        self._left.pop(loader, None)
        self._companions.discard(loader)

    def doubt(self, *, over: bool) -> str | None:
        """Why epochs cannot be told apart by the steps so far (by all steps if the training is `over`), or None."""
        if self._tangled:
            return TANGLED
        length = None if self.current is None else self.current.length
        if self.current is not None and not self._trained:
            limit = FEW_STEPS
        elif length is None or not self.found:  # many steps may be made on each batch
            limit = STEPS_WITHOUT_BATCHES
        else:
            limit = max(2 * length, FEW_STEPS, 2 * self._gap)
        lost = self.idle > limit and not self.pending
        return NO_PASSES if lost or self._looks >= FEW_STEPS or (over and not self.found) else None

    def _know(self, before: Draw | None, step: Step) -> None:
        """Remember a step that changed nothing."""
        current = self.current
        undecided = self.pending or self._first or self.shared is not None
        new = undecided or before is None or current is None or before.epoch != current.epoch
        if new or len(self._known) >= FEW_STEPS:
            self._known.clear()
        if not new:
            self._known[id(step)] = _Known(step, on_primary=not self.idle)

    def _read(self, number: int, step: Step) -> None:
        """Read a step, for the first time or again with another primary."""
        current = self.current
        if current is None:
            if step.fed:
                self._follow(step.fed[-1])
            else:
                self.idle += 1
                self._looks += step.looked
            return
        if step.ended or step.gone:
            current = self.current = current.aged(step)
            self._rivals = {loader: rival.aged(step) for loader, rival in self._rivals.items()}
        own = self._own(current, step)
        if own is None:
            self._read_elsewhere(current, number, step)
        elif self.pending and self._was_a_phase(current, own):
            self._succeed(current)
            self._read(number, step)
        else:
            self._read_on_primary(current, own, number, step)

    def _own(self, current: Draw, step: Step) -> Draw | None:
        """The draw from the primary that the step is on; None if the step is not on the primary."""
        for own in step.draws:
            if own.loader == current.loader:
                break
        else:
            return None
        begun = current.ended and not own.ended
        if not (own.feeds or begun or own.epoch[0] == current.epoch[0]):
            return None
        if own.ended:
            later = step.draws[step.draws.index(own) :]
            if any(other in later for other in self._others(current, step)):
                return None  # the last batches of the pass led to no step: this step is on what was drawn after them
        return own

    def _others(self, current: Draw, step: Step) -> list[Draw]:
        """The draws that the step may be on, from loaders not known to be drawn from in turn with the primary."""
        known = self._companions
        return [draw for draw in step.fed if draw.loader != current.loader and draw.loader not in known]

    def _read_on_primary(self, before: Draw, own: Draw, number: int, step: Step) -> None:
        if self.pending:
            self._companions.update(self._rivals)
            self._understood()
            self.several = True
        if self._first and len(step.fed) > 1:
            self.several = True
            if step.fed[0].loader != own.loader:
                own = before = step.fed[0]
                self._follow(own)
        self._first = False
        self.shared = None
        if own.epoch != before.epoch:
            if own.epoch[0] != before.epoch[0] and before.only_looked_at:
                self._looks += 1
            else:
                self._tangled |= self._left.get(own.loader) == own.epoch
                self._left[own.loader] = before.epoch
                self._repeated = not self._companions
                self._starts.append(number)
        elif len(step.fed) > 1 and any(not other.several for other in self._others(own, step)):
            self.shared = number, step
        self._count(own)

    def _read_elsewhere(self, current: Draw, number: int, step: Step) -> None:
        self.idle += 1
        others = self._others(current, step)
        if not others:
            return
        rival = min(others, key=_has_ended)
        if self.shared is not None and not self.pending:
            self._suspect(*self.shared, rival.loader)
        self.shared = None
        # An earlier epoch was ended too early if its loader goes on with it, or returns although it must not.
        self._tangled |= self._left.get(rival.loader, ()) in (None, rival.epoch)
        succeeded = self._succeeds(rival) or (current.ended and current.gone)
        self._rivals[rival.loader] = rival
        pair = self._elsewhere, step
        self._elsewhere = step
        if pair not in self._followed:
            self._followed.add(pair)
            self.pending.append((number, step))
        if succeeded:
            self._succeed(current)

    def _suspect(self, number: int, step: Step, loader: int) -> None:
        """A step that was counted as one on the primary may have been on this other loader: make the step pending."""
        for draw in step.fed:
            if draw.loader == loader:
                self._rivals[loader] = draw
                self.pending.append((number, step))
                self._elsewhere = step

    def _succeeds(self, rival: Draw) -> bool:
        """Whether this draw shows that the first of the rivals has become the primary."""
        if not self._rivals:
            return False
        first = next(iter(self._rivals.values()))
        before = self._rivals.get(rival.loader)
        if before is None:
            return first.done
        if before.epoch == rival.epoch:
            return False
        if before.only_looked_at:
            self._looks += 1
            return False
        # A rival that is drawn from in turn with the primary begins no second pass before the primary is drawn from.
        self._tangled |= rival.loader != first.loader
        return rival.loader == first.loader

    def _was_a_phase(self, current: Draw, own: Draw) -> bool:
        """Whether the pending steps were a phase of their own between two epochs of the primary, which is back."""
        rival = self.rival
        assert rival is not None
        return self._repeated and own.epoch != current.epoch and rival.done and not rival.only_looked_at

    def _succeed(self, current: Draw) -> None:
        """Make the loader of the first pending step the primary from that step on."""
        (number, first), *later = self.pending
        gone = current.ended and current.gone
        if gone and current.only_looked_at:
            self._looks += 1
        else:
            self._starts.append(number)
        if gone:
            self._left.pop(current.loader, None)
        else:
            self._left[current.loader] = current.epoch if self._repeated else None
        loader = next(iter(self._rivals))
        self._follow(next(draw for draw in first.fed if draw.loader == loader))
        self._first = False
        for number, step in later:
            self._read(number, step)

    def _follow(self, draw: Draw) -> None:
        """Make this draw's loader the primary from now on."""
        self._first, self._repeated = True, False
        self._companions = set()
        self.idle = self._gap = 0
        self._understood()
        self._count(draw)

    def _count(self, own: Draw) -> None:
        """Count a step on the primary."""
        self._gap, self.idle = max(self._gap, self.idle), 0
        self.current = own
        self._trained |= own.training
        if own.is_a_pass:
            self.found, self._looks = True, 0

    def _understood(self) -> None:
        """Drop the pending steps, which are understood now."""
        self.pending.clear()
        self._rivals.clear()
        self._followed.clear()
        self._elsewhere = None


def _has_ended(draw: Draw) -> bool:
    return draw.ended
