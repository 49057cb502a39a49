"""Data sets by name: their content, the augmentation, its reproducibility, and the refusal of bad sets."""

from __future__ import annotations

import io
import pickle
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, RandomSampler

from mlflow_dynamics.errors import ConfigError, DataError
from mlflow_dynamics.training import downloads
from mlflow_dynamics.training.data import ImageData, images, load_dataset

REAL = Path(__file__).parents[2] / "../shared/data"
needs_real_images = pytest.mark.skipif(not REAL.is_dir(), reason=f"no image sets in {REAL}")


def load(dataset: str, **changes: Any) -> ImageData:
    arguments = {
        "data_dir": Path("absent"),
        "limit_train": None,
        "limit_test": None,
        "image_size": None,
        "augment": False,
        "seed": 0,
    }
    return load_dataset(dataset, **(arguments | changes))


def pixels(data: ImageData, index: int, part: str = "train") -> torch.Tensor:
    """A sample's image as bytes again (normalisation undone)."""
    image = getattr(data, part)[index][0]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    return ((image * std + mean) * 255).round().to(torch.uint8)


def encode(array: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def random_images(count: int, *, side: int = 8, channels: int = 3) -> np.ndarray:
    shape = (count, side, side, channels) if channels > 1 else (count, side, side)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def write_parquet(
    path: Path,
    encoded: Sequence[bytes | None],
    labels: Sequence[int | None],
    *,
    class_names: str | None = None,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = [{"bytes": item, "path": f"{row}.png"} for row, item in enumerate(encoded)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(image, kind), "label": pa.array(labels, pa.int64())})
    if class_names is not None:
        table = table.replace_schema_metadata({"class_names": class_names})
    pq.write_table(table, path)


@pytest.fixture
def parquet_folder(tmp_path: Path) -> Path:
    """Twelve training and six test images of three classes."""
    encoded = [encode(image) for image in random_images(12)]
    write_parquet(tmp_path / "train.parquet", encoded, [i % 3 for i in range(12)], class_names="ant, bee,cow")
    write_parquet(tmp_path / "test.parquet", encoded[:6], [0, 1, 2, 0, 1, 2], class_names="ant, bee,cow")
    return tmp_path


# --- digits -------------------------------------------------------------------------------------------------


def test_digits_are_all_of_scikit_learns_split_once_and_stratified() -> None:
    data = load("digits")
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert (data.num_classes, data.channels, data.image_size) == (10, 1, 8)
    parts = torch.cat([data.train.images.take(torch.arange(1437)), data.test.images.take(torch.arange(360))])
    found = sorted(image.numpy().tobytes() for image in parts)
    whole = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    assert found == sorted(image.tobytes() for image in whole)
    counts = torch.bincount(data.test.labels)
    assert counts.min() >= 34
    assert counts.max() <= 37


def test_the_split_does_not_depend_on_the_seed() -> None:
    assert load("digits", seed=0).test.digest() == load("digits", seed=7).test.digest()


def test_training_images_are_normalised_to_mean_zero_and_deviation_one() -> None:
    data = load("digits")
    batch = torch.stack([image for image, _ in data.train])
    assert abs(batch.mean().item()) < 1e-4
    assert abs(batch.std().item() - 1) < 1e-3


def test_limits_take_the_first_images() -> None:
    whole, part = load("digits"), load("digits", limit_train=20, limit_test=5)
    assert (len(part.train), len(part.test)) == (20, 5)
    assert torch.equal(part.train.labels, whole.train.labels[:20])
    assert part.train.digest() != whole.train.digest()


def test_a_limit_beyond_the_set_takes_all() -> None:
    assert len(load("digits", limit_train=10**6).train) == 1437


# --- augmentation -------------------------------------------------------------------------------------------


def candidates(original: torch.Tensor, padding: int) -> dict[tuple[int, int, bool], torch.Tensor]:
    """Every crop of the zero-padded image, plain and mirrored, made one by one."""
    side = original.shape[-1]
    padded = torch.zeros(original.shape[0], side + 2 * padding, side + 2 * padding, dtype=torch.uint8)
    padded[:, padding : padding + side, padding : padding + side] = original
    crops = {}
    for dy in range(2 * padding + 1):
        for dx in range(2 * padding + 1):
            crop = padded[:, dy : dy + side, dx : dx + side]
            crops[dy, dx, False] = crop
            crops[dy, dx, True] = crop.flip(-1)
    return crops


def drawn(plain: ImageData, augmented: ImageData, count: int, padding: int) -> list[tuple[int, int, bool]]:
    found = []
    for index in range(count):
        image = pixels(augmented, index)
        crops = candidates(pixels(plain, index), padding)
        matching = [key for key, crop in crops.items() if torch.equal(crop, image)]
        assert matching, f"image {index} is no crop of its original"
        found.append(matching[0])
    return found


def test_natural_images_are_cropped_and_half_of_them_mirrored(tmp_path: Path) -> None:
    array = random_images(200, side=32)
    for part in ("train", "test"):
        write_parquet(tmp_path / f"{part}.parquet", [encode(image) for image in array], [0, 1] * 100)
    found = drawn(load(f"parquet:{tmp_path}"), load(f"parquet:{tmp_path}", augment=True), 200, padding=4)
    assert 70 <= sum(flip for _, _, flip in found) <= 130
    assert {dy for dy, _, _ in found} == {dx for _, dx, _ in found} == set(range(9))


def test_digits_are_never_mirrored() -> None:
    found = drawn(load("digits"), load("digits", augment=True), 200, padding=1)
    # A symmetric digit equals its mirror image; `drawn` names the plain crop first.
    assert not any(flip for _, _, flip in found)
    assert len({(dy, dx) for dy, dx, _ in found}) == 9


def test_the_test_part_is_never_augmented() -> None:
    plain, augmented = load("digits"), load("digits", augment=True)
    assert all(torch.equal(plain.test[i][0], augmented.test[i][0]) for i in range(50))


def epochs(data: ImageData, *, workers: int, count: int = 2) -> list[torch.Tensor]:
    """What a persistent loader yields, epoch by epoch, in the order that a fixed generator draws."""
    order = torch.Generator()
    loader = DataLoader(
        data.train,
        batch_size=16,
        # Not shuffle=True with this generator: a loader draws a seed for its workers from its own one as well, but
        # persistent workers only once, so the order would depend on their number from the second epoch on.
        sampler=RandomSampler(data.train, generator=order),
        generator=torch.Generator(),
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    seen = []
    for epoch in range(count):
        order.manual_seed(epoch)
        data.set_epoch(epoch)
        seen.append(torch.cat([batch for batch, _ in loader]))
    return seen


def test_any_number_of_workers_gives_the_same_samples_in_every_epoch() -> None:
    alone = epochs(load("digits", augment=True, limit_train=64), workers=0)
    again = epochs(load("digits", augment=True, limit_train=64), workers=0)
    workers = epochs(load("digits", augment=True, limit_train=64), workers=2)
    for first, second, third in zip(alone, again, workers, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)


def test_augmentation_differs_between_epochs_and_seeds() -> None:
    data = load("digits", augment=True)
    first = torch.stack([data.train[i][0] for i in range(50)])
    data.set_epoch(1)
    second = torch.stack([data.train[i][0] for i in range(50)])
    other_seed = load("digits", augment=True, seed=1)
    third = torch.stack([other_seed.train[i][0] for i in range(50)])
    assert not torch.equal(first, second)
    assert not torch.equal(first, third)
    data.set_epoch(0)
    assert torch.equal(first, torch.stack([data.train[i][0] for i in range(50)]))


def test_a_batch_is_its_samples_one_by_one() -> None:
    data = load("digits", augment=True)
    batch = data.train.__getitems__([5, 3, 900])
    for sample, index in zip(batch, (5, 3, 900), strict=True):
        assert torch.equal(sample[0], data.train[index][0])
        assert sample[1] == data.train[index][1] == int(data.train.labels[index])


# --- parquet ------------------------------------------------------------------------------------------------


def test_parquet_comes_back_pixel_by_pixel(parquet_folder: Path) -> None:
    data = load(f"parquet:{parquet_folder}")
    assert data.class_names == ("ant", "bee", "cow")
    assert (data.channels, data.image_size, len(data.train), len(data.test)) == (3, 8, 12, 6)
    for index, original in enumerate(random_images(12)):
        assert np.array_equal(pixels(data, index).permute(1, 2, 0).numpy(), original)
        assert data.train[index][1] == index % 3


def test_gray_images_have_one_channel_and_unnamed_classes_are_numbers(tmp_path: Path) -> None:
    array = random_images(4, channels=1)
    for part in ("train", "test"):
        write_parquet(tmp_path / f"{part}.parquet", [encode(image) for image in array], [0, 1, 2, 4])
    data = load(f"parquet:{tmp_path}")
    assert data.channels == 1
    assert data.class_names == ("0", "1", "2", "3", "4")
    assert np.array_equal(pixels(data, 3)[0].numpy(), array[3])


def test_the_path_may_be_relative(parquet_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(parquet_folder.parent)
    assert len(load(f"parquet:{parquet_folder.name}").train) == 12


def test_only_the_limit_is_decoded_and_the_bad_row_is_named(tmp_path: Path) -> None:
    encoded = [encode(image) for image in random_images(60)]
    encoded[50] = encoded[50][:40]
    write_parquet(tmp_path / "train.parquet", encoded, [i % 2 for i in range(60)])
    write_parquet(tmp_path / "test.parquet", encoded[:4], [0, 1, 0, 1])
    assert len(load(f"parquet:{tmp_path}", limit_train=50).train) == 50
    with pytest.raises(DataError, match=r"Row 50 of .*train\.parquet cannot be decoded as an image"):
        load(f"parquet:{tmp_path}")


def test_images_too_many_to_hold_are_decoded_when_taken(
    parquet_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = load(f"parquet:{parquet_folder}", augment=True)
    monkeypatch.setattr(images, "MAX_DECODED_BYTES", 100)
    lazy = load(f"parquet:{parquet_folder}", augment=True)
    assert isinstance(held.train.images, images.DecodedImages)
    assert isinstance(lazy.train.images, images.EncodedImages)
    assert held.mean == lazy.mean
    assert torch.equal(epochs(held, workers=0)[1], epochs(lazy, workers=0)[1])


def break_part(folder: Path) -> None:
    (folder / "train.parquet").unlink()


def break_column(folder: Path) -> None:
    pq.write_table(pa.table({"img": [b"x"], "fine_label": [1]}), folder / "train.parquet")


def break_type(folder: Path) -> None:
    pq.write_table(pa.table({"image": ["a.jpg"], "label": [1]}), folder / "train.parquet")


def break_file(folder: Path) -> None:
    (folder / "test.parquet").write_bytes(b"not parquet at all")


def break_rows(folder: Path) -> None:
    write_parquet(folder / "train.parquet", [], [])


def break_label(folder: Path) -> None:
    encoded = [encode(image) for image in random_images(2)]
    write_parquet(folder / "test.parquet", encoded, [0, 3])


def break_negative_label(folder: Path) -> None:
    encoded = [encode(image) for image in random_images(2)]
    write_parquet(folder / "train.parquet", encoded, [-1, 0], class_names="ant,bee,cow")


def break_null_label(folder: Path) -> None:
    encoded = [encode(image) for image in random_images(2)]
    write_parquet(folder / "train.parquet", encoded, [None, 0])


def break_null_image(folder: Path) -> None:
    write_parquet(folder / "train.parquet", [encode(random_images(1)[0]), None], [0, 2])


def break_size(folder: Path) -> None:
    write_parquet(
        folder / "train.parquet", [encode(random_images(1, side=side)[0]) for side in (8, 9)], [0, 2]
    )


def break_class_count(folder: Path) -> None:
    for part in ("train", "test"):
        write_parquet(folder / f"{part}.parquet", [encode(random_images(1)[0])], [0])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (break_part, r"train\.parquet is missing; .* folder with train\.parquet and test\.parquet"),
        (
            break_column,
            r"train\.parquet .*image: struct<bytes: binary, path: string> and label: int64; .*"
            r"it has: img: binary, fine_label: int64",
        ),
        (break_type, r"train\.parquet must have columns image: struct.*it has: image: string, label: int64"),
        (break_file, r"test\.parquet is not a Parquet file"),
        (break_rows, r"train\.parquet holds no rows"),
        (break_label, r"test\.parquet has label 3 in row 1 \(1 such rows\), outside the 3 classes 0 to 2"),
        (break_negative_label, r"train\.parquet has label -1 in row 0 .*outside the 3 classes 0 to 2"),
        (break_null_label, r"train\.parquet has 1 rows without a label"),
        (break_null_image, r"Row 1 of .*train\.parquet has no image bytes"),
        (break_size, r"Row 1 of .*train\.parquet is 9x9 pixels, not 8x8 .*give image_size"),
        (break_class_count, r"dataset='parquet:.*' has 1 class; a classifier needs at least 2"),
    ],
)
def test_a_damaged_parquet_set_is_refused_in_one_sentence(
    parquet_folder: Path, damage: Callable[[Path], None], sentence: str
) -> None:
    damage(parquet_folder)
    with pytest.raises(DataError, match=sentence) as caught:
        load(f"parquet:{parquet_folder}")
    assert "\n" not in str(caught.value)


@needs_real_images
@pytest.mark.parametrize(
    ("name", "classes", "first"), [("cifar10", 10, "airplane"), ("tinyimagenet100", 100, None)]
)
def test_real_sets(name: str, classes: int, first: str | None) -> None:
    data = load(f"parquet:{REAL / name}", limit_train=300, limit_test=100)
    assert (len(data.train), len(data.test), data.num_classes) == (300, 100, classes)
    assert (data.channels, data.image_size) == (3, 32)
    assert first is None or data.class_names[0] == first
    row = next(pq.ParquetFile(REAL / name / "train.parquet").iter_batches(batch_size=1)).to_pylist()[0]
    expected = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"))
    assert np.array_equal(pixels(data, 0).permute(1, 2, 0).numpy(), expected)
    assert data.train[0][1] == row["label"]
    assert all(0.3 < mean < 0.6 for mean in data.mean)


# --- image size ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 8, 24])
def test_images_are_resized(parquet_folder: Path, size: int) -> None:
    data = load(f"parquet:{parquet_folder}", image_size=size, augment=True)
    assert data.image_size == size
    assert data.train[0][0].shape == data.test[0][0].shape == (3, size, size)
    # What is to be enlarged is held small.
    assert data.train.images.side == min(size, 8)


def test_resizing_keeps_the_picture() -> None:
    own, large = load("digits"), load("digits", image_size=32)
    back = torch.nn.functional.avg_pool2d(pixels(large, 0).float(), 4)
    assert (back - pixels(own, 0).float()).abs().mean() < 12


# --- image folders ------------------------------------------------------------------------------------------


def write_folder(root: Path, test_name: str = "test", *, side: int = 8) -> None:
    for part, count in (("train", 6), (test_name, 2)):
        for shade, name in ((10, "ant"), (100, "bee"), (200, "cow")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (side, side), (shade, i, 0)).save(folder / f"{i}.png")


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_an_image_folder_comes_back_with_its_classes(tmp_path: Path, test_name: str) -> None:
    write_folder(tmp_path, test_name)
    data = load(f"imagefolder:{tmp_path}")
    assert data.class_names == ("ant", "bee", "cow")
    assert (len(data.train), len(data.test)) == (18, 6)
    for part in ("train", "test"):
        for index in range(6):
            shade = int(pixels(data, index, part)[0, 0, 0])
            assert {10: 0, 100: 1, 200: 2}[shade] == getattr(data, part)[index][1]


def test_the_first_images_of_a_folder_are_of_several_classes(tmp_path: Path) -> None:
    write_folder(tmp_path)
    assert len(load(f"imagefolder:{tmp_path}", limit_train=6).train.labels.unique()) > 1


def test_a_test_part_that_lacks_a_class_keeps_the_labels(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for path in (tmp_path / "test" / "ant").iterdir():
        path.unlink()
    assert sorted(load(f"imagefolder:{tmp_path}").test.labels.tolist()) == [1, 1, 2, 2]


def test_pictures_of_any_shape_are_cut_to_image_size(tmp_path: Path) -> None:
    write_folder(tmp_path)
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    Image.fromarray(wide).save(tmp_path / "train" / "ant" / "wide.png")
    with pytest.raises(DataError, match="give image_size"):
        load(f"imagefolder:{tmp_path}")
    data = load(f"imagefolder:{tmp_path}", image_size=10)
    brightest = max(pixels(data, i).float().mean().item() for i in range(19))
    assert brightest == 255, "the middle third, which is white, should remain"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda root: (root / "test").rename(root / "holdout"), r"test is missing; an image folder holds"),
        (
            lambda root: (root / "train" / "cow").rename(root / "train" / "cat"),
            r"has the class 'cow', which .*train lacks; classes there: ant, bee, cat",
        ),
        (
            lambda root: (root / "train" / "ant" / "0.png").write_bytes(b"GIF89a"),
            r"Image '.*0\.png' cannot be decoded as an image",
        ),
        (
            lambda root: Image.fromarray(np.zeros((8, 8), np.uint16)).save(root / "train" / "ant" / "0.png"),
            r"Image '.*0\.png' has more than 8 bits a channel",
        ),
    ],
)
def test_a_damaged_image_folder_is_refused(
    tmp_path: Path, damage: Callable[[Path], object], sentence: str
) -> None:
    write_folder(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=sentence):
        load(f"imagefolder:{tmp_path}")


def test_an_image_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train" / "ant").mkdir(parents=True)
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match=r"train holds no class folder with images \(\.jpg"):
        load(f"imagefolder:{tmp_path}")


# --- torchvision --------------------------------------------------------------------------------------------


def test_mnist_is_read_from_torchvisions_own_files(tmp_path: Path) -> None:
    array = random_images(20, side=28, channels=1)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 20), ("t10k", 8)):
        header = np.array([2051, count, 28, 28], ">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + array[:count].tobytes())
        labels = np.arange(count, dtype=np.uint8) % 10
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            np.array([2049, count], ">i4").tobytes() + labels.tobytes()
        )
    data = load("mnist", data_dir=tmp_path, limit_test=5)
    assert (len(data.train), len(data.test), data.num_classes, data.channels) == (20, 5, 10, 1)
    assert np.array_equal(pixels(data, 7)[0].numpy(), array[7])
    assert data.train[13][1] == 3
    assert not data.train.flip


def test_cifar_and_svhn_come_with_channels_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Only the checksums are set aside; torchvision's own readers read these files.
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda _self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    monkeypatch.setattr(torchvision.datasets.utils, "check_integrity", lambda *_: True)
    monkeypatch.setattr(torchvision.datasets.SVHN, "_check_integrity", lambda _self: True)
    array = random_images(10, side=32)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rows = array.transpose(0, 3, 1, 2).reshape(10, -1)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": list(range(10))}))
    names = ["plane", *"abcdefghi"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    for part in ("train", "test"):
        # The files count the digit 0 as 10.
        scipy.io.savemat(
            tmp_path / f"{part}_32x32.mat", {"X": array.transpose(1, 2, 3, 0), "y": np.arange(1, 11)[:, None]}
        )
    cifar, svhn = load("cifar10", data_dir=tmp_path), load("svhn", data_dir=tmp_path)
    assert (len(cifar.train), len(cifar.test), cifar.class_names[0]) == (50, 10, "plane")
    for data in (cifar, svhn):
        assert np.array_equal(pixels(data, 4).permute(1, 2, 0).numpy(), array[4])
    assert cifar.train.flip
    assert not svhn.train.flip
    assert svhn.train[9][1] == 0
    assert svhn.class_names == tuple("0123456789")


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Send every request to this port of this machine."""

    def send_to(port: int) -> None:
        for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.delenv(name, raising=False)
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        # urllib reads the environment when it makes its opener.
        urllib.request.install_opener(urllib.request.build_opener())

    yield send_to
    urllib.request.install_opener(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["cifar10", "cifar100", "mnist", "fashionmnist", "kmnist", "emnist", "svhn", "stl10"]
)
def test_a_failed_download_names_the_set_the_folder_and_the_way_out(
    tmp_path: Path, name: str, proxy: Callable[[int], None]
) -> None:
    proxy(9)  # nobody listens there
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        load(name, data_dir=tmp_path)
    assert time.monotonic() - start < 10
    message = str(caught.value)
    assert f"dataset={name!r}" in message
    assert f"data_dir={str(tmp_path)!r}" in message
    assert "Connection refused" in message
    assert "dataset=parquet:PATH" in message
    assert "\n" not in message


def test_a_server_that_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: Callable[[int], None]
) -> None:
    monkeypatch.setattr(downloads, "DOWNLOAD_TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy(server.getsockname()[1])
        with pytest.raises(DataError, match="timed out"):
            load("svhn", data_dir=tmp_path)
    assert socket.getdefaulttimeout() is None


# --- names and numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "sentence"),
    [
        ("cifar11", r"dataset='cifar11' is not known; accepted: digits, cifar10, .*Did you mean 'cifar10'\?"),
        ("parquet:", r"dataset='parquet:' lacks the folder; give parquet:PATH"),
        ("parquet", r"dataset='parquet' is not known; .*parquet:PATH"),
        ("", r"dataset='' is not known"),
    ],
)
def test_an_unknown_name_is_refused(dataset: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load(dataset)


@pytest.mark.parametrize("kind", ["parquet", "imagefolder"])
def test_a_missing_folder_is_named(tmp_path: Path, kind: str) -> None:
    with pytest.raises(
        DataError, match=rf"dataset={kind}:.*absent names no folder; give one that holds train"
    ):
        load(f"{kind}:{tmp_path / 'absent'}")


@pytest.mark.parametrize("name", ["limit_train", "limit_test", "image_size"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_below_one_are_refused(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{name}={value} must be at least 1"):
        load("digits", **{name: value})
