"""Labels other than a data set's own: noisy, random, or of merged classes, to tell what a task is hard by."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from mlflow_dynamics.errors import ConfigError, DataError
from mlflow_dynamics.training.data.sources import Source

GIVEN: Final = "given"
_FORM: Final = re.compile(r"given|random|noisy:(?P<part>0?\.\d+)|merged:(?P<classes>[1-9]\d{0,8})")


def check_labels(labels: str) -> None:
    """Raise a ConfigError unless `labels` is of one of the forms that `relabelled` knows."""
    form = _FORM.fullmatch(labels)
    few = form is not None and form["classes"] == "1"
    if form is None or few or (form["part"] is not None and float(form["part"]) == 0):
        raise ConfigError(
            f"labels={labels!r} must be given, random, noisy:FRACTION with a fraction between 0 and 1 (such as "
            "noisy:0.3), or merged:CLASSES with at least 2 classes (such as merged:10)."
        )


def relabelled(source: Source, labels: str, *, seed: int) -> Source:
    """The same images under the labels asked for.

    Args:
        source: images with their own labels.
        labels: `given`; `random` (training labels shuffled among the images, so that nothing can be learnt but by
            heart); `noisy:FRACTION` (so many of the training images, chosen at random, get another class, any as
            likely); `merged:CLASSES` (class i becomes i modulo CLASSES, in both parts). Validation labels are the
            data set's own unless classes are merged.
        seed: of what is drawn.

    Raises:
        ConfigError: another form.
        DataError: more classes are asked for than there are.
    """
    check_labels(labels)
    if labels == GIVEN:
        return source
    kind, _, value = labels.partition(":")
    images, own = source.train
    if kind == "merged":
        classes = int(value)
        if classes >= len(source.class_names):
            raise DataError(
                f"labels={labels!r} asks for {classes} classes, and the data set has {len(source.class_names)}; give "
                "fewer."
            )
        return replace(
            source,
            train=(images, own % classes),
            test=(source.test[0], source.test[1] % classes),
            class_names=tuple(f"merged {name}" for name in range(classes)),
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(own), generator=generator)
    new = (
        own[order]
        if kind == "random"
        else _noisy(own, order, float(value), len(source.class_names), generator)
    )
    return replace(source, train=(images, new))


def _noisy(own: Tensor, order: Tensor, part: float, classes: int, generator: torch.Generator) -> Tensor:
    chosen = order[: round(part * len(own))]
    new = own.clone()
    new[chosen] = (own[chosen] + torch.randint(1, classes, (len(chosen),), generator=generator)) % classes
    return new
