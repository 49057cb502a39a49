"""What is known of one epoch's losses: the training loss so far, and each pass of evaluation.

All sums stay on the device until the epoch ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from mlflow_dynamics.recording.criterion import Call
from mlflow_dynamics.recording.loaders import Pass

Key = tuple[int, int] | None


class Mean:
    """Sum and number of samples, the sum on the device."""

    def __init__(self) -> None:
        self.samples = 0
        self._total: Tensor | None = None
        self._left_out: Tensor | None = None

    def add(self, total: Tensor, samples: int, *, ignored: Tensor | None, if_finite: bool = False) -> None:
        """Add the sum over so many but those ignored; on request not where it is infinite or NaN.

        Waits for nothing to see.
        """
        left_out = ignored
        if if_finite:
            finite = total.nan_to_num(0.0, 0.0, 0.0)
            left_out = torch.where(finite == total, 0 if ignored is None else ignored, samples)
            total = finite
        if left_out is not None:
            self._left_out = left_out if self._left_out is None else self._left_out + left_out
        self._total = total if self._total is None else self._total + total
        self.samples += samples

    def join(self, later: Mean) -> None:
        """Add all that another one has."""
        if later._total is not None:
            self.add(later._total, later.samples, ignored=None)
        if later._left_out is not None:
            self._left_out = later._left_out if self._left_out is None else self._left_out + later._left_out

    def result(self) -> tuple[float, float] | None:
        """Sum and samples, None of none; waits for the device."""
        samples = self.samples - (0 if self._left_out is None else float(self._left_out))
        return None if self._total is None or samples == 0 else (float(self._total), samples)


class Moment(NamedTuple):
    """Where the loaders were: in which epoch of which pass, and how often that was asked for a batch."""

    epoch: Key
    asked: Key

    @staticmethod
    def of(drawn: Pass | None) -> Moment:
        """After the last batch drawn."""
        return Moment(None, None) if drawn is None else Moment(drawn.epoch_key, (drawn.serial, drawn.asked))


class Timed(NamedTuple):
    """A call, and when it was evaluated or differentiated."""

    call: Call
    moment: Moment


def repeats(call: Call, moment: Moment, earlier: list[Timed]) -> bool:
    """Whether the call is on a batch on which an earlier one was.

    It is if no batch was asked for in between, but for pieces of one batch. Where a thread draws batches ahead, the
    target may still tell.
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
class Validation:
    """One pass over a loader without steps.

    Attributes:
        drawn: the pass.
        after: so many steps of the training.
        attacked: backward was called on a value: it is no evaluation alone.
        several: a batch had more than one value.
        rated: accuracy is that of the model's only output, once for each batch.
    """

    drawn: Pass
    after: int
    attacked: bool = False
    loss: Mean = field(default_factory=Mean)
    accuracy: Mean = field(default_factory=Mean)
    criteria: set[str] = field(default_factory=set)
    several: bool = False
    rated: bool = True
    _last: list[Timed] = field(default_factory=list)
    _batches: int = 0

    @property
    def complete(self) -> bool:
        """Whether no batch of the loader is left out."""
        return not self.attacked and (self.drawn.exhausted or self.drawn.at_an_end)

    @property
    def gaps(self) -> bool:
        """Whether of some batches no value is known."""
        drawn = self.drawn
        return self._batches != (drawn.drawn if drawn.length is None or drawn.exhausted else drawn.length)

    @property
    def unfinished(self) -> bool:
        """Whether batches are left that may still come."""
        return not (self.complete or self.attacked or self.drawn.over)

    def add(self, call: Call, moment: Moment) -> None:
        """Add a batch."""
        same_batch = [timed for timed in self._last if timed.moment == moment]
        another_piece = any(call.beside(timed.call) for timed in same_batch)
        if self.drawn.exhausted and self._batches >= self.drawn.drawn and not another_piece:
            return  # of something else, evaluated after the pass
        if repeats(call, moment, self._last):
            self.several = True
            self.rated = self.rated and call.on_output_of(self._last[-1].call)
            return
        self.rated = self.rated and call.alone
        self._batches += not another_piece
        # Those of one batch that is taken in pieces; else the last alone.
        self._last = [*same_batch, Timed(call, moment)]
        self.criteria.add(call.criterion)
        self.loss.add(call.total, call.samples, ignored=call.ignored)
        if call.correct is not None:
            self.accuracy.add(call.correct, call.samples, ignored=call.ignored)

    def join(self, later: Validation) -> None:
        """Go on with what was added to another one of the same pass."""
        self.attacked |= later.attacked
        self.several |= later.several
        self.rated &= later.rated
        self.criteria |= later.criteria
        self.loss.join(later.loss)
        self.accuracy.join(later.accuracy)
        self._last = later._last
        self._batches += later._batches


@dataclass
class Epoch:
    """What is known of the open epoch.

    Attributes:
        unknown: why there is no training loss.
        late: not all of its batches are known.
        other_terms: something else than a criterion's value was differentiated.
        in_vain: why a value that was evaluated is none of the validation's.
        criteria: those that were.
        trained: the data they were of.
        validation: of each data set that was evaluated, its last complete pass and any after it.
    """

    train: Mean = field(default_factory=Mean)
    unknown: str | None = None
    late: bool = False
    other_terms: bool = False
    in_vain: str | None = None
    criteria: set[str] = field(default_factory=set)
    trained: set[tuple[int, ...]] = field(default_factory=set)
    validation: dict[tuple[int, ...], list[Validation]] = field(default_factory=dict)

    def trained_on(self, data: tuple[int, ...]) -> bool:
        """Whether this is what was trained on, or the whole of which that was a part, or a part of it."""
        return any(set(data) <= set(trained) or set(data) >= set(trained) for trained in self.trained)

    def evaluated_in(self, drawn: Pass, steps: int) -> Validation | None:
        """What is known of this pass, perhaps a new one, after so many steps; None where it is not the script's first.

        A look at some batches takes no complete pass's place, nor does another evaluation without a step in between:
        the weights may have been changed by hand, or the data.
        """
        passes = self.validation.setdefault(drawn.data, [])
        if not passes or passes[-1].drawn.serial != drawn.serial:
            passes[:] = [one for one in passes if one.complete][-1:]
            if passes and passes[0].after == steps:
                return None
            passes.append(Validation(drawn, steps))
        return passes[-1]

    def join(self, later: Epoch) -> None:
        """Go on with what was taken for another epoch."""
        self.unknown = self.unknown or later.unknown
        self.late |= later.late
        self.other_terms |= later.other_terms
        self.in_vain = later.in_vain or self.in_vain
        self.criteria |= later.criteria
        self.trained |= later.trained
        self.train.join(later.train)
        for data, passes in later.validation.items():
            earlier = self.validation.setdefault(data, [])
            if earlier and earlier[-1].drawn.serial == passes[0].drawn.serial:
                earlier[-1].join(passes.pop(0))
            earlier.extend(passes)
