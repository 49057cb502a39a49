"""Loads image data sets by name, ready to train on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mlflow_dynamics.errors import ConfigError, DataError, unknown_choice
from mlflow_dynamics.training.catalogue import DATASETS, TORCHVISION_SETS
from mlflow_dynamics.training.data.files import image_folder, parquet_folder
from mlflow_dynamics.training.data.images import ImageDataset, Images, statistics
from mlflow_dynamics.training.data.labels import GIVEN, relabelled
from mlflow_dynamics.training.data.sources import Source, digits, torchvision_set

__all__ = ["ImageData", "ImageDataset", "load_dataset"]


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """A data set ready to train on.

    Attributes:
        train, test: samples (float image (channels, image_size, image_size), int label); only `train` is
            augmented.
        class_names: the names of the classes; a label is an index into them.
        image_size: side of every image in pixels, after resizing.
        channels: 1 (gray) or 3 (RGB).
        mean, std: mean and standard deviation of each channel of the training images, in [0, 1].
        name: the name by which the data set was loaded.
        source: the path or library that the data set came from.
    """

    train: ImageDataset
    test: ImageDataset
    class_names: tuple[str, ...]
    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str
    source: str

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    def set_epoch(self, epoch: int) -> None:
        """Use the augmentation of this epoch from now on. Must be called before each pass over `train`."""
        self.train.set_epoch(epoch)


def load_dataset(
    dataset: str,
    *,
    data_dir: Path,
    limit_train: int | None,
    limit_test: int | None,
    image_size: int | None,
    augment: bool,
    seed: int,
    labels: str = GIVEN,
) -> ImageData:
    """Load a data set, normalised by the mean and deviation of its training images.

    Args:
        dataset: one of `catalogue.DATASETS`; the PATH of `parquet:` and `imagefolder:` may be relative to the working
            folder.
        data_dir: the folder that holds torchvision's sets, or to which they are downloaded.
        limit_train, limit_test: use only this many images, the first ones; None uses all.
        image_size: resize images to this side in pixels; None keeps their own size.
        augment: augment the training images with random crops and, if a mirrored image is as good, horizontal flips.
        seed: the seed of the augmentation and of labels that are drawn.
        labels: the labels of the data set, or others in their place (`labels.relabelled`).

    Raises:
        ConfigError: an argument is not usable.
        DataError: the set is missing or damaged, cannot be downloaded, or has fewer than two classes.
    """
    for name, value in (("limit_train", limit_train), ("limit_test", limit_test), ("image_size", image_size)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value} must be at least 1.")
    source = _find(
        dataset, data_dir=data_dir, limit_train=limit_train, limit_test=limit_test, image_size=image_size
    )
    if len(source.class_names) < 2:
        raise DataError(
            f"dataset={dataset!r} has {len(source.class_names)} class; a classifier needs at least 2."
        )
    source = relabelled(source, labels, seed=seed)
    mean, std = statistics(source.train[0])
    side = image_size if image_size is not None else source.train[0].side

    def part(images: Images, labels: Tensor, augmented: bool) -> ImageDataset:
        return ImageDataset(
            images,
            labels,
            mean=mean,
            std=std,
            image_size=side,
            augment=augmented,
            flip=source.flip,
            seed=seed,
        )

    return ImageData(
        train=part(*source.train, augmented=augment),
        test=part(*source.test, augmented=False),
        class_names=source.class_names,
        image_size=side,
        channels=source.train[0].channels,
        mean=mean,
        std=std,
        name=dataset,
        source=source.location,
    )


def _find(
    dataset: str,
    *,
    data_dir: Path,
    limit_train: int | None,
    limit_test: int | None,
    image_size: int | None,
) -> Source:
    kind, colon, path = dataset.partition(":")
    if colon and kind in ("parquet", "imagefolder"):
        if not path:
            raise ConfigError(f"dataset={dataset!r} lacks the folder; give {kind}:PATH.")
        load = parquet_folder if kind == "parquet" else image_folder
        return load(
            Path(path).expanduser(), limit_train=limit_train, limit_test=limit_test, image_size=image_size
        )
    if dataset == "digits":
        return digits(limit_train, limit_test)
    if dataset in TORCHVISION_SETS:
        return torchvision_set(dataset, data_dir=data_dir, limit_train=limit_train, limit_test=limit_test)
    raise unknown_choice("dataset", dataset, DATASETS)
