"""Says in a sentence how a run ended, and says only what the numbers show in every kind of training."""

from __future__ import annotations

import math
import re
from typing import Final

import pandas as pd

from mlflow_dynamics.convergence.plateau import PLATEAU_TOLERANCE, PLATEAU_WINDOW, fraction_of
from mlflow_dynamics.report.history import RunHistory
from mlflow_dynamics.text import printable
from mlflow_dynamics.tracking import names

LEARNT_ACCURACY: Final = 0.02
"""A rise of validation accuracy since the first epoch that is smaller than this does not count as a rise."""

LEARNT_LOSS: Final = 0.02
"""A fall of the training loss by a smaller part of its first value than this does not count as a fall."""

GUESSED: Final = 0.6
"""A network with a higher accuracy has learnt something, in this training or before, for any number of classes."""


COLLAPSED: Final = 0.05
"""A last validation accuracy that lies further below the best one is told."""

ELSEWHERE: Final = re.compile(
    r"(?i)(val|valid|validation|eval|test)[^a-z]*(acc|top)|(acc|accuracy)[^a-z]*(val|eval|test)"
)
"""How others name validation accuracy."""


def verdict(history: RunHistory) -> str:
    """Return one or two sentences on how a run ended.

    They say that the run diverged, still trains, does not learn, has a best epoch, or does not log validation accuracy.
    """
    if not history.metrics:
        return "No epoch is recorded."
    frame = history.frame.set_index("epoch")
    accuracy, loss = (_series(frame, key) for key in (names.VALIDATION_ACCURACY, names.TRAIN_LOSS))
    diverged = history.diverging_epoch
    if diverged is not None and not _recovered(diverged, frame, accuracy, loss):
        return _divergence(history, diverged)
    said = _progress(history, accuracy) or _not_learning(accuracy, loss) or _result(history, accuracy)
    if diverged is not None:
        said += f" Training had diverged at epoch {diverged}, and recovered."
    if history.same_order:
        said += (
            " The data come in the same order each epoch, because step by step the layers repeat what they did; unless "
            "that is meant, shuffle them anew each epoch."
        )
    return said + _gap(frame, accuracy)


def _series(frame: pd.DataFrame, key: str) -> pd.Series:
    """Return the finite values of a metric, with the epochs as index."""
    if key not in frame:
        return pd.Series(dtype=float)
    return frame[key].astype(float).replace([math.inf, -math.inf], math.nan).dropna()


def _recovered(diverged: int, frame: pd.DataFrame, accuracy: pd.Series, loss: pd.Series) -> bool:
    """Whether a run ended better than it was before it diverged."""
    if names.TRAIN_LOSS in frame and frame.index[-1] not in loss.index:
        return False
    if not accuracy.empty:
        return bool(accuracy.idxmax() > diverged)
    before = loss[loss.index < diverged]
    return not before.empty and bool(loss.iloc[-1] < before.min())


def _divergence(history: RunHistory, epoch: int) -> str:
    row = next((row for row in history.metrics if row["epoch"] == epoch), {})
    if math.isfinite(row.get(names.TRAIN_LOSS, 0.0)):
        return f"Diverged at epoch {epoch}."
    first = ""
    if history.first_not_finite is not None:
        layer, step = history.first_not_finite
        first = f", and {layer} was the first layer that is not, at training step {step}"
    return f"Diverged at epoch {epoch}: the training loss is not finite{first}."


def _progress(history: RunHistory, accuracy: pd.Series) -> str | None:
    """Return the sentence on a run that still trains; None for other runs."""
    if not history.running:
        return None
    epochs = len(history.metrics)
    planned = history.definitions.get("warning/planned_epochs", "")
    known = planned.isdecimal() and int(planned) >= epochs
    said = f"Cannot tell yet: {epochs} of {planned} epochs" if known else f"Cannot tell yet: {_count(epochs)}"
    return f"{said}." if accuracy.empty else f"{said}; best {_at_best(accuracy)}."


def _not_learning(accuracy: pd.Series, loss: pd.Series) -> str | None:
    """Return the sentence on a run whose training loss and validation accuracy are as in its first epoch; else None.

    Validation accuracy counts only if it is logged.
    """
    if len(loss) < 3 or loss.iloc[0] <= 0 or loss.min() < (1 - LEARNT_LOSS) * loss.iloc[0]:
        return None
    if accuracy.empty:
        return (
            f"Not learning: the training loss is {loss.iloc[-1]:.3g} after {_count(len(loss))}, "
            f"and was {loss.iloc[0]:.3g} in the first."
        )
    if accuracy.max() > min(accuracy.iloc[0] + LEARNT_ACCURACY, GUESSED):
        return None
    return f"Not learning: validation accuracy {accuracy.iloc[-1]:.3f} after {_count(len(accuracy))}."


def _result(history: RunHistory, accuracy: pd.Series) -> str:
    epochs = len(history.metrics)
    if accuracy.empty:
        return _without_accuracy(history)
    told = pd.Series(fraction_of(accuracy.to_numpy()), accuracy.index)
    lost = told.max() - told.iloc[-1]
    said = f"Best validation accuracy {_at_best(accuracy)} of {epochs}"
    after = int((accuracy.index > accuracy.idxmax()).sum())
    if len(accuracy) <= PLATEAU_WINDOW:
        return f"{said}; too few epochs to tell whether it is flat."
    if after:
        said += (
            "; the last epoch gained nothing" if after == 1 else f"; the last {after} epochs gained nothing"
        )
    if lost > COLLAPSED:
        return f"{said}, and it ended {100 * lost:.1f} points lower."
    if history.plateau is not None:
        return f"{said}; first within half a point of it (median of 5 epochs) at epoch {history.plateau}."
    gained = told.iloc[-PLATEAU_WINDOW:].max() - told.iloc[:-PLATEAU_WINDOW].max()
    if gained > PLATEAU_TOLERANCE and not after:
        said += f"; still rising, by {100 * gained:.1f} points in the last {PLATEAU_WINDOW} epochs"
    return f"{said}."


def _without_accuracy(history: RunHistory) -> str:
    """Return the sentence on a run without validation accuracy: what is logged in its place."""
    frame = history.frame
    said = f"Validation accuracy is not logged: {_count(len(history.metrics))} of training"
    loss = _series(frame, names.VALIDATION_LOSS if names.VALIDATION_LOSS in frame else names.TRAIN_LOSS)
    if len(loss) > 1:
        which = "validation" if names.VALIDATION_LOSS in frame else "training"
        said += f", {which} loss {loss.iloc[0]:.3g} in the first and {loss.iloc[-1]:.3g} in the last"
    elsewhere = [str(key) for key in frame if ELSEWHERE.search(str(key)) and key != names.VALIDATION_ACCURACY]
    if elsewhere:
        said += f" (log {printable(elsewhere[0])} as {names.VALIDATION_ACCURACY} to have it judged)"
    return f"{said}."


def _gap(frame: pd.DataFrame, accuracy: pd.Series) -> str:
    """Say how far training accuracy lies above validation accuracy in the best epoch, if by a point or more."""
    if accuracy.empty or names.TRAIN_ACCURACY not in frame:
        return ""
    best = accuracy.idxmax()
    both = frame.loc[best, [names.TRAIN_ACCURACY, names.VALIDATION_ACCURACY]].to_numpy(dtype=float)
    train, validation = fraction_of(both)
    gap = 100 * (train - validation)
    if not gap >= 1:
        return ""
    return f" Training accuracy lies {gap:.1f} points above it there."


def _at_best(accuracy: pd.Series) -> str:
    return f"{accuracy.max():.3f} at epoch {int(accuracy.idxmax())}"


def _count(epochs: int) -> str:
    return "1 epoch" if epochs == 1 else f"{epochs} epochs"
