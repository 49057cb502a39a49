"""What a model's criterion calls of an epoch come to: training loss, validation loss and accuracy, where certain.

All sums stay on the device until the epoch ends. What is left out is said once.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from mlflow_dynamics.recording.criterion import Call
from mlflow_dynamics.recording.loaders import Pass

logger = logging.getLogger(__name__)

_TERMS: Final = "backward is not called on one criterion's value on the model's output alone"
_CLOSURE: Final = "the optimizer's steps run the model in a closure"
_AGAIN: Final = (
    "backward is called more than once on a batch, and which of the values is the loss is not known"
)
_MIXED: Final = "different criteria are differentiated in one epoch"
_OTHER_TERMS: Final = (
    "the training loss has other terms than a criterion's value, and so may the validation loss"
)
_SEVERAL: Final = "more than one criterion value is computed on a batch"
_TRAINED: Final = "the data evaluated is the data trained on"
_ANEW: Final = (
    "the data set evaluated is not known to be that of the earlier epochs; keep one object for all epochs"
)

Key = tuple[int, int] | None
_NEVER: Final = (-1, -1)


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
        other_terms: something else than a criterion's value was differentiated.
        criteria: those that were.
        trained: the data they were of.
        validation: of each data set that was evaluated, its last pass.
    """

    train: Mean = field(default_factory=Mean)
    unknown: str | None = None
    other_terms: bool = False
    criteria: set[str] = field(default_factory=set)
    trained: set[tuple[int, ...]] = field(default_factory=set)
    validation: dict[tuple[int, ...], Validation] = field(default_factory=dict)

    def join(self, later: Epoch) -> None:
        """Go on with what was taken for another epoch."""
        self.unknown = self.unknown or later.unknown
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


class Losses:
    """The losses of one model, told of its backward passes, its steps and its evaluations.

    Backward passes before a step are gradient accumulation, unless two are on one batch (adversarial training,
    sharpness-aware minimisation). A step that was skipped looks the same, whoever skips it and however gradients are
    zeroed: so of several values before a step all but the last, whose step it is, count only if they are finite.
    """

    def __init__(self) -> None:
        self._open = Epoch()
        self._before: Epoch | None = None
        self._backwards: list[Timed] = []
        self._again = False
        self._other = False
        self._latest: Key = _NEVER
        self._stepped: Key = _NEVER
        self._data: tuple[int, ...] | None = None
        self._validation: tuple[int, ...] | None = None
        self._ambiguous = False
        self._told: set[str] = set()

    def differentiated(self, call: Call | None, drawn: Pass | None) -> None:
        """Backward was called on a criterion's value, or (None) on something else, after this batch was drawn."""
        moment = Moment.of(drawn)
        if moment.epoch != self._latest:
            self.no_step()
            self._other = False
        self._latest = moment.epoch
        self._data = None if drawn is None else drawn.data
        if call is None:
            self._other = True
            return
        self._again = self._again or repeats(call, moment, self._backwards)
        self._backwards.append(Timed(call, moment))

    def evaluated(self, call: Call, drawn: Pass, *, only_output: bool) -> None:
        """A criterion was evaluated without gradients, on a batch of this pass; a new pass replaces an earlier one."""
        pass_ = self._open.validation.get(drawn.data)
        if pass_ is None or pass_.serial != drawn.serial:
            pass_ = self._open.validation[drawn.data] = Validation(drawn.serial)
        pass_.add(call, Moment.of(drawn))
        pass_.rated = pass_.rated and only_output

    def step(self, optimizer: Optimizer, *, closure: bool) -> None:
        """Take what was differentiated since the last step into the open epoch; a closure's is still to come."""
        if closure:
            self._open.unknown = self._open.unknown or _CLOSURE
        if self._other:
            self._open.unknown = self._open.unknown or _TERMS
            self._open.other_terms = True
        scaled = hasattr(optimizer, "found_inf")  # a fused optimizer skips its step by itself
        self._take(all_finite=scaled)
        self._stepped = self._latest
        self._other = False
        if self._data is not None:
            self._open.trained.add(self._data)

    def no_step(self) -> None:
        """No step will follow what was differentiated since the last one; it counts if its pass had steps."""
        if self._backwards and self._backwards[0].moment.epoch == self._stepped:
            self._take(all_finite=True)
        self._backwards.clear()
        self._again = False

    def forget(self) -> None:
        """Drop the open epoch."""
        self._open, self._before = Epoch(), None
        self._backwards.clear()
        self._again = self._other = False
        self._stepped = _NEVER

    def part(self) -> None:
        """Perhaps a new epoch begins: keep what comes apart from what came before."""
        self._before, self._open = self._open, Epoch()

    def rejoin(self) -> None:
        """No new epoch began at `part`."""
        if self._before is not None:
            self._before.join(self._open)
            self._open, self._before = self._before, None

    def close(self, *, before_part: bool) -> dict[str, tuple[float, int]]:
        """Begin a new epoch; what is known with certainty of the last one, as (sum, samples) each.

        Waits for the device once.

        Args:
            before_part: the new one began where `part` was called, not now.
        """
        if before_part and self._before is not None:
            epoch, self._before = self._before, None
        else:
            self.rejoin()
            epoch, self._open = self._open, Epoch()
        found: dict[str, tuple[float, int] | None] = {}
        unknown = epoch.unknown or (_MIXED if len(epoch.criteria) > 1 else None)
        if unknown is None and epoch.criteria:
            found["train_loss"] = epoch.train.result()
        else:
            self._tell("training", unknown or _TERMS)
        validation = self._validation_of(epoch)
        if validation is not None:
            reason = _why_unknown(epoch, validation)
            if reason is None:
                found["validation_loss"] = validation.loss.result()
            else:
                self._tell("validation", reason)
            # Of several outputs only a certain loss tells which one is judged.
            if (
                validation.rated or reason is None
            ) and validation.accuracy.samples == validation.loss.samples:
                found["validation_accuracy"] = validation.accuracy.result()
        return {key: value for key, value in found.items() if value is not None}

    def _take(self, *, all_finite: bool) -> None:
        epoch = self._open
        if self._again:
            epoch.unknown = epoch.unknown or _AGAIN
        for place, (call, _) in enumerate(self._backwards, 1):
            epoch.criteria.add(call.criterion)
            last = place == len(self._backwards)
            epoch.train.add(call.total, call.samples, if_finite=all_finite or not last)
        self._backwards.clear()
        self._again = False

    def _validation_of(self, epoch: Epoch) -> Validation | None:
        """The pass over the validation data: the only ones evaluated in the first epoch that evaluates any."""
        evaluated = {data: found for data, found in epoch.validation.items() if data not in epoch.trained}
        if epoch.validation and not evaluated:
            self._tell("validation", _TRAINED)
        if self._ambiguous or not evaluated:
            return None
        if self._validation is None:
            if len(evaluated) > 1:
                self._ambiguous = True
                self._tell(
                    "validation",
                    f"{len(evaluated)} data sets are evaluated in an epoch, and which of them is the validation set "
                    "is not known",
                )
                return None
            (self._validation,) = evaluated
        if self._validation not in evaluated:
            self._tell("validation", _ANEW)
            return None
        return evaluated[self._validation]

    def _tell(self, which: str, reason: str) -> None:
        if which not in self._told:
            self._told.add(which)
            logger.info("The %s loss is not logged: %s.", which, reason)


def _why_unknown(epoch: Epoch, validation: Validation) -> str | None:
    """Why the pass is not known to give what the script calls its validation loss."""
    if epoch.other_terms or not epoch.criteria:
        return _OTHER_TERMS
    if validation.several:
        return _SEVERAL
    if validation.criteria != epoch.criteria:
        return f"{', '.join(sorted(validation.criteria))} is evaluated, {', '.join(sorted(epoch.criteria))} trained"
    return None
