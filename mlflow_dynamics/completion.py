"""Shell completion: the values that an option takes, given without loading torch or MLflow."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import click
from click.shell_completion import CompletionItem

from mlflow_dynamics.config import ESTIMATORS, PROTOCOLS, SIGNALS, WARNING_MODES
from mlflow_dynamics.training.parameters import OPTIMIZERS, PRECISIONS, SCHEDULES

MODELS: Final = (
    "resnet20",
    "resnet56",
    "resnet18",
    "resnet34",
    "resnet50",
    "densenet121",
    "mobilenet_v2",
    "vgg16",
    "vit_tiny_patch16_224",
    "vit_small_patch16_224",
    "vit_base_patch16_224",
)
"""The models of `training.models`. They are repeated here because that module loads torch; a test compares them."""

DATASETS: Final = (
    "digits",
    "cifar10",
    "cifar100",
    "mnist",
    "fashionmnist",
    "kmnist",
    "emnist",
    "svhn",
    "stl10",
    "parquet:",
    "imagefolder:",
)
"""The data sets of `training.data`, repeated here for the same reason."""


def _detectors() -> Iterable[str]:
    from mlflow_dynamics.convergence import detector_names

    return detector_names()


VALUES: Final[dict[str, Callable[[], Iterable[str]]]] = {
    "model": lambda: MODELS,
    "dataset": lambda: DATASETS,
    "easy_dataset": lambda: DATASETS,
    "hard_dataset": lambda: DATASETS,
    "optimizer": lambda: OPTIMIZERS,
    "schedule": lambda: SCHEDULES,
    "precision": lambda: PRECISIONS,
    "early_stopping": lambda: WARNING_MODES,
    "signal": lambda: SIGNALS,
    "protocol": lambda: PROTOCOLS,
    "estimator": lambda: ESTIMATORS,
    "detector": _detectors,
    "device": lambda: ("auto", "cpu", "cuda", "mps"),
}
"""Name of an option's parameter -> the values that it takes, or the best known ones."""


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
