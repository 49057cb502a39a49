"""Holds images in memory and turns them into training samples: augmentation, resizing, normalisation."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from mlflow_dynamics.errors import DataError

MAX_DECODED_BYTES: Final = 2**30
"""A set that would take more than this as raw pixels stays encoded and is decoded batch by batch."""

PADDING_FRACTION: Final = 8
"""The random crop pads by an eighth of the side: 4 pixels at 32 (He et al. 2016, section 4.2)."""

STATISTICS_IMAGES: Final = 10_000
"""Mean and standard deviation come from at most this many training images, so that a large set is not decoded twice."""


class Images(Protocol):
    """Images of one size: `len(images)`, `take(indices)` -> uint8 (len(indices), channels, side, side)."""

    @property
    def channels(self) -> int: ...

    @property
    def side(self) -> int: ...

    def __len__(self) -> int: ...

    def take(self, indices: Tensor) -> Tensor: ...


class DecodedImages:
    """Images held as one uint8 tensor (images, channels, side, side)."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels
        self.channels = pixels.shape[1]
        self.side = pixels.shape[2]

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, indices: Tensor) -> Tensor:
        return self.pixels[indices]


@dataclass(frozen=True, kw_only=True)
class EncodedImages:
    """Images held as encoded bytes or files, decoded when taken.

    Attributes:
        encoded: the bytes or the file of each image.
        channels: 1 (gray) or 3 (RGB); images of another mode are converted.
        side: the side of every image that is handed out, in pixels.
        exact: an image of another size is an error; otherwise its shorter side is resized to `side` and its middle is
            cut out.
        origin: the file or folder that error messages name.
    """

    encoded: Sequence[bytes | Path]
    channels: int
    side: int
    exact: bool
    origin: str

    def __len__(self) -> int:
        return len(self.encoded)

    def take(self, indices: Tensor) -> Tensor:
        """Return the images as uint8 (len(indices), channels, side, side).

        Raises:
            DataError: an image cannot be decoded, or has another size and `exact` is set.
        """
        pixels = np.empty((len(indices), self.side, self.side, self.channels), np.uint8)
        for row, index in enumerate(indices.tolist()):
            pixels[row] = self._decode(index).reshape(self.side, self.side, self.channels)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    def _decode(self, index: int) -> np.ndarray:
        image = open_image(self.encoded[index], origin=self.origin, index=index)
        if image.size != (self.side, self.side):
            if self.exact:
                where = _where(self.encoded[index], self.origin, index)
                raise DataError(
                    f"{where} is {image.width}x{image.height} pixels, not {self.side}x{self.side} as the "
                    f"first of the training images; give image_size, to which all are then resized."
                )
            image = _resize_and_crop(image, self.side)
        return np.asarray(image.convert("L" if self.channels == 1 else "RGB"))


def open_image(encoded: bytes | Path, *, origin: str, index: int) -> Image.Image:
    """Decode an image.

    Args:
        encoded: the image's bytes or file.
        origin: the file that holds the bytes, for messages.
        index: the image's row in that file, for messages.

    Raises:
        DataError: the image cannot be decoded, or has more than 8 bits per channel.
    """
    try:
        image = Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded)
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{_where(encoded, origin, index)} cannot be decoded as an image ({error}); repair or remove it."
        ) from error
    if image.mode[0] in "IF":
        raise DataError(
            f"{_where(encoded, origin, index)} has more than 8 bits a channel (mode {image.mode!r}); convert "
            f"the images to 8 bits."
        )
    return image


def _where(encoded: bytes | Path, origin: str, index: int) -> str:
    return f"Row {index} of {origin}" if isinstance(encoded, bytes) else f"Image {str(encoded)!r}"


def _resize_and_crop(image: Image.Image, side: int) -> Image.Image:
    scale = side / min(image.size)
    width, height = max(side, round(image.width * scale)), max(side, round(image.height * scale))
    left, top = (width - side) // 2, (height - side) // 2
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + side, top + side))


def hold(images: EncodedImages) -> Images:
    """Decode all images once, if they take at most `MAX_DECODED_BYTES`; otherwise return them unchanged."""
    if len(images) * images.channels * images.side**2 > MAX_DECODED_BYTES:
        return images
    return DecodedImages(images.take(torch.arange(len(images))))


def statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation of each channel, in [0, 1], over evenly spaced images.

    The standard deviation of a constant channel is given as 1 instead of 0, so that one can divide by it.
    """
    count = min(len(images), STATISTICS_IMAGES)
    chosen = torch.linspace(0, len(images) - 1, count).round().long()
    pixels = total = squares = torch.zeros(images.channels, dtype=torch.float64)
    for part in chosen.split(512):
        batch = images.take(part).double().div_(255)
        pixels = pixels + batch[:, 0].numel()
        total = total + batch.sum((0, 2, 3))
        squares = squares + batch.square().sum((0, 2, 3))
    mean = total / pixels
    std = (squares / pixels - mean.square()).clamp(min=0).sqrt()
    std = torch.where(std < 1e-6, torch.ones_like(std), std)
    return tuple(mean.tolist()), tuple(std.tolist())


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Labelled images as (float image (channels, image_size, image_size), int label), normalised.

    Augmentation is a random crop of the zero-padded image and, with `flip`, a random horizontal flip. The random
    numbers of an image depend only on the seed, the epoch (`set_epoch`) and the image's index. They depend neither on
    the batch nor on the process that loads the image, so any number of workers gives the same samples.

    A data loader fetches whole batches (`__getitems__`), which makes loading fast.

    Args:
        images: the images, all of one size.
        labels: int64 (images,).
        mean, std: mean and standard deviation of each channel, in [0, 1].
        image_size: the side to which images are resized, in pixels.
        augment: augment the images.
        flip: flip images at random when augmenting.
        seed: the seed of the augmentation.
    """

    def __init__(
        self,
        images: Images,
        labels: Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int,
        augment: bool,
        flip: bool,
        seed: int,
    ) -> None:
        self.images = images
        self.labels = labels
        self.image_size = image_size
        self.augment = augment
        self.flip = flip
        self.seed = seed
        self._mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)
        # The epoch is in shared memory, because persistent workers hold copies of this object and must see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._draws: tuple[int, Tensor] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Use the augmentation of epoch `epoch` from now on. Must be called before iterating over a loader."""
        self._epoch.fill_(epoch)

    def digest(self) -> str:
        """Return 8 hexadecimal digits that change with the images or labels."""
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        # If a set is too large to be held decoded, only its first images are hashed; all labels are hashed in any case.
        if isinstance(self.images, DecodedImages):
            pixels = self.images.pixels
        else:
            pixels = self.images.take(torch.arange(min(64, len(self))))
        digest.update(pixels.numpy().tobytes())
        return digest.hexdigest()[:8]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        """Return the samples at `indices`, made in one batch."""
        # Python ends the iteration over an object without __iter__ at an IndexError.
        if any(not -len(self) <= index < len(self) for index in indices):
            raise IndexError(f"index out of range for {len(self)} images")
        chosen = torch.tensor(indices, dtype=torch.int64) % len(self)
        batch = self.images.take(chosen)
        if self.augment:
            batch = _crop_and_flip(batch, self._epoch_draws()[chosen])
        if self.images.side != self.image_size:
            # Resizing bytes with channels last is ten times as fast as resizing floats.
            batch = functional.interpolate(
                batch.contiguous(memory_format=torch.channels_last),
                size=(self.image_size, self.image_size),
                mode="bicubic",
                antialias=True,
            )
        pixels = batch.contiguous().float().div_(255).sub_(self._mean).div_(self._std)
        return list(zip(pixels.unbind(), self.labels[chosen].tolist(), strict=True))

    def _epoch_draws(self) -> Tensor:
        """Return (images, 3): vertical offset, horizontal offset and flip of each image in the current epoch."""
        epoch = int(self._epoch)
        if self._draws is None or self._draws[0] != epoch:
            entropy = np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(entropy >> np.uint64(1)))
            offsets = torch.randint(
                0, 2 * _padding(self.images.side) + 1, (len(self), 2), generator=generator
            )
            flips = torch.randint(0, 2, (len(self), 1), generator=generator) * int(self.flip)
            self._draws = (epoch, torch.cat([offsets, flips], dim=1))
        return self._draws[1]


def _padding(side: int) -> int:
    return max(1, round(side / PADDING_FRACTION))


def _crop_and_flip(batch: Tensor, draws: Tensor) -> Tensor:
    """Pad, crop and flip each image of `batch` (n, channels, side, side) by its own draws, in one gather."""
    side = batch.shape[-1]
    padding = _padding(side)
    padded = functional.pad(batch, (padding,) * 4)
    along = torch.arange(side)
    rows = draws[:, 0, None] + along
    flipped = draws[:, 2, None].bool()
    columns = draws[:, 1, None] + torch.where(flipped, side - 1 - along, along)
    image = torch.arange(len(batch))[:, None, None]
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
