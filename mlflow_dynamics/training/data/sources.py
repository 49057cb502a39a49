"""Loads labelled images by name: scikit-learn's digits and torchvision's downloadable sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torchvision
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from mlflow_dynamics.errors import DataError
from mlflow_dynamics.training.catalogue import TORCHVISION_SETS
from mlflow_dynamics.training.data.images import DecodedImages, Images
from mlflow_dynamics.training.downloads import download_timeout, last_line

DIGITS_TEST_FRACTION: Final = 0.2
DIGITS_SPLIT_SEED: Final = 0


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set as it was found: images and labels of both parts, before augmentation and normalisation.

    Attributes:
        train, test: the images and their labels, int64 (images,).
        class_names: the names of the classes; a label is an index into them.
        flip: a mirrored image is as good as the original, which is not so for digits and letters.
        location: the path or library that the data set came from.
    """

    train: tuple[Images, Tensor]
    test: tuple[Images, Tensor]
    class_names: tuple[str, ...]
    flip: bool
    location: str


def digits(limit_train: int | None, limit_test: int | None) -> Source:
    """Load the 1,797 handwritten digits of scikit-learn, 8x8 gray, in a fixed stratified split of 1,437 and 360.

    Source: E. Alpaydin, C. Kaynak, UCI Machine Learning Repository, doi 10.24432/C50P49 (its test part).
    """
    bunch = load_digits()
    # The 17 gray levels, 0 to 16, are stretched to 0 to 255.
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    train, test = train_test_split(
        np.arange(len(pixels)),
        test_size=DIGITS_TEST_FRACTION,
        stratify=bunch.target,
        random_state=DIGITS_SPLIT_SEED,
    )
    labels = bunch.target.astype(np.int64)
    return Source(
        train=_first(pixels[train], labels[train], limit_train),
        test=_first(pixels[test], labels[test], limit_test),
        class_names=tuple(str(name) for name in bunch.target_names),
        flip=False,
        location="sklearn.datasets.load_digits",
    )


def torchvision_set(name: str, *, data_dir: Path, limit_train: int | None, limit_test: int | None) -> Source:
    """Load a set of `catalogue.TORCHVISION_SETS` from `data_dir`; if it is missing there, it is downloaded first.

    Raises:
        DataError: the set is missing and cannot be downloaded, or its files are damaged.
    """
    chosen = TORCHVISION_SETS[name]
    create = getattr(torchvision.datasets, chosen.kind)
    by_split = chosen.kind in ("SVHN", "STL10")
    parts = ({"split": "train"}, {"split": "test"}) if by_split else ({"train": True}, {"train": False})
    try:
        with download_timeout():
            train, test = (create(data_dir, download=True, **part, **chosen.arguments) for part in parts)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"dataset={name!r} is not whole in data_dir={str(data_dir)!r} and could not be downloaded there "
            f"({last_line(error)}); connect to the internet, put torchvision's files for it there, or give "
            f"dataset=parquet:PATH with a folder that holds train.parquet and test.parquet."
        ) from error
    class_names = getattr(train, "classes", None)
    labels = _labels(train)
    return Source(
        train=_first(_pixels(train), labels, limit_train),
        test=_first(_pixels(test), _labels(test), limit_test),
        class_names=tuple(class_names or (str(label) for label in range(int(labels.max()) + 1))),
        flip=chosen.flip,
        location=f"torchvision.datasets.{chosen.kind} in {data_dir}",
    )


def _pixels(dataset: Any) -> np.ndarray:
    """Return uint8 (images, channels, side, side) from any of the three layouts that torchvision uses."""
    data = np.asarray(dataset.data)
    if data.ndim == 3:
        return data[:, None]
    return data if data.shape[1] == 3 else data.transpose(0, 3, 1, 2)


def _labels(dataset: Any) -> np.ndarray:
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return np.asarray(labels, dtype=np.int64)


def _first(pixels: np.ndarray, labels: np.ndarray, limit: int | None) -> tuple[Images, Tensor]:
    return (
        DecodedImages(torch.from_numpy(np.ascontiguousarray(pixels[:limit]))),
        torch.from_numpy(labels[:limit].copy()),
    )
