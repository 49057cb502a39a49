"""A pass of evaluation while it goes on: the sums of its criterion calls, batch by batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from mlflow_dynamics.loop.losses import Evaluation, Mean
from mlflow_dynamics.loop.passes import Pass
from mlflow_dynamics.recording.criterion import Call

Key = tuple[int, int] | None


class Moment(NamedTuple):
    """Where the loaders were: the epoch of the pass drawn from last, and how often that pass was asked for a batch."""

    epoch: Key
    asked: Key

    @staticmethod
    def of(drawn: Pass | None) -> Moment:
        """The moment after the last batch drawn."""
        return (
            Moment(None, None) if drawn is None else Moment(drawn.latest.epoch, (drawn.serial, drawn.asked))
        )


class Timed(NamedTuple):
    """A call, and when it was evaluated or differentiated."""

    call: Call
    moment: Moment


def repeats(call: Call, moment: Moment, earlier: list[Timed]) -> bool:
    """Whether the call repeats an earlier one, on the same batch.

    Two calls repeat each other if no batch was asked for between them, except where they are on pieces of one batch.
    Two calls on the same target or output repeat each other even if a thread draws batches ahead.
    """
    if earlier and (call.on_target_of(earlier[-1].call) or call.on_output_of(earlier[-1].call)):
        return True
    for before in reversed(earlier):
        if before.moment != moment:
            return False
        if not call.beside(before.call):
            return True
    return False


@dataclass
class RunningMean:
    """A sum over samples, kept on the device, and the number of samples."""

    samples: int = 0
    total: Tensor | float = 0.0
    left_out: Tensor | float = 0.0

    def add(self, total: Tensor, samples: int, ignored: Tensor | None) -> None:
        """Add a sum over so many samples, except those ignored."""
        self.samples += samples
        self.total = self.total + total
        if ignored is not None:
            self.left_out = self.left_out + ignored

    def value(self) -> Mean:
        """The mean so far; waits for the device."""
        return Mean(float(self.total), self.samples - float(self.left_out))


@dataclass(eq=False)
class EvaluatedPass:
    """A pass over a loader without training steps on its batches.

    Attributes:
        drawn: the pass.
        after: the number of training steps made before the pass's first value.
        until: the number of training steps made before the pass's last value.
        attacked, several, rated, criteria: as in `Evaluation`.
    """

    drawn: Pass
    after: int
    until: int = 0
    attacked: bool = False
    several: bool = False
    rated: bool = True
    criteria: set[str] = field(default_factory=set)
    _loss: RunningMean = field(default_factory=RunningMean)
    _accuracy: RunningMean = field(default_factory=RunningMean)
    _last: list[Timed] = field(default_factory=list)
    _batches: int = 0

    @property
    def complete(self) -> bool:
        """Whether no batch of the loader is left out."""
        return not self.attacked and (self.drawn.exhausted or self.drawn.at_epoch_end)

    @property
    def unfinished(self) -> bool:
        """Whether batches are left that may still be drawn."""
        return not (self.complete or self.attacked or self.drawn.ended)

    def add(self, call: Call, made: int) -> None:
        """Add the call on a batch, after `made` training steps."""
        moment = Moment.of(self.drawn)
        same_batch = [timed for timed in self._last if timed.moment == moment]
        another_piece = any(call.beside(timed.call) for timed in same_batch)
        if self.drawn.exhausted and self._batches >= self.drawn.drawn and not another_piece:
            return  # the call is on something else, which is evaluated after the pass
        self.until = made
        if repeats(call, moment, self._last):
            self.several = True
            self.rated = self.rated and call.on_output_of(self._last[-1].call)
            return
        self.rated = self.rated and call.alone
        self._batches += not another_piece
        # All calls on one batch if it is taken in pieces; otherwise only the last call.
        self._last = [*same_batch, Timed(call, moment)]
        self.criteria.add(call.criterion)
        self._loss.add(call.total, call.samples, call.ignored)
        if call.correct is not None:
            self._accuracy.add(call.correct, call.samples, call.ignored)

    def evaluation(self, end: int) -> Evaluation:
        """The pass as an evaluation of the epoch that ended after `end` steps; waits for the device."""
        drawn = self.drawn
        expected = drawn.drawn if drawn.length is None or drawn.exhausted else drawn.length
        return Evaluation(
            data=drawn.data,
            criteria=frozenset(self.criteria),
            loss=self._loss.value(),
            accuracy=self._accuracy.value(),
            complete=self.complete,
            gaps=self._batches != expected or self.until > end,
            attacked=self.attacked,
            several=self.several,
            rated=self.rated,
        )
