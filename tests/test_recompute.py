"""A recorded run measured anew: the run's own numbers, any other reading, and one window in memory."""

from __future__ import annotations

import itertools
import tracemalloc
from dataclasses import replace

import mlflow
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mlflow import MlflowClient
from torch import nn

import mlflow_dynamics
from mlflow_dynamics.cli import commands
from mlflow_dynamics.config import MeasureConfig
from mlflow_dynamics.errors import ConfigError, TrackingError
from mlflow_dynamics.measures import measure
from mlflow_dynamics.measures.protocols import MIN_DEPTH, MIN_EPOCHS
from mlflow_dynamics.recomputing import log_recomputed, recompute, settings_of
from mlflow_dynamics.records import EpochActivations, Layer
from mlflow_dynamics.tracking import RunWriter

STEPS = 9
LAYERS = 17
EPOCHS = MIN_EPOCHS + 2


def train(**settings: object) -> str:
    """A real training of a deep small network; the run's id."""
    torch.manual_seed(0)
    blocks = [layer for _ in range(LAYERS - 1) for layer in (nn.Linear(8, 8), nn.Tanh())]
    model = nn.Sequential(*blocks, nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with (
        mlflow.start_run() as run,
        mlflow_dynamics.track(model, measures=MeasureConfig(**settings)) as tracker,
    ):
        for _ in range(EPOCHS):
            for _ in range(STEPS):
                x = torch.randn(16, 8)
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), (x.sum(dim=1) > 0).long()).backward()
                optimizer.step()
            tracker.end_epoch()
    return str(run.info.run_id)


def logged(run_id: str, prefix: str) -> dict[tuple[str, int], float]:
    """(name, epoch) -> value of all metrics under a prefix."""
    client = MlflowClient()
    return {
        (key.removeprefix(prefix), point.step): point.value
        for key in client.get_run(run_id).data.metrics
        if key.startswith(prefix) and "convergence" not in key
        for point in client.get_metric_history(run_id, key)
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"window": 100, "uncertainty": True},
        {"signal": "mean", "estimator": "hk"},
        {"protocol": "epochs", "signal": "std"},
        {"protocol": "depth", "volatility_window": 3},
    ],
)
def test_the_runs_own_settings_give_its_own_numbers(settings: dict[str, object]) -> None:
    run_id = train(**settings)
    own = logged(run_id, "dynamics/")
    config = settings_of(run_id)
    asked = MeasureConfig(**settings)
    assert config == replace(asked, estimator=asked.resolved_estimator)
    log_recomputed(run_id, recompute(run_id, config), name="again")
    again = logged(run_id, "dynamics.again/")
    assert len(again) > 10
    assert again == pytest.approx(own, abs=1e-9)
    with pytest.raises(ConfigError, match=r"name='again' is taken"):
        log_recomputed(run_id, [], name="again")
    with pytest.raises(ConfigError, match=r"name='a/b' must be"):
        log_recomputed(run_id, [], name="a/b")


def test_every_reading_is_what_the_stored_activations_say() -> None:
    run_id = train()
    table = mlflow_dynamics.load_activations(run_id).to_pandas().sort_values(["layer", "step"])
    mean, std = (table[name].to_numpy(float).reshape(LAYERS, EPOCHS * STEPS) for name in ("mean", "std"))
    # As precise as the record: what float64 adds below that is no signal.
    values = {"rms": np.hypot(mean, std).astype(np.float32), "mean": mean, "std": std}
    for signal, estimator in itertools.product(values, ("dfa", "hk")):
        steps = values[signal]
        signals = {
            "steps": steps[:, -80:],
            "epochs": steps.reshape(LAYERS, EPOCHS, STEPS).mean(axis=2, dtype=float),
            "depth": steps[:, -80:].T,
        }
        for protocol, expected_of in signals.items():
            config = MeasureConfig(protocol=protocol, signal=signal, estimator=estimator, window=80)
            *_, last = recompute(run_id, config)
            expected = measure(expected_of, estimator=estimator, min_steps=min(MIN_DEPTH, MIN_EPOCHS))
            found = (last.measures.integration, last.measures.synchrony, last.measures.metastability)
            assert found == pytest.approx(
                (expected.integration, expected.synchrony, expected.metastability), abs=1e-6
            )
            assert last.measures.reason is None


def test_the_command_prints_every_epoch_and_logs_on_request() -> None:
    run_id = train()
    arguments = ["recompute", run_id, "--protocol", "epochs", "--signal", "std", "--log", "slow"]
    done = CliRunner().invoke(commands, arguments)
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.output.splitlines()]
    assert rows[0] == [
        "epoch",
        "integration",
        "metastability",
        "synchrony",
        "stability",
        "volatility",
        "start-up",
    ]
    assert [int(row[0]) for row in rows[1:]] == list(range(EPOCHS))
    slow = logged(run_id, "dynamics.slow/")
    assert float(rows[-1][1]) == pytest.approx(slow["integration", EPOCHS - 1], abs=1e-6)
    assert rows[1][1] == "nan"
    marked = [epoch for (key, epoch), value in slow.items() if key == "details/start_up" and value]
    assert marked == [int(row[0]) for row in rows[1:] if row[-1] == "yes"] == list(range(EPOCHS))


def test_a_run_that_is_not_there_or_holds_nothing_is_one_sentence() -> None:
    with mlflow.start_run() as run:
        pass
    for run_id, message in ((run.info.run_id, "holds no activations"), ("f" * 32, "cannot be read")):
        with pytest.raises(TrackingError, match=message):
            list(recompute(run_id, MeasureConfig()))


def long_run(epochs: int) -> str:
    """A run of many wide epochs, written as a tracker writes them."""
    layers = tuple(
        Layer(index=i, name=f"l{i}", type="Linear", output_shape=(1,), parameters=1) for i in range(60)
    )
    rng = np.random.default_rng(0)
    with mlflow.start_run() as run:
        writer = RunWriter(run.info.run_id).start()
        writer.write_layers(layers)
        for epoch in range(epochs):
            writer.write_epoch(
                epoch,
                EpochActivations(
                    epoch=epoch,
                    step=np.arange(epoch * 1000, (epoch + 1) * 1000, dtype=np.int32),
                    mean=rng.normal(size=(60, 1000)).astype(np.float32),
                    std=rng.uniform(0.5, 1.5, size=(60, 1000)).astype(np.float32),
                    layers=layers,
                ),
                {"train/loss": 1.0},
                None,
                1_000 * epoch,
            )
        assert writer.close(60) == 0
    return str(run.info.run_id)


def test_memory_is_that_of_one_window() -> None:
    def peak(run_id: str) -> int:
        tracemalloc.start()
        try:
            for _ in recompute(run_id, MeasureConfig()):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    short, long = long_run(4), long_run(40)
    peak(short)  # imports and caches
    assert peak(long) < 1.1 * peak(short) + 1e6
    # All of its epochs at once would be 19 MB in float32 alone.
    assert peak(long) < 10e6


def test_a_window_of_steps_and_one_that_follows_the_epochs_are_read_back_and_changed_into_each_other() -> (
    None
):
    following, fixed = train(), train(window=100)
    assert mlflow.get_run(following).data.params["dynamics/window"] == "auto"
    assert mlflow.get_run(fixed).data.params["dynamics/window"] == "100"
    assert settings_of(following).window is None
    assert settings_of(fixed).window == 100
    runs = {"auto": following, "100": fixed}
    for window, other in (("auto", fixed), ("100", following)):
        arguments = ["recompute", other, "--window", window, "--log", "other"]
        done = CliRunner().invoke(commands, arguments)
        assert done.exit_code == 0, done.output
        assert logged(other, "dynamics.other/") == pytest.approx(logged(runs[window], "dynamics/"), abs=1e-9)
    # Of 9 steps an epoch a window holds 32 and the first 13 steps are left out; or 100, and the first epoch.
    for run_id, first in ((following, 4), (fixed, 12)):
        start_up = [logged(run_id, "dynamics/")["details/start_up", epoch] for epoch in range(EPOCHS)]
        assert start_up == [1.0] * first + [0.0] * (EPOCHS - first)
        volatile = [epoch for name, epoch in logged(run_id, "dynamics/") if name == "volatility"]
        assert volatile == list(range(first + 4, EPOCHS))
