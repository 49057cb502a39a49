"""Where one epoch ends and the next begins, from batches drawn, backward passes and steps made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from mlflow_dynamics.recording.draws import Drawn, Draws, feeding
from mlflow_dynamics.recording.loaders import Pass

STEPS_WITHOUT_BATCHES: Final = 1000
"""After so many steps (or two epochs' worth) without a batch from a DataLoader, epochs are not to be inferred."""

FEW_STEPS: Final = 8
"""So many steps without a batch, or each on a pass of its own, say nothing yet."""

NO_PASSES: Final = "its training steps make no passes over a DataLoader, so epochs are unknown"
TANGLED: Final = "it is trained on several DataLoaders in an order that tells no epochs"


@dataclass(slots=True)
class _Rivalry:
    """Steps on another loader than the primary, not yet understood.

    Attributes:
        latest: pass over the other loader.
        key: of the epoch of that pass.
        steps: since it was first drawn from.
        joined: still other loaders that were drawn from meanwhile, and the epochs of theirs.
    """

    latest: Pass
    key: tuple[int, int]
    steps: int = 0
    joined: dict[int, tuple[int, int]] = field(default_factory=dict)


class EpochFinder:
    """Groups the training steps of one model into epochs: passes over the loader whose batches it is trained on.

    An epoch is closed lazily, by the first step of the next one, so that passes without steps (validation)
    make none. Of several loaders the primary one counts: that which was drawn from last before the first step;
    of loaders drawn together (zipped), the first.

    A step on another loader alone is understood only afterwards. Where the primary is drawn from again, they are
    drawn in turn, and the primary goes on to count. Where the other one begins a second pass, or the primary can
    make no other, the epoch was over before that step: it is then closed late, cut there.

    Attributes:
        primary: identity of the loader that counts.
        length: batches of one pass over it, where known.
        several: other loaders are drawn in turn with it.
    """

    def __init__(self) -> None:
        self.primary: int | None = None
        self.length: int | None = None
        self.several = False
        self._draws = Draws()
        self.batch = self._draws.batch
        self.backward = self._draws.backward
        # Of the primary: its latest pass, the open epoch's key, the batches drawn at its last step, and whether this
        # was its first one and whether it made an epoch alone.
        self._current: Pass
        self._open: tuple[int, int]
        self._counted = 0
        self._first = True
        self._repeated = False
        self._companions: set[int] = set()
        self._rivalry: _Rivalry | None = None
        # Loaders that may return, but not in the epoch that was closed; None: not at all, as that was their only one.
        self._left: dict[int, tuple[int, int] | None] = {}
        self._tangled = False
        self._trained = False
        self._found = False
        self._over = False
        self._alone = 0
        self._idle = 0
        self._gap = 0

    def step(self) -> tuple[int, ...]:
        """A training step is about to be made: the epochs now known to be over.

        Each is given by how many of the steps before this one came after it: 0, or `undecided` as it was.
        """
        window = self._draws.take()
        fed = feeding(window)
        if self.primary is None:
            if fed:
                self._follow(fed[-1])
                self._count(window)
            else:
                self._idle += 1
                self._alone += any(drawn.origin.lone for drawn in window)
            return ()
        own = self._own(window)
        late: tuple[int, ...] = ()
        rivalry = self._rivalry
        if rivalry is not None and self._succeeded(rivalry, own, fed):
            late = (rivalry.steps,)
            self._leave()
            self._follow(rivalry.latest, rivalry.key)
            own = self._own(window)
        others = [one for one in fed if one.loader != self.primary and one.loader not in self._companions]
        if own is not None and own.over:
            # The last batches of a pass may have made no step, and the next pass be over another loader.
            order = [drawn.origin.loader for drawn in window]
            after = order[order.index(own.loader) :]
            others = [one for one in others if one.loader in after]
            own = None if others else own
        if own is not None:
            return late + self._on_primary(own, window, fed)
        return late + self._elsewhere(min(others, key=lambda one: one.over, default=None))

    def finish(self) -> tuple[int, ...]:
        """Training is over: the epochs that are, as of `step`."""
        self._over = True
        rivalry = self._rivalry
        if rivalry is None or (rivalry.latest.drawn == 1 and rivalry.latest.length != 1):
            return (0,)
        self._tangled |= bool(rivalry.joined)
        return (rivalry.steps, 0)

    @property
    def undecided(self) -> int:
        """The steps of which it is not known whether the open epoch was over before them."""
        return 0 if self._rivalry is None else self._rivalry.steps

    def goes_on(self, drawn: Pass) -> bool:
        """Whether this batch is one of the open epoch."""
        return self.primary is not None and drawn is self._current and drawn.epoch_key == self._open

    @property
    def complete(self) -> bool:
        """Whether every batch of the open epoch has been drawn, as far as its length is known."""
        if self.primary is None or self.length is None:
            return True
        return self._current.drawn >= (self._open[1] + 1) * self.length

    @property
    def ended(self) -> bool:
        """Whether the open epoch is over, even if no other one begins: nothing more can be drawn in it."""
        if not self._found or self._rivalry is not None or self.doubt is not None:
            return False
        return self._current.over or (self.length is not None and self.complete)

    @property
    def whole(self) -> bool:
        """Whether the open epoch is known to be complete, with a step after its last batch."""
        if self.primary is None or self._counted != self._current.drawn:
            return False
        return self._current.exhausted if self.length is None else self.complete

    @property
    def doubt(self) -> str | None:
        """Why no epoch can be inferred from the steps so far, or from all of them once `finish` was called."""
        if self._tangled:
            return TANGLED
        if self.primary is not None and not self._trained:
            limit = FEW_STEPS
        elif self.length is None or not self._found:  # many steps may be made on each batch
            limit = STEPS_WITHOUT_BATCHES
        else:
            limit = max(2 * self.length, FEW_STEPS, 2 * self._gap)
        lost = self._rivalry is None and self._idle > limit
        lost = lost or self._alone >= FEW_STEPS or (self._over and not self._found)
        return NO_PASSES if lost else None

    def _own(self, window: list[Drawn]) -> Pass | None:
        """The pass over the primary that was drawn from, unless merely to evaluate."""
        for drawn in window:
            if drawn.origin.loader == self.primary:
                begun = self._current.over and not drawn.origin.over
                return drawn.origin if drawn.feeds or begun or drawn.origin is self._current else None
        return None

    def _succeeded(self, rivalry: _Rivalry, own: Pass | None, fed: list[Pass]) -> bool:
        """Whether the other loader has taken the primary's place."""
        rival = rivalry.latest
        if self._current.last:
            return True
        if own is not None:  # back: a phase between others, if the primary alone has made epochs before
            return own.epoch_key != self._open and self._repeated and rival.done and not rival.lone
        for one in fed:
            if one.loader == rival.loader:
                goes_on = one.epoch_key != rivalry.key and not rival.lone
            else:
                goes_on = (
                    rival.done and one.loader not in self._companions and one.loader not in rivalry.joined
                )
            if goes_on:
                return True
        return False

    def _on_primary(self, own: Pass, window: list[Drawn], fed: list[Pass]) -> tuple[int, ...]:
        """A step on a batch of the primary."""
        if self._rivalry is not None:
            self._companions.update((self._rivalry.latest.loader, *self._rivalry.joined))
            self._rivalry, self.several = None, True
        if self._first and len(fed) > 1:
            self.several = True
            if fed[0].loader != self.primary:
                own = fed[0]
                self._follow(own)
        self._first = False
        before, previous = self._open, self._current
        self._current, self._open, self.length = own, own.epoch_key, own.length
        self._count(window)
        if before == self._open:
            return ()
        if previous is not own and previous.lone:
            self._alone += 1
            return ()
        if self._left.get(own.loader) == self._open:
            self._tangled = True
            return ()
        self._left[own.loader] = before
        self._repeated = not self._companions
        return (0,)

    def _elsewhere(self, rival: Pass | None) -> tuple[int, ...]:
        """A step on no batch of the primary, perhaps on another loader's."""
        self._idle += 1
        rivalry = self._rivalry
        if rival is None:
            pass
        elif self._left.get(rival.loader, ()) in (None, rival.epoch_key):
            self._tangled = True  # an epoch was closed that was not over
        elif rivalry is None and self._current.last:
            lone = self._current.lone
            self._alone += lone
            self._leave()
            self._follow(rival)
            return () if lone else (0,)
        elif rivalry is None:
            self._rivalry = _Rivalry(rival, rival.epoch_key)
        elif rival.loader == rivalry.latest.loader:
            self._alone += rival is not rivalry.latest and rivalry.latest.lone
            rivalry.latest, rivalry.key = rival, rival.epoch_key
        else:
            # One of several in turn, unless it begins another pass before they are drawn from again.
            self._tangled |= rivalry.joined.setdefault(rival.loader, rival.epoch_key) != rival.epoch_key
        if self._rivalry is not None:
            self._rivalry.steps += 1
        return ()

    def _leave(self) -> None:
        """Let the primary go."""
        if self._current.last:
            self._left.pop(self._current.loader, None)
        else:
            self._left[self._current.loader] = self._open if self._repeated else None

    def _follow(self, one: Pass, key: tuple[int, int] | None = None) -> None:
        """Let this loader be the primary from now on."""
        self.primary, self.length = one.loader, one.length
        self._current, self._open = one, key or one.epoch_key
        self._first, self._repeated, self._companions, self._rivalry = True, False, set(), None
        self._idle = self._gap = 0

    def _count(self, window: list[Drawn]) -> None:
        """A batch of the primary was drawn."""
        self._gap, self._idle = max(self._gap, self._idle), 0
        self._counted = self._current.drawn
        self._trained |= any(drawn.training for drawn in window if drawn.origin.loader == self.primary)
        if self._current.drawn > 1 or self._current.length == 1 or self._current.exhausted:
            self._found, self._alone = True, 0
