"""Completes commands in the shell: gives the values that an option takes, without loading torch or MLflow."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import click
from click.shell_completion import CompletionItem

from mlflow_dynamics.config import ESTIMATORS, PROTOCOLS, SIGNALS, WARNING_MODES
from mlflow_dynamics.training.catalogue import DATASETS, MODELS
from mlflow_dynamics.training.parameters import ENGINES, OPTIMIZERS, PRECISIONS, SCHEDULES


def _detectors() -> Iterable[str]:
    from mlflow_dynamics.convergence import detector_names

    return detector_names()


def _datasets() -> Iterable[str]:
    return (name.removesuffix("PATH") for name in DATASETS)


VALUES: Final[dict[str, Callable[[], Iterable[str]]]] = {
    "model": lambda: MODELS,
    "dataset": _datasets,
    "easy_dataset": _datasets,
    "hard_dataset": _datasets,
    "optimizer": lambda: OPTIMIZERS,
    "schedule": lambda: SCHEDULES,
    "precision": lambda: PRECISIONS,
    "early_stopping": lambda: WARNING_MODES,
    "signal": lambda: SIGNALS,
    "protocol": lambda: PROTOCOLS,
    "estimator": lambda: ESTIMATORS,
    "detector": _detectors,
    "engine": lambda: ENGINES,
    "device": lambda: ("auto", "cpu", "cuda", "mps"),
}
"""Name of an option's parameter -> the values that the option takes, or the best known ones if it is in `OPEN`."""

OPEN: Final = frozenset({"model", "dataset", "easy_dataset", "hard_dataset", "detector", "device"})
"""The options that take more values than `VALUES` lists."""


def choices_of(parameter: str, word: str | None = None) -> str | None:
    """Return all values of an option as its help shows them; None if they are no closed list.

    `word` stands for the absence of a value and is added as the last one.
    """
    if parameter not in VALUES or parameter in OPEN:
        return None
    return f"[{'|'.join([*VALUES[parameter](), *([] if word is None else [word])])}]"


def values_of(context: click.Context, option: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the values of an option that begin with the text typed so far (`begun`)."""
    values = [*VALUES[str(option.name)]()] if option.name in VALUES else []
    if option.type is click.BOOL:
        values += ["true", "false"]
    word = getattr(option.type, "word", None)
    if word is not None:
        values.append(word)
    return [CompletionItem(value) for value in values if value.startswith(begun)]


def file_of(context: click.Context, argument: click.Parameter, begun: str) -> list[CompletionItem]:
    """Leave the completion to the shell, which offers files."""
    return [CompletionItem(begun, type="file")]
