"""What a model's criterion calls of an epoch come to: training loss, validation loss and accuracy, where certain.

All sums stay on the device until the epoch ends. What is left out is said once.
"""

from __future__ import annotations

import logging
from typing import Final

from torch.optim import Optimizer

from mlflow_dynamics.recording.criterion import CRITERIA, Call
from mlflow_dynamics.recording.epoch_losses import Epoch, Key, Moment, Timed, Validation, repeats
from mlflow_dynamics.recording.loaders import Pass

logger = logging.getLogger(__name__)

LOADED: Final = "the weights evaluated were loaded after the last step"
IN_TRAINING_MODE: Final = "the model is evaluated in training mode"
UNDRAWN: Final = "what is evaluated is not drawn from a DataLoader of its own"
FOREIGN: Final = "a criterion is evaluated on what another model returned, or on what is made of the output"

_TERMS: Final = (
    "backward is not called on the value of one criterion on the model's output alone, of those that are known ("
    + ", ".join(CRITERIA)
    + ")"
)
_CLOSURE: Final = "the optimizer's steps run the model in a closure"
_AGAIN: Final = (
    "backward is called more than once on a batch, and which of the values is the loss is not known"
)
_MIXED: Final = "different criteria are differentiated in one epoch"
_OTHER_TERMS: Final = (
    "the training loss is not a known criterion's value alone, nor may the validation loss be"
)
_UNSEEN: Final = "no known criterion is called on the model's output in evaluation"
_SEVERAL: Final = "more than one criterion value is computed on a batch"
_PART: Final = "the data evaluated is not drawn to its end"
_TRAINED: Final = "the data evaluated is the data trained on"
_ATTACKED: Final = "backward is called on what is evaluated"
_GAPS: Final = "not on every batch evaluated a known criterion is called, on what the model returned"
_ANEW: Final = (
    "the data set evaluated is not known to be that of the earlier epochs; keep one object for all epochs"
)

_NEVER: Final = (-1, -1)


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
        self._steps = 0
        self._latest: Key = _NEVER
        self._stepped: Key = _NEVER
        self._data: tuple[int, ...] | None = None
        self._validation: tuple[int, ...] | None = None
        self._ambiguous = False
        self._told: set[str] = set()

    @property
    def evaluations(self) -> list[Validation]:
        """The last evaluation of each data set in the open epoch."""
        return [passes[-1] for passes in self._open.validation.values()]

    def begin_late(self) -> None:
        """A step of the open epoch was made before, and its loss is not known."""
        self._open.late = True

    def differentiated(self, call: Call | None, drawn: Pass | None) -> None:
        """Backward was called on a criterion's value, or (None) on something else, after this batch was drawn."""
        moment = Moment.of(drawn)
        if moment.epoch != self._latest:
            self.no_step()
            self._other = False
        self._latest = moment.epoch
        self._data = None if drawn is None else drawn.data
        if call is not None and call.evaluating:
            for evaluated in self.evaluations:
                evaluated.attacked |= evaluated.drawn is drawn
        if call is None:
            self._other = True
            return
        self._again = self._again or repeats(call, moment, self._backwards)
        self._backwards.append(Timed(call, moment))

    def evaluated(self, call: Call, drawn: Pass) -> None:
        """A criterion was evaluated in evaluation mode, on a batch of this pass."""
        pass_ = self._open.evaluated_in(drawn, self._steps)
        if pass_ is not None:
            pass_.add(call, Moment.of(drawn))

    def evaluated_in_vain(self, reason: str) -> None:
        """A criterion was evaluated, but not as a validation loss is."""
        self._open.in_vain = reason

    def step(self, optimizer: Optimizer, *, closure: bool) -> None:
        """Take what was differentiated since the last step into the open epoch; a closure's is still to come."""
        self._steps += 1
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

    def close(self, *, before_part: bool, evaluated: bool) -> dict[str, tuple[float, float]]:
        """Begin a new epoch; what is known with certainty of the last one, as (sum, samples) each.

        Waits for the device once.

        Args:
            before_part: the new one began where `part` was called, not now.
            evaluated: the model was.
        """
        if before_part and self._before is not None:
            epoch, self._before = self._before, None
        else:
            self.rejoin()
            epoch, self._open = self._open, Epoch()
        found: dict[str, tuple[float, float] | None] = {}
        unknown = epoch.unknown or (_MIXED if len(epoch.criteria) > 1 else None)
        if unknown is None and epoch.criteria:
            found["train_loss"] = None if epoch.late else epoch.train.result()
        else:
            self._tell("training", unknown or _TERMS)
        if not epoch.validation and (evaluated or epoch.in_vain is not None):
            self._tell("validation", epoch.in_vain or _UNSEEN)
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
            epoch.train.add(call.total, call.samples, ignored=call.ignored, if_finite=all_finite or not last)
        self._backwards.clear()
        self._again = False

    def _validation_of(self, epoch: Epoch) -> Validation | None:
        """The pass over the validation data: the only ones evaluated in the first epoch that evaluates any."""
        others = {data: passes for data, passes in epoch.validation.items() if not epoch.trained_on(data)}
        whole = {data: [one for one in passes if one.complete] for data, passes in others.items()}
        evaluated = {data: passes[-1] for data, passes in whole.items() if passes}
        if epoch.validation and not evaluated:
            attacked = any(one.attacked for passes in others.values() for one in passes)
            self._tell("validation", _ATTACKED if attacked else _PART if others else _TRAINED)
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
        validation = evaluated[self._validation]
        if validation.gaps:
            self._tell("validation", _GAPS)
            return None
        return validation

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
