"""Where one epoch ends and the next begins, read from what torch tells."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from mlflow_dynamics.loop.events import (
    Backward,
    BatchDrawn,
    Event,
    LoaderGone,
    Mode,
    PassEnded,
    Stepped,
)
from mlflow_dynamics.loop.reading import Reading
from mlflow_dynamics.loop.steps import Window


@dataclass(frozen=True, slots=True)
class Segmentation:
    """The epochs of a training, as far as its log tells them.

    Attributes:
        starts: the number of the first step of each epoch that has begun; the first step is number 0.
        primary: the number of the loader whose passes are the epochs.
        open_from: the first step that may not belong to the last of these epochs; None if all steps are understood.
        complete: every batch of the last of these epochs was drawn, as far as the loader's length is known.
        doubt: why epochs cannot be told apart; None if they can.
    """

    starts: tuple[int, ...]
    primary: int | None
    open_from: int | None
    complete: bool
    doubt: str | None


def segment(log: Iterable[Event], *, over: bool = False) -> Segmentation:
    """Read the epochs from the log of a training that goes on, or is `over`."""
    finder, starts = EpochFinder(), [0]
    for event in log:
        starts += finder.hear(event)
    if over:
        starts += finder.conclude()
    return Segmentation(
        starts=tuple(starts) if finder.steps else (),
        primary=finder.primary,
        open_from=finder.open_from,
        complete=finder.complete,
        doubt=finder.doubt,
    )


class EpochFinder:
    """Reads a log while it grows, as `segment` does, in the same time for each step, however long the log is.

    The end of an epoch is known at the first step of the next epoch or later. So a pass without steps (validation) is
    no epoch.

    Attributes:
        steps: the number of steps made so far.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._window = Window()
        self._reading = Reading()
        self._over = False
        # The number of the batch drawn last in the primary's pass when the last step on the primary was made.
        self._stepped_on = 0
        # The ends heard since the last batch or step, kept until then: Python frees iterators at any moment, in any
        # thread.
        self._ends: deque[PassEnded | LoaderGone] = deque()
        self._gone: list[int] = []

    def hear(self, event: Event) -> list[int]:
        """Read the next event of the log, and return the first step of each epoch now known to have begun."""
        if isinstance(event, BatchDrawn):
            self.batch(event, training=self._window.training)
        elif isinstance(event, Stepped):
            return self._step()
        elif isinstance(event, Backward):
            self.backward()
        elif isinstance(event, Mode):
            self._window.training = event.training
        else:
            self.end(event)
        return []

    def batch(self, drawn: BatchDrawn, *, training: bool) -> None:
        """A batch was drawn. `training`: gradients are enabled and the model is in training mode."""
        if self._ends:
            self._take_ends()
        self._window.training = training
        self._window.batch(drawn)

    def backward(self) -> None:
        """Backward was called."""
        self._window.backwards += 1

    def end(self, event: PassEnded | LoaderGone) -> None:
        """A pass or a loader has ended: told at any moment and in any thread."""
        if isinstance(event, PassEnded):
            known = self._window.knows_pass(event.pass_)
        else:
            known = self._window.knows_loader(event.loader) or self._reading.knows(event.loader)
        if known:
            self._ends.append(event)

    def step(self) -> tuple[int, ...]:
        """A step is about to be made.

        Returns, for each epoch that is now known to be over, the number of steps already made that belong to the next
        epoch.
        """
        made, starts = self.steps, self._step()
        return tuple([made - start for start in starts]) if starts else ()

    def conclude(self) -> list[int]:
        """The training is over. Returns the first step of each epoch that is only now known to have begun."""
        self._over = True
        self._take_ends()
        return self._reading.conclude(looked=self._looked)

    def finish(self, *, whole: bool = True) -> tuple[int, ...]:
        """The training is over. Returns the epochs that are over, as `step` does; the last one only if `whole`."""
        if whole:
            return (*(self.steps - start for start in self.conclude()), 0)
        self._take_ends()
        starts = self._reading.conclude(looked=self._looked) if self._passed else []
        return tuple([self.steps - start for start in starts])

    def ending(self, *, whole: bool) -> tuple[tuple[int, ...], str | None]:
        """What `finish` would return now, and the doubt after it. The training may go on afterwards."""
        ended = copy.copy(self)
        ended._reading = copy.copy(self._reading)
        return ended.finish(whole=whole), ended.doubt

    @property
    def primary(self) -> int | None:
        """The number of the loader whose passes are the epochs."""
        current = self._reading.current
        return None if current is None else current.loader

    @property
    def length(self) -> int | None:
        """The number of batches of one pass over the primary, where that is known."""
        current = self._reading.current
        return None if current is None else current.length

    @property
    def several(self) -> bool:
        """Whether other loaders are drawn from in turn with the primary."""
        return self._reading.several

    @property
    def open_from(self) -> int | None:
        """The first step that may not belong to the open epoch; None if all steps are understood."""
        pending = self._reading.pending
        return pending[0][0] if pending else None

    @property
    def perhaps_begins(self) -> bool:
        """Whether it may turn out later that an epoch began with the last step."""
        if self._reading.shared is not None:
            return True
        pending = self._reading.pending
        if not pending or pending[-1][0] != self.steps - 1:
            return False
        epochs = [[draw.epoch for draw in step.fed] for _, step in pending[-2:]]
        return len(epochs) == 1 or epochs[0] != epochs[1]

    def goes_on(self, drawn: BatchDrawn) -> bool:
        """Whether this batch is one of the open epoch."""
        current = self._reading.current
        return current is not None and drawn.epoch == current.epoch

    @property
    def complete(self) -> bool:
        """Whether every batch of the open epoch has been drawn, as far as its length is known."""
        current = self._reading.current
        if current is None or current.length is None:
            return True
        return self._window.number(current) >= (current.epoch[1] + 1) * current.length

    @property
    def ended(self) -> bool:
        """Whether the open epoch is over, even if no other epoch begins: no more batches can be drawn in it."""
        current = self._reading.current
        if current is None or not self._reading.found or self.open_from is not None or self.doubt is not None:
            return False
        self._take_ends()
        return self._window.ended(current) or (current.length is not None and self.complete)

    @property
    def whole(self) -> bool:
        """Whether the pass of the open epoch, or the pass trained on after it, is known to have come to its end."""
        self._take_ends()
        rival = self._reading.rival
        if rival is None or self._looked:
            return self._passed
        at_epoch_end = rival.length is not None and self._window.number(rival) % rival.length == 0
        return self._window.exhausted(rival) or at_epoch_end

    @property
    def doubt(self) -> str | None:
        """Why epochs cannot be told apart by the steps so far (by all steps once the training is over), or None."""
        return self._reading.doubt(over=self._over)

    @property
    def _passed(self) -> bool:
        """Whether the primary's pass came to its end: no batch was left, or a step was made after the last batch."""
        current = self._reading.current
        if current is None:
            return False
        counted = current.length is not None and self._stepped_on == self._window.number(current)
        return self._window.exhausted(current) or (counted and self.complete)

    @property
    def _looked(self) -> bool:
        """Whether only one batch of several was drawn from the loader that was trained on last."""
        rival = self._reading.rival
        return rival is not None and rival.length != 1 and self._window.number(rival) == 1

    def _step(self) -> list[int]:
        if self._ends:
            self._take_ends()
        reading, window = self._reading, self._window
        before, pending = reading.current, len(reading.pending)
        starts = reading.read(self.steps, window.step())
        self.steps += 1
        current = reading.current
        if current is None:
            return starts
        if before is None or current.epoch != before.epoch or pending != len(reading.pending):
            window.watch(reading.watched)
        if not reading.idle:
            self._stepped_on = window.number(current)
        if self._gone and not reading.pending:
            for loader in self._gone:
                reading.forget(loader)
            self._gone.clear()
        return starts

    def _take_ends(self) -> None:
        """Tell the window which passes and loaders have ended."""
        while self._ends:
            event = self._ends.popleft()
            if isinstance(event, PassEnded):
                self._window.pass_ended(event)
            else:
                self._window.loader_gone(event)
                if self._reading.knows(event.loader):
                    self._gone.append(event.loader)
