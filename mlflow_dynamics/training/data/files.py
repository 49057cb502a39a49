"""Reads labelled images from the user's own files: a folder of Parquet files or a folder of image files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from mlflow_dynamics.errors import DataError
from mlflow_dynamics.training.data.images import EncodedImages, Images, hold, open_image
from mlflow_dynamics.training.data.sources import Source

PARQUET_BATCH_ROWS: Final = 1024
SIZES_SAMPLED: Final = 64
"""The number of images from which the size and the channels of a set are read."""

IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
FOLDER_ORDER_SEED: Final = 0

Encoded = Sequence[bytes | Path]


def parquet_folder(
    folder: Path, *, limit_train: int | None, limit_test: int | None, image_size: int | None
) -> Source:
    """Read `train.parquet` and `test.parquet`, with columns `image` (struct<bytes, path>) and `label` (integer).

    Data hubs store image sets in this form. The metadata key `class_names` of the schema, a comma-separated list, names
    the classes; without it, the classes are the numbers from 0 to the largest label. Only the first `limit_train`
    (`limit_test`) images are read and decoded, but every label is checked.

    Raises:
        DataError: the folder, a file or a column is missing, a file is empty or not Parquet, a label is outside the
            classes, an image is null or cannot be decoded, or `image_size` is None and the images differ in size or
            are not square.
    """
    if not folder.is_dir():
        raise DataError(
            f"dataset=parquet:{folder} names no folder; give one that holds train.parquet and test.parquet."
        )
    parts = {part: _open_parquet(folder / f"{part}.parquet") for part in ("train", "test")}
    labels = {part: _read_labels(file, folder / f"{part}.parquet") for part, file in parts.items()}
    metadata = parts["train"].schema_arrow.metadata or {}
    if b"class_names" in metadata:
        class_names = tuple(name.strip() for name in metadata[b"class_names"].decode().split(","))
    else:
        class_names = tuple(str(label) for label in range(int(labels["train"].max()) + 1))
    for part, values in labels.items():
        _check_labels(values, class_names, folder / f"{part}.parquet")
    train = _read_images(parts["train"], folder / "train.parquet", limit_train)
    test = _read_images(parts["test"], folder / "test.parquet", limit_test)
    return _source(
        train=(train, labels["train"][:limit_train], str(folder / "train.parquet")),
        test=(test, labels["test"][:limit_test], str(folder / "test.parquet")),
        class_names=class_names,
        image_size=image_size,
        folder=folder,
    )


def _open_parquet(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise DataError(
            f"{path} is missing; a parquet data set is a folder with train.parquet and test.parquet."
        )
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not a Parquet file ({error}); write it again.") from error
    schema = file.schema_arrow
    found = ", ".join(f"{field.name}: {field.type}" for field in schema) or "none"
    wanted = "columns image: struct<bytes: binary, path: string> and label: int64"
    if "image" not in schema.names or "label" not in schema.names:
        raise DataError(f"{path} has not the {wanted}; it has: {found}.")
    image = schema.field("image").type
    binary = pa.types.is_struct(image) and image.get_field_index("bytes") >= 0
    if not (
        binary and _is_binary(image.field("bytes").type) and pa.types.is_integer(schema.field("label").type)
    ):
        raise DataError(f"{path} must have {wanted}; it has: {found}.")
    if file.metadata.num_rows == 0:
        raise DataError(f"{path} holds no rows; give a file with at least one image.")
    return file


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _read_labels(file: pq.ParquetFile, path: Path) -> np.ndarray:
    column = file.read(columns=["label"]).column("label")
    if column.null_count:
        raise DataError(f"{path} has {column.null_count} rows without a label; remove them.")
    return np.asarray(column.to_numpy(), dtype=np.int64)


def _check_labels(labels: np.ndarray, class_names: Sequence[str], path: Path) -> None:
    outside = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
    if len(outside):
        raise DataError(
            f"{path} has label {labels[outside[0]]} in row {outside[0]} ({len(outside)} such rows), outside "
            f"the {len(class_names)} classes 0 to {len(class_names) - 1}."
        )


def _read_images(file: pq.ParquetFile, path: Path, limit: int | None) -> list[bytes]:
    wanted = file.metadata.num_rows if limit is None else min(limit, file.metadata.num_rows)
    encoded: list[bytes] = []
    for batch in file.iter_batches(batch_size=min(PARQUET_BATCH_ROWS, wanted), columns=["image.bytes"]):
        encoded.extend(batch.column("image").field("bytes")[: wanted - len(encoded)].to_pylist())
        if len(encoded) == wanted:
            break
    for row, image in enumerate(encoded):
        if image is None:
            raise DataError(
                f"Row {row} of {path} has no image bytes; images stored by path alone are not read."
            )
    return encoded


def image_folder(
    folder: Path, *, limit_train: int | None, limit_test: int | None, image_size: int | None
) -> Source:
    """Read `folder`/train/CLASS/*.jpg and `folder`/test (or val)/CLASS/*.jpg; the classes are sorted by name.

    The images are put in a fixed random order, so that the first `limit_train` are a fair subset.

    Raises:
        DataError: a folder is missing or holds no images, the test part has a class that the training part lacks, an
            image cannot be decoded, or `image_size` is None and the images differ in size or are not square.
    """
    if not folder.is_dir():
        raise DataError(
            f"dataset=imagefolder:{folder} names no folder; give one that holds train and test (or val), "
            f"each with a folder of images for every class."
        )
    test_folder = next(
        (folder / name for name in ("test", "val") if (folder / name).is_dir()), folder / "test"
    )
    for part in (folder / "train", test_folder):
        if not part.is_dir():
            raise DataError(
                f"{part} is missing; an image folder holds train and test (or val), each with a folder "
                f"of images for every class."
            )
    train_files = list(_class_files(folder / "train"))
    class_names = tuple(sorted({name for name, _ in train_files}))
    test_files = list(_class_files(test_folder))
    for part, files in ((folder / "train", train_files), (test_folder, test_files)):
        if not files:
            raise DataError(f"{part} holds no class folder with images ({', '.join(IMAGE_SUFFIXES)}).")
    if strangers := sorted({name for name, _ in test_files} - set(class_names)):
        raise DataError(
            f"{test_folder} has the class {strangers[0]!r}, which {folder / 'train'} lacks; classes there: "
            f"{', '.join(class_names)}."
        )
    return _source(
        train=(*_shuffled(train_files, class_names, limit_train), str(folder / "train")),
        test=(*_shuffled(test_files, class_names, limit_test), str(test_folder)),
        class_names=class_names,
        image_size=image_size,
        folder=folder,
    )


def _class_files(part: Path) -> Iterator[tuple[str, Path]]:
    for class_folder in sorted(path for path in part.iterdir() if path.is_dir()):
        for path in sorted(class_folder.rglob("*")):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                yield class_folder.name, path


def _shuffled(
    files: Sequence[tuple[str, Path]], class_names: Sequence[str], limit: int | None
) -> tuple[list[Path], np.ndarray]:
    order = np.random.default_rng(FOLDER_ORDER_SEED).permutation(len(files))[:limit]
    index = {name: label for label, name in enumerate(class_names)}
    return [files[i][1] for i in order], np.array([index[files[i][0]] for i in order], dtype=np.int64)


def _source(
    *,
    train: tuple[Encoded, np.ndarray, str],
    test: tuple[Encoded, np.ndarray, str],
    class_names: tuple[str, ...],
    image_size: int | None,
    folder: Path,
) -> Source:
    channels, side = _layout(train[0], origin=train[2], image_size=image_size)

    def part(encoded: Encoded, labels: np.ndarray, origin: str) -> tuple[Images, Tensor]:
        images = EncodedImages(
            encoded=encoded, channels=channels, side=side, exact=image_size is None, origin=origin
        )
        return hold(images), torch.from_numpy(labels.copy())

    return Source(
        train=part(*train), test=part(*test), class_names=class_names, flip=True, location=str(folder)
    )


def _layout(encoded: Encoded, *, origin: str, image_size: int | None) -> tuple[int, int]:
    """Return the channels and side of the images to hold: their own, unless they differ or exceed `image_size`."""
    images = [open_image(item, origin=origin, index=i) for i, item in enumerate(encoded[:SIZES_SAMPLED])]
    channels = 1 if all(image.mode in ("L", "1") for image in images) else 3
    sizes = Counter(image.size for image in images)
    (width, height) = images[0].size
    if image_size is None:
        if width != height:
            raise DataError(
                f"The images of {origin} are {width}x{height} pixels, not square; give image_size, to which "
                f"the shorter side is then resized and the rest cut off."
            )
        return channels, width
    if len(sizes) == 1 and width == height and width < image_size:
        # Small images are held as they are and enlarged batch by batch: 50,000 RGB images take 150 MB at 32x32, but
        # 7.5 GB at 224x224.
        return channels, width
    return channels, image_size
