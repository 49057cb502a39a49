"""The warning as a training meets it: layers through windows, measures and monitor, from the first epoch on."""

import numpy as np
import pytest
from scipy.signal import lfilter

from mlflow_dynamics.config import MeasureConfig
from mlflow_dynamics.convergence import ConvergenceMonitor, Schedule, WarningConfig
from mlflow_dynamics.measures import SignalWindow, measure
from mlflow_dynamics.measures.windows import window_rule
from mlflow_dynamics.records import EpochActivations, Layer

LAYERS = 12


def autoregression(rng, coefficient, shape):
    noise = rng.standard_normal(shape)
    noise[..., 1:] *= np.sqrt(1 - coefficient**2)
    return lfilter([1.0], [1.0, -coefficient], noise, axis=-1)


def layers_of(rng, draws, steps, *, coefficient, common):
    values = autoregression(rng, coefficient, (draws, LAYERS + 1, steps))
    return np.sqrt(1 - common**2) * values[:, :-1] + common * values[:, -1:]


def recorded(signals, epoch, steps):
    part = signals[:, epoch * steps : (epoch + 1) * steps].astype(np.float32)
    return EpochActivations(
        epoch=epoch,
        step=np.arange(epoch * steps, (epoch + 1) * steps, dtype=np.int32),
        mean=part,
        std=np.zeros_like(part),
        layers=tuple(
            Layer(index=i, name=f"l{i}", type="Linear", output_shape=(1,), parameters=1)
            for i in range(LAYERS)
        ),
    )


def watched(signals, steps, planned):
    """The monitor after a training of (layers, steps), and each epoch's verdict."""
    window = SignalWindow(MeasureConfig(signal="mean"))
    monitor = ConvergenceMonitor(WarningConfig(schedule=Schedule(planned_epochs=planned)))
    verdicts = []
    for epoch in range(signals.shape[1] // steps):
        window.append(recorded(signals, epoch, steps))
        measures = window.measure()
        verdicts.append(monitor.update(epoch, measures.stability, start_up=measures.start_up))
    return monitor, verdicts


def fired(signals, steps, planned):
    """(draws,) whether the warning fires: the same as `watched`, with all draws' windows measured at once."""
    rule = window_rule([steps])
    epochs = signals.shape[-1] // steps
    monitors = [ConvergenceMonitor(WarningConfig(schedule=Schedule(planned_epochs=planned))) for _ in signals]
    for epoch in range(epochs):
        end = (epoch + 1) * steps
        if not rule.starting_up(end):
            stability = measure(signals[..., end - rule.length : end]).stability
            for monitor, value in zip(monitors, stability, strict=True):
                monitor.update(epoch, value)
    return np.array([monitor.converged_epoch is not None for monitor in monitors])


def test_all_draws_at_once_say_what_recorded_epochs_say():
    rng = np.random.default_rng(5)
    steps, epochs = 16, 60
    signals = layers_of(rng, 40, steps * epochs, coefficient=0.9, common=0.7).astype(np.float32)
    at_once = fired(signals, steps, epochs)
    one_by_one = [watched(one, steps, epochs)[0].converged_epoch is not None for one in signals[:10]]
    np.testing.assert_array_equal(at_once[:10], one_by_one)


def test_the_window_that_fills_is_not_read():
    signals = layers_of(np.random.default_rng(0), 1, 16 * 30, coefficient=0.9, common=0.0)[0]
    _, verdicts = watched(signals, 16, 30)
    waiting = [v.epoch for v in verdicts if v.message.endswith("The window is still in start-up.")]
    assert waiting == [1, 2, 3]  # after epoch 0, of 16 steps, S is not defined
    assert all(v.state == "waiting" for v in verdicts[: 4 + 16])
    assert verdicts[4 + 16].state == "learning"


@pytest.mark.parametrize(
    ("steps", "epochs", "draws"),
    [
        (16, 60, 200),
        pytest.param(8, 200, 400, marks=pytest.mark.slow),
        pytest.param(40, 100, 400, marks=pytest.mark.slow),
        pytest.param(79, 30, 600, marks=pytest.mark.slow),
        pytest.param(157, 60, 300, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(("coefficient", "common"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.7)])
def test_layers_that_never_change_are_not_said_to_converge(steps, epochs, draws, coefficient, common):
    count = 0
    for chunk in range(draws // 50):
        rng = np.random.default_rng([7, steps, epochs, chunk])
        signals = layers_of(rng, 50, steps * epochs, coefficient=coefficient, common=common)
        count += fired(signals, steps, epochs).sum()
    # At a true rate of 5 % more than this is drawn once in a hundred times.
    assert count <= 0.05 * draws + 2.33 * np.sqrt(0.05 * 0.95 * draws)


def test_layers_whose_memory_settles_are():
    rng = np.random.default_rng(3)
    steps, epochs, draws = 79, 60, 40
    wander = rng.uniform(-1, 1, (draws, epochs)) * np.where(np.arange(epochs) < 30, 1.0, 0.2)
    coefficient = np.repeat(0.6 + 0.35 * wander, steps, axis=1)[:, None]
    signals = rng.standard_normal((draws, LAYERS, steps * epochs))
    for t in range(1, steps * epochs):
        phi = coefficient[..., t]
        signals[..., t] = phi * signals[..., t - 1] + np.sqrt(1 - phi**2) * signals[..., t]
    assert fired(signals, steps, epochs).mean() >= 0.6
