"""The stopping rules that the early warning is compared with, as functions of a run's curves.

Every rule takes one value for each epoch and returns the epoch (from 0) after which it would have stopped, or None.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlflow_dynamics.errors import ConfigError, unknown_choice

STRIP: Final = 5
"""The number of epochs in one of Prechelt's training strips."""


def patience_stop(
    values: ArrayLike,
    *,
    patience: int,
    mode: Literal["min", "max"],
    min_delta: float = 0.0,
    semantics: Literal["keras", "lightning"] = "keras",
) -> int | None:
    """Stop when `values` has not improved by more than `min_delta` for `patience` epochs in a row.

    Both frameworks count an epoch without improvement from 1 and stop once the count reaches the patience, so 0
    and 1 mean the same. They differ in values that are not finite: Lightning (check_finite=True) stops at once,
    Keras counts NaN as no improvement.

    Args:
        values: (epochs,) the metric that is watched.
        patience: the number of epochs, 0 or more.
        mode: whether an improvement is a lower ("min") or a higher ("max") value.
        min_delta: an improvement must exceed it.
        semantics: the framework whose rule is applied.

    Raises:
        ConfigError: an unknown mode or semantics, or a negative patience.
    """
    if mode not in ("min", "max"):
        raise unknown_choice("mode", mode, ("min", "max"))
    if semantics not in ("keras", "lightning"):
        raise unknown_choice("semantics", semantics, ("keras", "lightning"))
    if patience < 0:
        raise ConfigError(f"patience={patience!r} must be 0 or more epochs.")
    sign = 1.0 if mode == "max" else -1.0
    best = -np.inf
    waited = 0
    for epoch, value in enumerate(sign * np.asarray(values, dtype=np.float64)):
        if semantics == "lightning" and not np.isfinite(value):
            return epoch
        if value - abs(min_delta) > best:
            best, waited = value, 0
            continue
        waited += 1
        # Keras never stops after the first epoch.
        if waited >= patience and (epoch > 0 or semantics == "lightning"):
            return epoch
    return None


def generalization_loss_stop(validation_loss: ArrayLike, *, alpha: float) -> int | None:
    """Prechelt's GL: the first epoch with GL(t) = 100 (E_va(t) / E_opt(t) - 1) > alpha, E_opt(t) the least so far.

    Prechelt 1998, "Early Stopping - But When?", doi 10.1007/3-540-49430-8_3.

    Args:
        validation_loss: (epochs,), positive.
        alpha: the threshold of GL, in percent.
    """
    return first(_generalization_loss(validation_loss) > alpha)


def progress_quotient_stop(
    training_loss: ArrayLike, validation_loss: ArrayLike, *, alpha: float, strip: int = STRIP
) -> int | None:
    """Prechelt's PQ: the first end of a strip with GL(t) / P_k(t) > alpha.

    P_k(t) = 1000 (mean of E_tr over the strip / its minimum there - 1), the progress within the strip of k epochs;
    GL as in `generalization_loss_stop`. Strips end at every k-th epoch. If there is no progress at all (P_k = 0), the
    rule stops as soon as GL > 0.

    Args:
        training_loss: (epochs,), positive.
        validation_loss: (epochs,), positive.
        alpha: the threshold of the quotient.
        strip: k, in epochs.
    """
    training = np.asarray(training_loss, dtype=np.float64)
    lost = _generalization_loss(validation_loss)
    for epoch in range(strip - 1, len(training), strip):
        last = training[epoch - strip + 1 : epoch + 1]
        progress = 1000.0 * (last.mean() / last.min() - 1.0)
        if lost[epoch] > alpha * progress:
            return epoch
    return None


def successive_increase_stop(validation_loss: ArrayLike, *, increases: int, strip: int = STRIP) -> int | None:
    """Prechelt's UP: the validation loss rose from strip end to strip end, `increases` times in a row.

    Args:
        validation_loss: (epochs,).
        increases: s, in strips.
        strip: k, in epochs.
    """
    ends = np.asarray(validation_loss, dtype=np.float64)[strip - 1 :: strip]
    in_a_row = 0
    for i in range(1, len(ends)):
        in_a_row = in_a_row + 1 if ends[i] > ends[i - 1] else 0
        if in_a_row >= increases:
            return strip * (i + 1) - 1
    return None


def rolling_deviation_stop(
    values: ArrayLike, *, ratio: float = 0.3, window: int = 5, held: int = 3
) -> int | None:
    """Stop when the deviation over `window` epochs has been below `ratio` of its running peak for `held` epochs.

    This is the naive reading of volatility, here a baseline on the training loss. On random walks and heavy tails it
    fires most of the time (docs/early-warning.md).

    Args:
        values: (epochs,).
        ratio: the fraction of the running peak.
        window: the number of epochs that the deviation is taken over.
        held: the number of epochs in a row.
    """
    series = np.asarray(values, dtype=np.float64)
    if len(series) < window:
        return None
    deviation = np.lib.stride_tricks.sliding_window_view(series, window).std(axis=1)
    below = deviation < ratio * np.maximum.accumulate(deviation)
    in_a_row = 0
    for i, low in enumerate(below):
        in_a_row = in_a_row + 1 if low else 0
        if in_a_row >= held:
            return i + window - 1
    return None


def _generalization_loss(validation_loss: ArrayLike) -> NDArray[np.float64]:
    loss = np.asarray(validation_loss, dtype=np.float64)
    return 100.0 * (loss / np.minimum.accumulate(loss) - 1.0)


def first(condition: NDArray[np.bool_]) -> int | None:
    """The first epoch at which (epochs,) `condition` holds, or None."""
    return int(condition.argmax()) if condition.any() else None
