"""What is known with certainty of an epoch's losses: a function of its training steps and its evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mlflow_dynamics.recording.criterion import CRITERIA

Data = tuple[int, ...]
"""The numbers of the data that a pass draws; all loaders that draw the whole of one data set have the same numbers."""

TERMS: Final = (
    "backward is not called on the value of one criterion on the model's output alone, nor on that of one which the "
    f"model calls and returns, of those that are known ({', '.join(CRITERIA)})"
)
CLOSURE: Final = "the optimizer's steps run the model in a closure"
REPEATED: Final = (
    "backward is called more than once on a batch, and which of the values is the loss is not known"
)
LOADED: Final = "the weights evaluated were loaded after the last step"
IN_TRAINING_MODE: Final = "the model is evaluated in training mode"
UNDRAWN: Final = "what is evaluated is not drawn from a DataLoader of its own"
FOREIGN: Final = (
    "a criterion is evaluated on what another model returned, or on what is made of the output, and no model returned "
    "its value"
)
UNSEEN: Final = "no known criterion is called on the model's output in evaluation"

_MIXED: Final = "different criteria are differentiated in one epoch"
_OTHER_TERMS: Final = (
    "the training loss is not a known criterion's value alone, nor may the validation loss be"
)
_SEVERAL: Final = "more than one criterion value is computed on a batch"
_PART: Final = "the data evaluated is not drawn to its end"
_TRAINED: Final = "the data evaluated is the data trained on"
_ATTACKED: Final = "backward is called on what is evaluated"
_GAPS: Final = "not on every batch evaluated a known criterion is called, on what the model returned"
_ANEW: Final = (
    "the data set evaluated is not known to be that of the earlier epochs; keep one object for all epochs"
)
_NO_CLASSES: Final = "the criterion's targets are not one class for each sample"
_OUTPUTS: Final = "which of the values that the model returned is its answer is not known"


@dataclass(frozen=True)
class Unknown:
    """Why something is not known with certainty."""

    reason: str


@dataclass(frozen=True)
class Mean:
    """A sum over samples, and the number of these samples."""

    total: float = 0.0
    samples: float = 0.0


@dataclass(frozen=True)
class StepKind:
    """What is known of a training step's losses, beside their values; most steps of an epoch are of one kind.

    Attributes:
        criteria: names of the criteria on whose values backward was called.
        unknown: why the step's loss is not known; None if it is.
        other_terms: backward was called on something that is no known criterion's value.
        data: the data trained on; None if they were drawn from no DataLoader.
        unseen: an earlier step of the epoch was not seen, so the loss of that step is not known.
    """

    criteria: frozenset[str] = frozenset()
    unknown: str | None = None
    other_terms: bool = False
    data: Data | None = None
    unseen: bool = False


@dataclass(frozen=True)
class Steps:
    """The training steps of an epoch: the kinds of steps, in the order of their first steps, and the mean loss."""

    kinds: tuple[StepKind, ...] = ()
    loss: Mean = Mean()


@dataclass(frozen=True)
class Evaluation:
    """A pass over data without training steps on the data.

    Attributes:
        data: the data drawn.
        criteria: names of the criteria that were evaluated.
        loss: the mean of the criteria's values.
        accuracy: the mean over the batches whose targets are classes.
        complete: no batch of the loader is left out.
        gaps: some batches have no value.
        attacked: backward was called on a value, so the pass is not only an evaluation.
        several: a batch had more than one value.
        rated: accuracy is that of the model's only output, counted once for each batch.
    """

    data: Data
    criteria: frozenset[str]
    loss: Mean
    accuracy: Mean
    complete: bool = True
    gaps: bool = False
    attacked: bool = False
    several: bool = False
    rated: bool = True


@dataclass(frozen=True)
class EpochLosses:
    """The means of an epoch, or why they are not known; None where there is nothing to know.

    Attributes:
        train: the mean training loss.
        validation: the mean validation loss.
        accuracy: the mean validation accuracy.
        data: the validation data of all epochs, or why they are not known; None if no epoch has decided that yet.
    """

    train: Mean | Unknown | None
    validation: Mean | Unknown | None
    accuracy: Mean | Unknown | None
    data: Data | Unknown | None


def losses(
    steps: Steps,
    evaluations: Sequence[Evaluation],
    *,
    data: Data | Unknown | None = None,
    rejected: str | None = None,
) -> EpochLosses:
    """What is known with certainty of the losses of an epoch.

    Args:
        steps: the epoch's training steps.
        evaluations: the epoch's evaluations, in the order in which they began.
        data: what an earlier epoch decided about the validation data; None if none has.
        rejected: why a value that was evaluated is not a validation loss; None if no value was rejected.
    """
    criteria = frozenset[str]().union(*(kind.criteria for kind in steps.kinds))
    train = _training(steps, criteria)
    chosen: Evaluation | Unknown | None = None if rejected is None else Unknown(rejected)
    if evaluations:
        chosen, data = _chosen(steps, evaluations, data)
    if not isinstance(chosen, Evaluation):
        return EpochLosses(train, chosen, chosen, data)
    reason = _why_unknown(steps, criteria, chosen)
    accuracy: Mean | Unknown = chosen.accuracy
    if chosen.accuracy.samples != chosen.loss.samples:
        accuracy = Unknown(_NO_CLASSES)
    elif (
        not chosen.rated and reason is not None
    ):  # only a loss that is certain tells which of several outputs is judged
        accuracy = Unknown(_SEVERAL if chosen.several else _OUTPUTS)
    return EpochLosses(
        train,
        _mean(chosen.loss) if reason is None else Unknown(reason),
        _mean(accuracy) if isinstance(accuracy, Mean) else accuracy,
        data,
    )


def _mean(mean: Mean) -> Mean | None:
    return mean if mean.samples else None


def _training(steps: Steps, criteria: frozenset[str]) -> Mean | Unknown | None:
    unknown = next((kind.unknown for kind in steps.kinds if kind.unknown), None)
    if unknown is None and criteria:
        unknown = _MIXED if len(criteria) > 1 else None
        late = any(kind.unseen for kind in steps.kinds)
        return Unknown(unknown) if unknown else None if late else _mean(steps.loss)
    return Unknown(unknown or TERMS)


def _chosen(
    steps: Steps, evaluations: Sequence[Evaluation], data: Data | Unknown | None
) -> tuple[Evaluation | Unknown, Data | Unknown | None]:
    """The pass over the validation data: the only data evaluated in the first epoch that evaluates any."""
    trained = [set(kind.data) for kind in steps.kinds if kind.data is not None]
    # Left out: the data trained on, a part of them, and the whole of which they are a part.
    others = [
        one for one in evaluations if not any(set(one.data) <= its or set(one.data) >= its for its in trained)
    ]
    last = {one.data: one for one in others if one.complete and not one.attacked}
    if not last:
        attacked = any(one.attacked for one in others)
        return Unknown(_ATTACKED if attacked else _PART if others else _TRAINED), data
    if data is None and len(last) > 1:
        data = Unknown(
            f"{len(last)} data sets are evaluated in an epoch, and which of them is the validation set is not known"
        )
    if isinstance(data, Unknown):
        return data, data
    if data is None:
        (data,) = last
    if data not in last:
        return Unknown(_ANEW), data
    return (Unknown(_GAPS) if last[data].gaps else last[data]), data


def _why_unknown(steps: Steps, criteria: frozenset[str], evaluation: Evaluation) -> str | None:
    """Why the pass may not give what the script calls its validation loss; None if the pass does."""
    if not criteria or any(kind.other_terms for kind in steps.kinds):
        return _OTHER_TERMS
    if evaluation.several:
        return _SEVERAL
    if evaluation.criteria != criteria:
        return f"{_named(evaluation.criteria)} evaluated, {_named(criteria)} trained"
    return None


def _named(criteria: frozenset[str]) -> str:
    return f"{' and '.join(sorted(criteria))} {'is' if len(criteria) == 1 else 'are'}"
