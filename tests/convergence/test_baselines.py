"""The baselines on curves whose answer is worked out by hand, and patience against Lightning itself."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mlflow_dynamics.convergence.baselines import (
    generalization_loss_stop,
    patience_stop,
    progress_quotient_stop,
    rolling_deviation_stop,
    successive_increase_stop,
)
from mlflow_dynamics.errors import ConfigError


def test_patience_counts_epochs_without_improvement():
    loss = [3, 2, 1, 1, 1, 0.5, 0.6, 0.6, 0.6]
    assert patience_stop(loss, patience=2, mode="min") == 4
    assert patience_stop(loss, patience=3, mode="min") == 8
    assert patience_stop(loss, patience=4, mode="min") is None
    assert patience_stop([-x for x in loss], patience=3, mode="max") == 8
    assert patience_stop(loss, patience=0, mode="min") == patience_stop(loss, patience=1, mode="min") == 3


def test_patience_needs_more_than_min_delta():
    loss = [1.0, 0.75, 0.5, 0.25]
    assert patience_stop(loss, patience=1, mode="min", min_delta=0.2) is None
    assert patience_stop(loss, patience=1, mode="min", min_delta=0.25) == 1


def test_patience_on_nan_is_where_keras_and_lightning_differ():
    loss = [1.0, math.nan, 0.5, math.nan, math.nan]
    assert patience_stop(loss, patience=2, mode="min", semantics="keras") == 4
    assert patience_stop(loss, patience=2, mode="min", semantics="lightning") == 1


def test_patience_refuses_what_it_does_not_know():
    with pytest.raises(ConfigError, match="mode='up' is not known; accepted: min, max"):
        patience_stop([1.0], patience=1, mode="up")
    with pytest.raises(ConfigError, match="semantics='fastai' is not known; accepted: keras, lightning"):
        patience_stop([1.0], patience=1, mode="min", semantics="fastai")
    with pytest.raises(ConfigError, match="patience=-1 must be 0 or more"):
        patience_stop([1.0], patience=-1, mode="min")


@pytest.mark.parametrize("patience", [0, 1, 3])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_patience_is_lightnings(patience, mode):
    torch = pytest.importorskip("torch")
    callbacks = pytest.importorskip("lightning.pytorch.callbacks", reason="needs lightning")
    rng = np.random.default_rng(patience)
    for _ in range(20):
        values = rng.integers(0, 12, 25) / 4.0
        if rng.random() < 0.3:
            values[rng.integers(25)] = math.nan
        theirs = callbacks.EarlyStopping("x", patience=patience, mode=mode, min_delta=0.25, verbose=False)
        stopped = None
        for epoch, value in enumerate(values):
            if theirs._evaluate_stopping_criteria(torch.tensor(value))[0]:
                stopped = epoch
                break
        ours = patience_stop(values, patience=patience, mode=mode, min_delta=0.25, semantics="lightning")
        assert ours == stopped


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers and logging intervals
@pytest.mark.parametrize("patience", [1, 3])
def test_patience_ends_a_fit_where_lightnings_callback_does_and_keras_counts_alike(patience, tmp_path):
    torch = pytest.importorskip("torch")
    lightning = pytest.importorskip("lightning.pytorch", reason="needs lightning")
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    values = np.random.default_rng(patience).integers(0, 40, 30) / np.arange(8, 38)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch, index):
            return self.layer(batch).mean()

        def validation_step(self, batch, index):
            self.log("loss", torch.tensor(values[self.current_epoch]))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    theirs = callbacks.EarlyStopping("loss", patience=patience, mode="min")
    trainer = lightning.Trainer(
        max_epochs=len(values),
        accelerator="cpu",
        callbacks=[theirs],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    loader = torch.utils.data.DataLoader(torch.ones(1, 1))
    trainer.fit(Module(), loader, loader)
    assert 0 < theirs.stopped_epoch < len(values) - 1
    for semantics in ("lightning", "keras"):
        assert (
            patience_stop(values, patience=patience, mode="min", semantics=semantics) == theirs.stopped_epoch
        )


def test_the_two_counts_are_one_on_finite_values():
    rng = np.random.default_rng(7)
    for _ in range(300):
        values = rng.integers(0, 12, 25) / 4.0
        patience, mode = int(rng.integers(1, 8)), str(rng.choice(["min", "max"]))
        keras, lightning = (
            patience_stop(values, patience=patience, mode=mode, min_delta=0.25, semantics=semantics)
            for semantics in ("keras", "lightning")
        )
        assert keras == lightning


def test_generalization_loss():
    loss = [2.0, 1.0, 1.04, 1.06, 0.9]
    assert generalization_loss_stop(loss, alpha=5) == 3
    assert generalization_loss_stop(loss, alpha=3) == 2
    assert generalization_loss_stop(loss, alpha=7) is None


def test_progress_quotient_stops_only_where_a_strip_ends_and_progress_is_small():
    validation = [1.0, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1]
    # GL is 10 from epoch 1 on; P_5 is 1000 (1.2 / 1 - 1) = 200 in the first strip, 1000 (1.002 / 1 - 1) = 2 then.
    training = [1.4, 1.3, 1.2, 1.1, 1.0, 1.004, 1.003, 1.002, 1.001, 1.0]
    assert progress_quotient_stop(training, validation, alpha=0.04) == 4
    assert progress_quotient_stop(training, validation, alpha=0.06) == 9
    assert progress_quotient_stop(training, validation, alpha=6.0) is None
    assert progress_quotient_stop([1.0] * 5, [1, 1, 1, 1, 1.01], alpha=100.0) == 4
    assert progress_quotient_stop([1.0] * 5, [1.0] * 5, alpha=1.0) is None


def test_successive_increases_look_at_ends_of_strips():
    loss = np.ones(25)
    loss[[4, 9, 14, 19, 24]] = [1.0, 1.1, 1.0, 1.1, 1.2]
    loss[6] = 50.0
    assert successive_increase_stop(loss, increases=1) == 9
    assert successive_increase_stop(loss, increases=2) == 24
    assert successive_increase_stop(loss, increases=3) is None
    assert successive_increase_stop([1.0, 2.0], increases=1) is None


def test_rolling_deviation():
    values = np.concatenate([np.tile([0.0, 1.0], 10), np.full(10, 0.5)])
    # The windows that end at epoch 23 and later hold at most one of the loud epochs.
    deviation = [np.std(values[e - 4 : e + 1]) for e in range(4, 30)]
    low = [d < 0.3 * max(deviation[: i + 1]) for i, d in enumerate(deviation)]
    expected = next(i for i in range(2, len(low)) if all(low[i - 2 : i + 1])) + 4
    assert rolling_deviation_stop(values) == expected == 26
    assert rolling_deviation_stop(values[:20]) is None
    assert rolling_deviation_stop([1.0, 2.0]) is None
