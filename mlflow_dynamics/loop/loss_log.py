"""A log of a model's criterion calls, kept by step until an epoch is cut from the log.

All values stay on the device until then.
"""

from __future__ import annotations

import logging
from array import array
from bisect import bisect_left
from collections import defaultdict
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from mlflow_dynamics.loop import losses
from mlflow_dynamics.loop.evaluated_pass import EvaluatedPass, Key, Moment, Timed, repeats
from mlflow_dynamics.loop.losses import Data, EpochLosses, Mean, StepKind, Steps, Unknown
from mlflow_dynamics.loop.passes import Pass
from mlflow_dynamics.recording.criterion import Call

logger = logging.getLogger(__name__)

CHUNK: Final = 256
"""The number of values that are kept as tensors of their own before they are joined into one tensor."""

_NEVER: Final = (-1, -1)


class StepValues:
    """The values that backward was called on, each with a few numbers in host memory and two on the device."""

    def __init__(self) -> None:
        self._steps = array("q")
        self._samples = array("q")
        self._if_finite = array("b")
        self._chunks: list[Tensor] = []
        self._open: list[tuple[int, int, bool, Tensor, Tensor | None]] = []

    def add(self, step: int, call: Call, *, if_finite: bool) -> None:
        """Add a call's value to the step's values; with `if_finite` it counts only if finite. Waits for nothing."""
        if len(self._open) == CHUNK:
            self._flush()
        self._open.append((step, call.samples, if_finite, call.total, call.ignored))

    def take(self, end: int) -> Mean:
        """Remove the values of the steps before `end`, and return their mean. Waits for the device."""
        self._flush()
        count = bisect_left(self._steps, end)
        rows = torch.cat([chunk.cpu() for chunk in self._chunks]) if self._chunks else torch.empty(0, 2)
        self._chunks = [rows[count:].clone()] if count < len(rows) else []
        total, left_out = rows[:count].double().numpy().T
        samples = np.array(self._samples[:count], dtype=float)
        unfit = np.array(self._if_finite[:count], dtype=bool) & ~np.isfinite(total)
        for column in (self._steps, self._samples, self._if_finite):
            del column[:count]
        counted = samples - np.where(unfit, samples, left_out)
        return Mean(float(np.where(unfit, 0.0, total).sum()), float(counted.sum()))

    def _flush(self) -> None:
        if self._open:
            steps, samples, if_finite, totals, ignored = zip(*self._open, strict=True)
            self._steps.extend(steps)
            self._samples.extend(samples)
            self._if_finite.extend(if_finite)
            nothing = torch.zeros_like(totals[0])
            left_out = [nothing if one is None else one for one in ignored]
            columns = [
                torch.stack([one.to(nothing.device) for one in column]) for column in (totals, left_out)
            ]
            self._chunks.append(torch.stack(columns, dim=1))
            self._open = []


class LossLog:
    """The losses of one model, which hears of its backward passes, its steps and its evaluations.

    Several backward passes before a step are gradient accumulation, unless two are on one batch (adversarial training,
    sharpness-aware minimisation). A skipped step leaves the same trace, whoever skips it and however gradients are
    zeroed. So the last of several values before a step always counts; each of the others counts only if it is finite.
    """

    def __init__(self) -> None:
        self._made = 0
        self._told: set[str] = set()
        self._data: Data | Unknown | None = None
        self._latest: Key = _NEVER
        self._trained: Data | None = None
        self._unseen = False
        self.forget()

    def forget(self) -> None:
        """Drop the open epoch."""
        self._kinds: list[StepKind] = []
        self._last_facts: tuple[object, ...] | None = None
        self._values = StepValues()
        self._passes: defaultdict[Data, list[EvaluatedPass]] = defaultdict(list)
        self._rejected: list[tuple[int, str]] = []
        self._possible_start = 0
        self._backwards: list[Timed] = []
        self._batch_repeated = self._other_terms = False
        self._stepped: Key = _NEVER

    @property
    def evaluations(self) -> list[EvaluatedPass]:
        """The last evaluation of each data set in the open epoch."""
        return [passes[-1] for passes in self._passes.values()]

    def begin_late(self) -> None:
        """An earlier step of the open epoch was not seen, so the loss of that step is not known."""
        self._unseen = True

    def differentiated(self, call: Call | None, drawn: Pass | None) -> None:
        """Backward was called, on the value of `call` or (None) on something else, after `drawn`'s latest batch."""
        moment = Moment.of(drawn)
        if moment.epoch != self._latest:
            self.no_step()
            self._other_terms = False
        self._latest = moment.epoch
        self._trained = None if drawn is None else drawn.data
        if call is None:
            self._other_terms = True
            return
        if call.evaluating:
            for one in self.evaluations:
                one.attacked |= one.drawn is drawn
        self._batch_repeated = self._batch_repeated or repeats(call, moment, self._backwards)
        self._backwards.append(Timed(call, moment))

    def evaluated(self, call: Call, drawn: Pass) -> None:
        """A criterion was evaluated in evaluation mode, on a batch of this pass.

        A pass over some of the batches does not replace a complete pass. Nor does a second evaluation replace the first
        if no step was made in between: the script may have changed the weights or the data by hand.
        """
        passes = self._passes[drawn.data]
        if not passes or passes[-1].drawn.serial != drawn.serial:
            recent = []
            # Passes before a step that may have begun an epoch are kept: they may be the last ones of the epoch before.
            while passes and passes[-1].after > self._possible_start:
                recent.append(passes.pop())
            passes += [one for one in recent if one.complete][:1]
            if passes and passes[-1].complete and passes[-1].after == self._made:
                return
            passes.append(EvaluatedPass(drawn, self._made))
        passes[-1].add(call, self._made)

    def evaluation_rejected(self, reason: str) -> None:
        """A criterion was evaluated, but its value is not a validation loss, for this reason."""
        if self._rejected and self._rejected[-1][0] > self._possible_start:
            del self._rejected[-1]
        self._rejected.append((self._made, reason))

    def step(self, optimizer: Optimizer, *, closure: bool, perhaps_begins: bool, settled: bool) -> None:
        """A step is made on the values differentiated since the last step; those of a closure are still to come.

        Args:
            optimizer: the optimizer that makes the step.
            closure: the step runs the model itself, in a closure.
            perhaps_begins: the step may turn out later to be the first one of an epoch.
            settled: no step since the open epoch began may turn out later to be the first one of an epoch.
        """
        if perhaps_begins:
            self._possible_start = self._made
        elif settled:
            self._possible_start = self._made - len(self._kinds)
        self._made += 1
        scaled = hasattr(optimizer, "found_inf")  # a fused optimizer skips its step by itself
        unknown = losses.CLOSURE if closure else losses.TERMS if self._other_terms else None
        names = [timed.call.criterion for timed in self._backwards]
        facts = names, unknown, self._other_terms, self._trained, self._unseen, self._batch_repeated
        if facts != self._last_facts or not self._kinds:
            self._last_facts = facts
            kind = StepKind(frozenset(), unknown, self._other_terms, self._trained, self._unseen)
            self._kinds.append(self._with_criteria(kind))
        else:  # most steps are of one kind: all of them share one object
            self._kinds.append(self._kinds[-1])
        self._take(all_finite=scaled)
        self._stepped = self._latest
        self._other_terms = self._unseen = False

    def no_step(self) -> None:
        """No step will follow the values differentiated since the last step; they count if their pass had a step."""
        if self._kinds and self._backwards and self._backwards[0].moment.epoch == self._stepped:
            self._kinds[-1], self._last_facts = self._with_criteria(self._kinds[-1]), None
            self._take(all_finite=True)
        self._backwards.clear()
        self._batch_repeated = False

    def close(self, late: int, *, evaluated: bool) -> dict[str, tuple[float, float]]:
        """Cut off an epoch, and return its means that are known with certainty, as (sum, samples) each.

        Waits for the device once.

        Args:
            late: the number of steps already made that belong to the next epoch.
            evaluated: the model was in evaluation mode in the epoch.
        """
        end = self._made - late
        kinds = self._kinds[: len(self._kinds) - late]
        rejected = [reason for made, reason in self._rejected if made <= end] or [losses.UNSEEN] * evaluated
        found = losses.losses(
            Steps(tuple({id(kind): kind for kind in kinds}.values()), self._values.take(end)),
            [one.evaluation(end) for passes in self._passes.values() for one in _last(passes, end)],
            data=self._data,
            rejected=rejected[-1] if rejected else None,
        )
        del self._kinds[: len(kinds)]
        for data, passes in list(self._passes.items()):
            self._passes[data] = [one for one in passes if one.after > end]
            if not self._passes[data]:
                del self._passes[data]
        self._rejected = [one for one in self._rejected if one[0] > end]
        self._data = found.data
        self._tell(found)
        means = {
            "train_loss": found.train,
            "validation_loss": found.validation,
            "validation_accuracy": found.accuracy,
        }
        return {key: (mean.total, mean.samples) for key, mean in means.items() if isinstance(mean, Mean)}

    def _with_criteria(self, kind: StepKind) -> StepKind:
        """The kind of a step, with the criteria that were differentiated since the last step."""
        criteria = kind.criteria.union(timed.call.criterion for timed in self._backwards)
        unknown = kind.unknown or (losses.REPEATED if self._batch_repeated else None)
        return replace(kind, criteria=criteria, unknown=unknown)

    def _take(self, *, all_finite: bool) -> None:
        """Add the values differentiated to the last step."""
        last = self._backwards[-1] if self._backwards else None
        for timed in self._backwards:
            self._values.add(self._made - 1, timed.call, if_finite=all_finite or timed is not last)
        self._backwards.clear()
        self._batch_repeated = False

    def _tell(self, found: EpochLosses) -> None:
        """Log once for each mean why it is left out of the run."""
        which = {
            "training loss": found.train,
            "validation loss": found.validation,
            "validation accuracy": found.accuracy,
        }
        for reason in dict.fromkeys(one.reason for one in which.values() if isinstance(one, Unknown)):
            names = [name for name, one in which.items() if one == Unknown(reason) and name not in self._told]
            if names:
                self._told.update(names)
                logger.info(
                    "The %s %s not logged: %s. Log %s with mlflow.log_metric, or with tracker.end_epoch of "
                    "mlflow_dynamics.track(model).",
                    " and the ".join(names),
                    "is" if len(names) == 1 else "are",
                    reason,
                    "it" if len(names) == 1 else "them",
                )


def _last(passes: list[EvaluatedPass], end: int) -> list[EvaluatedPass]:
    """Of the passes that began before the epoch's end, the last complete one and any after it."""
    before_end = [one for one in passes if one.after <= end]
    return before_end[max((place for place, one in enumerate(before_end) if one.complete), default=0) :]
