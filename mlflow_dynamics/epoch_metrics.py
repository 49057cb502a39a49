"""Checks and converts the metrics that a training passes with an epoch."""

from __future__ import annotations

import logging
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, SupportsFloat

import numpy as np
import torch

from mlflow_dynamics.errors import ConfigError
from mlflow_dynamics.recording.device_memory import HostCopy
from mlflow_dynamics.tracking import names

logger = logging.getLogger(__name__)

LARGEST_EPOCH: Final = 10**9 - 1
"""The largest number of an epoch. The tags that name an epoch hold nine digits."""

_UNCONVERTIBLE: Final = (TypeError, ValueError, ArithmeticError, RuntimeError)
"""The errors that array libraries raise for a value that cannot be converted to a whole number."""


@dataclass(frozen=True)
class EpochMetrics:
    """The metrics passed with an epoch.

    Attributes:
        values: metric key -> number; on a GPU, the number may still be on its way to the host.
        left_out: metric key that is not logged -> the reason, a sentence.
    """

    values: Mapping[str, float | HostCopy] = field(default_factory=dict)
    left_out: Mapping[object, str] = field(default_factory=dict)

    def numbers(self) -> dict[str, float]:
        """Return metric key -> number, and wait for the numbers that are still on their way."""
        return {
            key: float(value.wait()) if isinstance(value, HostCopy) else value
            for key, value in self.values.items()
        }


def read_metrics(metrics: Mapping[str, object]) -> EpochMetrics:
    """Read the present value of each metric. A tensor on a GPU is copied without waiting for it."""
    values: dict[str, float | HostCopy] = {}
    left_out: dict[object, str] = {}
    for key, value in metrics.items():
        try:
            names.check_key("metric", key)
        except ConfigError as error:
            left_out[key] = str(error)
            continue
        if key.startswith(names.OURS):
            left_out[key] = (
                f"metric {key!r} begins with {names.OURS}, as only the metrics that mlflow_dynamics measures do; "
                f"give it another key."
            )
            continue
        try:
            values[key] = _number(value)
        # The value's own conversion is the user's code: if it raises anything, only this value is left out.
        except Exception as error:  # noqa: BLE001
            left_out[key] = (
                f"metric {key!r} is {_description(value)}{_how_conversion_failed(error)}; give one number: a Python or "
                f"NumPy number, or an array or tensor of one real element."
            )
    return EpochMetrics(values, left_out)


def epoch_number(value: object) -> int | None:
    """Return `value` as the number of an epoch; None if it is not one."""
    if isinstance(value, bool):
        return None
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # raises if the value is not a whole number
    except _UNCONVERTIBLE:
        return None
    return number if 0 <= number <= LARGEST_EPOCH else None


class Intake:
    """Takes the epoch numbers and metrics of one training. Each thing that cannot be used is logged once."""

    def __init__(self) -> None:
        self._told: set[object] = set()

    def number(self, epoch: object, *, expected: int) -> int:
        """Return the epoch's number; the expected one if `epoch` is None or not the number of an epoch."""
        number = expected if epoch is None else epoch_number(epoch)
        if number is not None:
            return number
        self._tell(
            "number",
            f"epoch={epoch!r} is not the number of an epoch, a whole number from 0 to {LARGEST_EPOCH}; the epoch is "
            f"number {expected}. A metric of that name is given in a mapping: end_epoch({{'epoch': ...}}).",
        )
        return expected

    def metrics(self, metrics: object, values: Mapping[str, object]) -> EpochMetrics:
        """Return the metrics of a mapping together with those passed by name (`values`)."""
        if metrics is not None and not isinstance(metrics, Mapping):
            self._tell(
                "mapping",
                f"Metrics are given to end_epoch as a mapping, {{'train/loss': loss}}, or by name; what was given, of "
                f"type {type(metrics).__name__}, is left out.",
            )
            metrics = None
        taken = read_metrics({**(metrics or {}), **values})
        for key, reason in taken.left_out.items():
            self._tell(("metric", key), f"Left out wherever it is so: {reason}")
        return taken

    def _tell(self, subject: object, sentence: str) -> None:
        if subject not in self._told:
            self._told.add(subject)
            logger.warning("%s", sentence)


class _NoNumberError(TypeError):
    """A value is not a number, by its type or shape."""


def _number(value: object) -> float | HostCopy:
    """Convert a value to a number; raises `_NoNumberError`, or whatever the value's own conversion raises."""
    if isinstance(value, torch.Tensor):
        if value.numel() != 1 or value.is_complex():
            raise _NoNumberError
        return HostCopy.of(value.detach()) if value.is_cuda else float(value.detach())
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        masked = isinstance(value, np.ma.MaskedArray) and bool(np.any(value.mask))
        if array.size != 1 or array.dtype.kind not in "biuf" or masked:
            raise _NoNumberError
        return float(array.item())
    if not isinstance(value, SupportsFloat):
        raise _NoNumberError
    return float(value)


def _how_conversion_failed(error: Exception) -> str:
    if isinstance(error, OverflowError):
        return ", too large for a float"
    return (
        ""
        if isinstance(error, _NoNumberError)
        else f", which raises {type(error).__name__} as it is converted"
    )


def _description(value: object) -> str:
    name = type(value).__name__
    if np.ma.isMaskedArray(value):
        return f"of type {name}, masked or not of one element"
    if not isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return f"of type {name}"
    return f"of type {name}, shape {tuple(value.shape)}, {value.dtype}"
