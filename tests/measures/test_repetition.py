"""Data that come in the same order each epoch: how surely it is told, and what is not taken for it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader

from mlflow_dynamics.config import MeasureConfig, RecordingConfig
from mlflow_dynamics.measures.repetition import SURE, Repetition
from mlflow_dynamics.pipeline import Pipeline
from mlflow_dynamics.recording import Recorder
from mlflow_dynamics.records import EpochActivations, EpochRecord, Layer
from mlflow_dynamics.training.data import load_dataset
from mlflow_dynamics.training.models import build_model

RNG = np.random.default_rng(0)


def epoch(number: int, mean: np.ndarray, *, every: int = 1, start: int | None = None) -> EpochActivations:
    """An epoch whose layers all have the deviation 0, so that rms is |mean|."""
    layers = tuple(
        Layer(index=i, name=f"layer{i}", type="Linear", output_shape=(1,), parameters=1)
        for i in range(len(mean))
    )
    steps = mean.shape[1]
    first = number * steps * every if start is None else start
    return EpochActivations(
        epoch=number,
        step=np.arange(first, first + steps * every, every, dtype=np.int32),
        mean=mean.astype(np.float32),
        std=np.zeros_like(mean, dtype=np.float32),
        layers=layers,
    )


RNG_ORDER = np.random.default_rng(5).standard_normal(40)


def compared(epochs: Iterable[EpochActivations]) -> Repetition:
    found = Repetition()
    for one in epochs:
        found.append(one)
    return found


def coupled(layers: int, steps: int) -> np.ndarray:
    """Layers that share half of a noise, far above 0."""
    return 100 + RNG.standard_normal((layers, steps)) + RNG.standard_normal(steps)


def test_two_epochs_of_one_layer_agree_by_spearmans_correlation() -> None:
    a, b = coupled(1, 40), coupled(1, 40)
    found = compared([epoch(0, a), epoch(1, b)])
    expected = stats.spearmanr(np.diff(a[0, 4:]), np.diff(b[0, 4:])).statistic
    assert found.agreement == pytest.approx(expected, abs=1e-3)  # float32 may join two ranks
    assert found.score == pytest.approx(expected * math.sqrt(34), rel=1e-2)


@pytest.mark.parametrize("steps", [12, 40, 157])
def test_the_score_of_shuffled_data_has_mean_0_and_deviation_1(steps: int) -> None:
    scores = [compared(epoch(e, coupled(8, steps)) for e in range(6)).score for _ in range(300)]
    assert np.mean(scores) == pytest.approx(0, abs=0.25)
    assert 0.85 < np.std(scores) < 1.3  # changes of white noise are correlated, which widens it


def test_the_same_order_is_found_under_noise_and_trends() -> None:
    order = RNG.standard_normal(40)
    found = compared(epoch(e, coupled(8, 40) * (1 + 0.2 * e) + 2 * order + 3 * e) for e in range(8))
    assert found.same_order
    assert 0.1 < found.agreement < 0.9


def test_what_comes_back_at_the_beginning_of_an_epoch_is_not_the_order_of_the_data() -> None:
    restart = np.zeros(40)
    restart[:3] = 50, 20, 8
    found = compared(epoch(e, coupled(8, 40) + restart + np.linspace(0, 20, 40)) for e in range(30))
    assert not found.same_order
    assert abs(found.agreement) < 0.1


@pytest.mark.parametrize("period", [2, 4, 8])
def test_a_swing_from_step_to_step_is_not_the_order_of_the_data(period: int) -> None:
    """An epoch has a whole number of periods, so that equal steps do agree."""
    swing = 5 * np.cos(2 * np.pi * np.arange(40) / period)
    found = compared(epoch(e, coupled(8, 40) + swing) for e in range(8))
    assert found.score > SURE
    assert not found.same_order
    both = compared(epoch(e, coupled(8, 40) + swing + 10 * RNG_ORDER) for e in range(8))
    assert both.same_order


def test_epochs_of_another_length_are_compared_anew() -> None:
    order, longer = RNG.standard_normal(40), RNG.standard_normal(60)
    same = [epoch(e, coupled(8, 40) + 3 * order) for e in range(4)]
    assert compared(same).same_order
    starts = [160 + 60 * e for e in range(3)]
    rest = [epoch(4 + e, coupled(8, 60) + 3 * longer, start=start) for e, start in enumerate(starts)]
    found = compared([*same, *rest])
    assert found.same_order
    assert found.agreement == pytest.approx(compared(rest).agreement)


def test_epochs_that_cannot_be_laid_over_each_other_are_not_compared() -> None:
    same = coupled(4, 40)
    for other in (
        epoch(1, same[:, :39]),  # another length
        epoch(1, same, start=41),  # a step is missing between
        epoch(1, same, every=2, start=40),
    ):
        assert math.isnan(compared([epoch(0, same), other]).score)
    assert math.isnan(compared(epoch(e, same[:, :9]) for e in range(9)).score)  # too short
    assert math.isnan(compared(epoch(e, np.ones((4, 40))) for e in range(9)).score)  # constant
    assert math.isnan(compared([epoch(0, same), epoch(1, same[:, :0]), epoch(2, same)]).score)
    assert not Repetition().same_order
    every_third = compared(epoch(e, same, every=3) for e in range(3))
    assert every_third.agreement == pytest.approx(1)


def test_a_layer_that_is_not_called_is_left_out() -> None:
    same = coupled(4, 40)
    gone = same.copy()
    gone[1, 3:] = np.nan
    gone[2, ::2] = np.nan
    found = compared([epoch(0, same), epoch(1, gone), epoch(2, same)])
    assert found.agreement == pytest.approx(1)


@pytest.mark.parametrize("value", [np.inf, 3.0])
def test_an_epoch_in_which_a_layer_overflows_or_is_dead_is_not_compared(value: float) -> None:
    same = coupled(4, 40)
    broken = same.copy()
    broken[1] = value
    assert math.isnan(compared([epoch(0, same), epoch(1, broken), epoch(2, same)]).score)
    assert compared(
        [epoch(0, same), epoch(1, broken), epoch(2, same), epoch(3, same)]
    ).agreement == pytest.approx(1)


@pytest.mark.parametrize("shuffled", [True, False])
def test_of_a_real_training(shuffled: bool) -> None:
    """Augmented images, so that the same order does not mean the same batches."""
    torch.manual_seed(0)
    data = load_dataset(
        "digits",
        data_dir=Path(),
        limit_train=640,
        limit_test=10,
        image_size=None,
        augment=True,
        seed=0,
    )
    network = build_model("small_vgg", num_classes=10, image_size=8, channels=1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.03, momentum=0.9)
    loader = DataLoader(data.train, batch_size=32, shuffle=shuffled)
    pipeline = Pipeline(MeasureConfig())
    with Recorder(network, RecordingConfig(), optimizer=optimizer) as recorder:
        for number in range(8):
            data.set_epoch(number)
            for images, labels in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(images), labels).backward()
                optimizer.step()
            activations = recorder.end_epoch(number).result()
            pipeline.update(EpochRecord(activations=activations, metrics={}, timestamp_ms=0))
    assert pipeline.same_order is not shuffled
