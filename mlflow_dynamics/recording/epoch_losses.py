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

    def add(self, total: Tensor, samples: int, *, if_finite: bool = False) -> None:
        """Add the sum over so many; on request not where it is infinite or NaN, without waiting to see."""
        if if_finite:
            if self._left_out is None:
                self._left_out = torch.zeros((), dtype=torch.int64, device=total.device)
            finite = total.nan_to_num(0.0, 0.0, 0.0)
            self._left_out.add_(finite != total, alpha=samples)
            total = finite
        self._total = total if self._total is None else self._total + total
        self.samples += samples

    def join(self, later: Mean) -> None:
        """Add all that another one has."""
        if later._total is not None:
            self.add(later._total, later.samples)
        if later._left_out is not None:
            self._left_out = later._left_out if self._left_out is None else self._left_out + later._left_out

    def result(self) -> tuple[float, int] | None:
        """Sum and samples, None of none; waits for the device."""
        samples = self.samples - (0 if self._left_out is None else int(self._left_out))
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
        serial: of the pass.
        several: a batch had more than one value.
        rated: accuracy is that of the model's only output, once for each batch.
    """

    serial: int
    loss: Mean = field(default_factory=Mean)
    accuracy: Mean = field(default_factory=Mean)
    criteria: set[str] = field(default_factory=set)
    several: bool = False
    rated: bool = True
    _last: list[Timed] = field(default_factory=list)

    def add(self, call: Call, moment: Moment) -> None:
        """Add a batch."""
        if repeats(call, moment, self._last):
            self.several = True
            self.rated = self.rated and call.on_output_of(self._last[-1].call)
            return
        # Those of one batch that is taken in pieces; else the last alone.
        self._last = [*(timed for timed in self._last if timed.moment == moment), Timed(call, moment)]
        self.criteria.add(call.criterion)
        self.loss.add(call.total, call.samples)
        if call.correct is not None:
            self.accuracy.add(call.correct, call.samples)

    def join(self, later: Validation) -> None:
        """Go on with what was added to another one of the same pass."""
        self.several |= later.several
        self.rated &= later.rated
        self.criteria |= later.criteria
        self.loss.join(later.loss)
        self.accuracy.join(later.accuracy)
        self._last = later._last


@dataclass
class Epoch:
    """What is known of the open epoch.

    Attributes:
        unknown: why there is no training loss.
        late: not all of its batches are known.
        other_terms: something else than a criterion's value was differentiated.
        criteria: those that were.
        trained: the data they were of.
        validation: of each data set that was evaluated, its last pass.
    """

    train: Mean = field(default_factory=Mean)
    unknown: str | None = None
    late: bool = False
    other_terms: bool = False
    criteria: set[str] = field(default_factory=set)
    trained: set[tuple[int, ...]] = field(default_factory=set)
    validation: dict[tuple[int, ...], Validation] = field(default_factory=dict)

    def join(self, later: Epoch) -> None:
        """Go on with what was taken for another epoch."""
        self.unknown = self.unknown or later.unknown
        self.late |= later.late
        self.other_terms |= later.other_terms
        self.criteria |= later.criteria
        self.trained |= later.trained
        self.train.join(later.train)
        for data, pass_ in later.validation.items():
            earlier = self.validation.get(data)
            if earlier is not None and earlier.serial == pass_.serial:
                earlier.join(pass_)
            else:
                self.validation[data] = pass_
