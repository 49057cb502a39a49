"""The pipeline without a training or a store: an epoch's record in, its measures, volatility and verdict out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mlflow_dynamics.config import MeasureConfig
from mlflow_dynamics.convergence import ConvergenceMonitor
from mlflow_dynamics.measures import measure
from mlflow_dynamics.pipeline import Pipeline, judge
from mlflow_dynamics.records import EpochActivations, EpochRecord, Layer
from mlflow_dynamics.tracking import names

STEPS = 64
LAYERS = tuple(Layer(index=i, name=f"l{i}", type="Linear", output_shape=(1,), parameters=1) for i in range(4))


def record(epoch: int, mean: np.ndarray, metrics: dict[str, float]) -> EpochRecord:
    steps = np.arange(epoch * STEPS, (epoch + 1) * STEPS, dtype=np.int32)
    activations = EpochActivations(epoch=epoch, step=steps, mean=mean, std=np.ones_like(mean), layers=LAYERS)
    return EpochRecord(activations=activations, metrics=metrics, timestamp_ms=1_000 * epoch)


def test_an_epoch_is_measured_over_its_window_and_volatility_follows_from_the_epochs_after_start_up() -> None:
    rng = np.random.default_rng(0)
    means = [rng.normal(size=(4, STEPS)).astype(np.float32) for _ in range(8)]
    pipeline = Pipeline(MeasureConfig(signal="mean", window=STEPS))
    results = [pipeline.update(record(epoch, mean, {})) for epoch, mean in enumerate(means)]
    for epoch, (result, mean) in enumerate(zip(results, means, strict=True)):
        assert (result.epoch, result.timestamp_ms, result.verdict) == (epoch, 1_000 * epoch, None)
        assert result.measures.stability == measure(mean).stability
        assert result.as_metrics()[names.STABILITY] == result.measures.stability
    # The first window is the first epoch's: start-up. V needs five epochs after it.
    stability = [result.measures.stability for result in results]
    assert [result.measures.start_up for result in results] == [True] + [False] * 7
    assert [result.volatility for result in results[5:]] == pytest.approx(
        [np.std(stability[end - 5 : end]) for end in (6, 7, 8)]
    )
    assert all(math.isnan(result.volatility) for result in results[:5])
    assert names.VOLATILITY not in results[4].as_metrics()


def test_a_verdict_from_the_record_is_that_from_what_is_logged_of_it() -> None:
    rng = np.random.default_rng(1)
    pipeline = Pipeline(MeasureConfig(signal="mean", window=STEPS), ConvergenceMonitor())
    afterwards = ConvergenceMonitor()
    for epoch in range(40):
        loss = math.nan if epoch == 30 else 1.0 / (epoch + 1)
        # What a script logs under our own key is not what is judged.
        given = {names.TRAIN_LOSS: loss, names.LEARNING_RATE: 0.1, names.STABILITY: 7.0}
        mean = rng.normal(size=(4, STEPS)).cumsum(axis=1).astype(np.float32)
        result = pipeline.update(record(epoch, mean, given))
        logged = {**given, **result.as_metrics()}
        found = judge(afterwards, epoch, logged)
        assert (found.state, found.signal) == (result.verdict.state, result.verdict.signal)
        assert found.score == pytest.approx(result.verdict.score, nan_ok=True)
        assert (found.state == "diverging") == (epoch == 30)


def test_a_loss_that_is_not_logged_is_no_divergence() -> None:
    assert judge(ConvergenceMonitor(), 0, {names.STABILITY: 0.5}).state == "waiting"
    assert (
        judge(ConvergenceMonitor(), 0, {names.STABILITY: 0.5, names.TRAIN_LOSS: math.nan}).state
        == "diverging"
    )
    assert judge(ConvergenceMonitor(), 0, {}).message == "Epoch 0: The stability index is not defined."
