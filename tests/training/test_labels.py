"""Labels in place of a data set's own: what changes, what stays, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mlflow_dynamics.errors import ConfigError, DataError
from mlflow_dynamics.training.data import ImageData, load_dataset
from mlflow_dynamics.training.parameters import TrainingConfig


def digits(labels: str, seed: int = 0) -> ImageData:
    return load_dataset(
        "digits",
        data_dir=Path(),
        limit_train=None,
        limit_test=None,
        image_size=None,
        augment=False,
        seed=seed,
        labels=labels,
    )


OWN = digits("given")


@pytest.mark.parametrize("labels", ["random", "noisy:0.3", "merged:4"])
def test_images_stay_and_the_same_seed_gives_the_same_labels(labels: str) -> None:
    one, again, other = digits(labels), digits(labels), digits(labels, seed=1)
    assert torch.equal(one.train.labels, again.train.labels)
    assert torch.equal(one.train.labels, other.train.labels) == labels.startswith("merged")
    assert not torch.equal(one.train.labels, OWN.train.labels)
    assert one.train.digest() != OWN.train.digest()
    assert all(torch.equal(one.train[i][0], OWN.train[i][0]) for i in range(20))


def test_random_labels_say_nothing_of_the_image_and_keep_how_many_there_are_of_each() -> None:
    labels = digits("random").train.labels
    assert torch.equal(labels.bincount(), OWN.train.labels.bincount())
    assert (labels == OWN.train.labels).float().mean().item() == pytest.approx(0.1, abs=0.03)
    assert torch.equal(digits("random").test.labels, OWN.test.labels)


@pytest.mark.parametrize("part", [0.1, 0.3, 0.9])
def test_noise_gives_just_so_many_images_another_class_any_as_likely(part: float) -> None:
    noisy = digits(f"noisy:{part}")
    changed = noisy.train.labels != OWN.train.labels
    assert changed.sum() == round(part * len(OWN.train))
    moved = ((noisy.train.labels - OWN.train.labels) % 10)[changed].bincount(minlength=10)[1:]
    assert moved.min() > 0.5 * changed.sum() / 9
    assert torch.equal(noisy.test.labels, OWN.test.labels)


def test_merged_classes_are_merged_in_both_parts() -> None:
    merged = digits("merged:4")
    assert merged.num_classes == 4
    assert torch.equal(merged.train.labels, OWN.train.labels % 4)
    assert torch.equal(merged.test.labels, OWN.test.labels % 4)


@pytest.mark.parametrize(
    "labels",
    [
        "",
        "shuffled",
        "noisy",
        "noisy:0",
        "noisy:0.0",
        "noisy:1",
        "noisy:30",
        "noisy:nan",
        "merged:1",
        "merged:-2",
        "random ",
    ],
)
def test_other_forms_are_refused_in_a_sentence(labels: str) -> None:
    with pytest.raises(
        ConfigError, match=r"^labels=.* must be given, random, noisy:FRACTION .* merged:10\)\.$"
    ):
        TrainingConfig(labels=labels)


def test_more_classes_than_there_are_cannot_be_merged_into() -> None:
    with pytest.raises(DataError, match="asks for 10 classes, and the data set has 10; give fewer"):
        digits("merged:10")


def test_the_run_says_what_its_labels_are() -> None:
    config = TrainingConfig(labels="noisy:0.3")
    assert config.as_parameters()["labels"] == "noisy:0.3"
    assert "labels noisy:0.3" in config.title
    assert "--labels noisy:0.3" in config.command
