"""The monitor: pure, gated by the learning rate, and never mistaking trouble for convergence."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mlflow_dynamics.convergence import ConvergenceMonitor, Schedule, WarningConfig
from mlflow_dynamics.convergence.schedule import HOLD_OFF, schedule_of
from mlflow_dynamics.errors import ConfigError

EPOCHS = 100
PLAN = Schedule(name="constant", planned_epochs=EPOCHS)


def settling(epochs=EPOCHS, *, at=30, seed=0):
    """Stability whose noise falls to a tenth at epoch `at`."""
    rng = np.random.default_rng(seed)
    return 0.5 + np.where(np.arange(epochs) < at, 0.05, 0.005) * rng.standard_normal(epochs)


def feed(monitor, stability, *, first=0, rates=None, losses=None):
    return [
        monitor.update(
            first + i,
            float(s),
            learning_rate=None if rates is None else rates[i],
            loss=None if losses is None else losses[i],
        )
        for i, s in enumerate(stability)
    ]


def facts(verdicts):
    """Verdicts in a form in which NaN equals NaN."""
    return [repr(v) for v in verdicts]


def test_a_settling_series_is_signalled_and_stopped():
    monitor = ConvergenceMonitor(WarningConfig(mode="stop", schedule=PLAN))
    verdicts = feed(monitor, settling())
    at = monitor.converged_epoch
    assert 30 < at < 60
    assert [v.signal for v in verdicts] == [0] * at + [1] * (EPOCHS - at)
    assert [v.should_stop for v in verdicts] == [False] * at + [True] * (EPOCHS - at)
    assert monitor.should_stop
    assert verdicts[at].state == "converging"
    assert verdicts[at].score >= 1
    assert verdicts[at - 1].score < 1
    assert f"since epoch {at} the volatility of stability has surely fallen" in verdicts[at].message


def test_warn_never_stops_and_says_the_same_otherwise():
    warn = feed(ConvergenceMonitor(schedule=PLAN), settling())
    stop = feed(ConvergenceMonitor(WarningConfig(mode="stop", schedule=PLAN)), settling())
    assert not any(v.should_stop for v in warn)
    assert [(v.signal, v.state, v.message) for v in warn] == [(v.signal, v.state, v.message) for v in stop]


def test_the_length_need_not_be_known():
    monitor = ConvergenceMonitor(WarningConfig(mode="stop"))
    assert feed(monitor, settling())[-1].should_stop


def test_a_stored_series_gives_the_live_verdicts_whatever_comes_later():
    series = settling()
    whole = facts(feed(ConvergenceMonitor(schedule=PLAN), series))
    for end in (10, 40, 77):
        assert facts(feed(ConvergenceMonitor(schedule=PLAN), series[:end])) == whole[:end]


def test_too_few_epochs_are_said_to_be_too_few():
    verdicts = feed(ConvergenceMonitor(WarningConfig(mode="stop")), settling(16))
    assert {v.state for v in verdicts} == {"waiting"}
    assert all(math.isnan(v.score) and v.signal == 0 and not v.should_stop for v in verdicts)
    assert "too few epochs" in verdicts[-1].message


@pytest.mark.parametrize("seed", range(5))
def test_a_jump_across_missing_epochs_is_no_difference(seed):
    series = settling(at=30, seed=seed)
    jumping = series.copy()
    jumping[50:] -= 0.3

    def gap(values):
        monitor = ConvergenceMonitor(schedule=PLAN)
        return [*feed(monitor, values[:50]), *feed(monitor, values[53:], first=53)]

    plain, jumped = gap(series), gap(jumping)
    assert [v.signal for v in plain] == [v.signal for v in jumped]
    np.testing.assert_allclose([v.score for v in plain], [v.score for v in jumped], rtol=1e-6)


def test_going_back_to_an_epoch_forgets_what_followed_it():
    series = settling()
    wrong = np.full(20, 0.9)
    monitor = ConvergenceMonitor(schedule=PLAN)
    feed(monitor, series[:50])
    feed(monitor, wrong, first=50, losses=[math.inf] * 20)
    resumed = feed(monitor, series[50:], first=50)
    assert facts(resumed) == facts(feed(ConvergenceMonitor(schedule=PLAN), series))[50:]


def test_going_back_before_the_detection_takes_it_back():
    monitor = ConvergenceMonitor(schedule=PLAN)
    feed(monitor, settling())
    assert monitor.converged_epoch is not None
    monitor.update(5, 0.5)
    assert monitor.converged_epoch is None


def test_stability_undefined_at_first_is_waiting_and_later_is_divergence():
    monitor = ConvergenceMonitor(WarningConfig(mode="stop", schedule=PLAN))
    assert monitor.update(0, math.nan).state == "waiting"
    verdicts = feed(monitor, settling(80), first=1)
    assert verdicts[-1].signal == 1
    lost = monitor.update(81, math.nan)
    assert (lost.state, lost.signal, lost.should_stop) == ("diverging", 0, False)
    assert "no longer defined" in lost.message
    assert monitor.update(82, 0.5).state == "waiting"


@pytest.mark.parametrize(
    ("stability", "loss", "said"),
    [
        (1.2, 1.0, "outside 0 to 1"),
        (-0.1, 1.0, "outside 0 to 1"),
        (math.inf, 1.0, "outside 0 to 1"),
        (0.5, math.nan, "loss is nan"),
        (0.5, math.inf, "loss is inf"),
        (0.5, 7.0, "over 3 times"),
    ],
)
def test_divergence_is_another_state_and_takes_the_signal_back(stability, loss, said):
    monitor = ConvergenceMonitor(WarningConfig(mode="stop", schedule=PLAN))
    losses = np.linspace(2.3, 0.1, 80)
    assert feed(monitor, settling(80), losses=losses)[-1].should_stop
    verdict = monitor.update(80, stability, loss=loss)
    assert (verdict.state, verdict.signal, verdict.should_stop) == ("diverging", 0, False)
    assert math.isnan(verdict.score)
    assert said in verdict.message


def test_a_slow_explosion_of_the_loss_is_seen():
    monitor = ConvergenceMonitor(WarningConfig(mode="stop"))
    losses = 2.0 * 1.1 ** np.arange(60)
    verdicts = feed(monitor, settling(60, at=20), losses=losses)
    assert next(v.epoch for v in verdicts if v.state == "diverging") == 14
    assert not any(v.should_stop for v in verdicts[14:])


@pytest.mark.parametrize("seed", range(10))
def test_rising_volatility_is_unsettled_and_never_convergence(seed):
    monitor = ConvergenceMonitor(WarningConfig(mode="stop", schedule=PLAN))
    verdicts = feed(monitor, settling(at=50, seed=seed)[::-1])
    assert monitor.converged_epoch is None
    assert verdicts[-1].state == "unsettled"
    assert "risen" in verdicts[-1].message


@pytest.mark.parametrize("seed", range(10))
def test_the_signal_stays_until_volatility_rises_again(seed):
    quiet = settling(70, at=25, seed=seed)
    loud = 0.5 + 0.05 * np.random.default_rng(seed + 100).standard_normal(40)
    monitor = ConvergenceMonitor(WarningConfig(mode="stop", schedule=PLAN))
    verdicts = feed(monitor, np.concatenate([quiet, loud]))
    first = monitor.converged_epoch
    assert first < 70
    signals = [v.signal for v in verdicts]
    assert signals[first:70] == [1] * (70 - first)
    end = signals.index(0, first)
    assert verdicts[end].state == "unsettled"
    assert not any(v.should_stop for v in verdicts[end:])
    assert monitor.converged_epoch == first


def test_no_stop_while_a_known_drop_is_to_come():
    schedule = Schedule(name="step", planned_epochs=EPOCHS, drop_epochs=(60, 80))
    monitor = ConvergenceMonitor(WarningConfig(mode="stop", schedule=schedule))
    verdicts = feed(monitor, settling())
    assert any(v.signal for v in verdicts[:60])
    assert not any(v.should_stop for v in verdicts[:80])
    warned = next(v for v in verdicts if v.signal)
    assert "too early to stop, the learning rate will change at epoch 60" in warned.message


def test_a_known_drop_begins_anew_after_a_hold_off():
    schedule = Schedule(name="step", planned_epochs=EPOCHS, drop_epochs=(60,))
    verdicts = feed(ConvergenceMonitor(WarningConfig(mode="stop", schedule=schedule)), settling())
    assert verdicts[59].signal == 1
    assert {v.state for v in verdicts[60 : 60 + HOLD_OFF + 16]} == {"waiting"}
    assert not any(v.signal for v in verdicts[60 : 60 + HOLD_OFF + 16])
    assert f"watching goes on at epoch {60 + HOLD_OFF}" in verdicts[60].message


def test_after_the_last_drop_a_new_fall_stops():
    schedule = Schedule(name="step", planned_epochs=EPOCHS, drop_epochs=(20,))
    series = np.concatenate([settling(20, at=99), settling(80, at=35, seed=1)])
    monitor = ConvergenceMonitor(WarningConfig(mode="stop", schedule=schedule))
    assert feed(monitor, series)[-1].should_stop
    assert monitor.converged_epoch > 55


@pytest.mark.parametrize("after", [0.01, 0.06, 0.16, 1.0, 0.0])
def test_a_step_that_is_seen_counts_like_a_known_one(after):
    rates = [0.1] * 60 + [after] * 40
    verdicts = feed(ConvergenceMonitor(WarningConfig(mode="stop", schedule=PLAN)), settling(), rates=rates)
    assert verdicts[59].signal == 1
    assert {v.state for v in verdicts[60 : 60 + HOLD_OFF]} == {"waiting"}


def test_a_gentle_change_of_the_rate_is_no_step():
    rates = 0.1 * 0.98 ** np.arange(EPOCHS)
    with_rates = feed(ConvergenceMonitor(WarningConfig(mode="stop", schedule=PLAN)), settling(), rates=rates)
    assert facts(with_rates) == facts(
        feed(ConvergenceMonitor(WarningConfig(mode="stop", schedule=PLAN)), settling())
    )


def test_a_drop_inside_a_gap_is_not_overlooked():
    schedule = Schedule(name="step", planned_epochs=EPOCHS, drop_epochs=(52,))
    monitor = ConvergenceMonitor(WarningConfig(mode="stop", schedule=schedule))
    feed(monitor, settling()[:50])
    verdicts = feed(monitor, settling()[54:], first=54)
    assert {v.epoch for v in verdicts if "just changed" in v.message} == {54, 55, 56}


@pytest.mark.parametrize("name", ["cosine", "onecycle"])
def test_under_a_smooth_schedule_the_stop_waits_for_the_last_phase(name):
    schedule = Schedule(name=name, planned_epochs=EPOCHS)
    rates = 0.05 * (1 + np.cos(np.pi * np.arange(EPOCHS) / EPOCHS))
    monitor = ConvergenceMonitor(WarningConfig(mode="stop", schedule=schedule))
    verdicts = feed(monitor, settling(), rates=rates)
    assert monitor.converged_epoch < 60
    assert [v.should_stop for v in verdicts] == [False] * 75 + [True] * 25
    assert f"the last phase of the {name} schedule begins at epoch 75" in verdicts[70].message
    told = ConvergenceMonitor(WarningConfig(mode="stop", schedule=schedule, stop_before_last_phase=True))
    assert feed(told, settling(), rates=rates)[told.converged_epoch].should_stop


def test_a_smooth_schedule_of_unknown_length_is_only_warned_of():
    monitor = ConvergenceMonitor(WarningConfig(mode="stop", schedule=Schedule(name="cosine")))
    verdicts = feed(monitor, settling())
    assert verdicts[-1].signal == 1
    assert not any(v.should_stop for v in verdicts)
    assert "not known without the planned number of epochs" in verdicts[-1].message


def test_being_told_to_stop_early_does_not_overrule_a_known_drop():
    schedule = Schedule(name="cosine", planned_epochs=EPOCHS, drop_epochs=(90,))
    monitor = ConvergenceMonitor(WarningConfig(mode="stop", schedule=schedule, stop_before_last_phase=True))
    assert not any(v.should_stop for v in feed(monitor, settling()))


def test_drops_do_not_add_false_alarms():
    schedule = Schedule(name="step", planned_epochs=60, drop_epochs=(30, 45))
    rng = np.random.default_rng(11)
    fired = 0
    for _ in range(400):
        monitor = ConvergenceMonitor(WarningConfig(schedule=schedule))
        feed(monitor, 0.5 + 0.01 * rng.standard_normal(60))
        fired += monitor.converged_epoch is not None
    assert fired <= 0.05 * 400


def test_parameters_are_those_of_monitor_and_detector():
    assert ConvergenceMonitor(WarningConfig(mode="stop", schedule=PLAN)).parameters == {
        "detector": "volatility",
        "mode": "stop",
        "stop_before_last_phase": "False",
        "schedule": "constant",
        "planned_epochs": EPOCHS,
        "drop_epochs": "none",
        "min_moves": 15,
    }


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(),
        Schedule(name="step", planned_epochs=60, drop_epochs=(30, 45)),
        Schedule(name="cosine", planned_epochs=9),
    ],
)
def test_a_schedule_is_read_back_from_the_parameters_of_a_run(schedule):
    logged = {
        key: str(value)
        for key, value in ConvergenceMonitor(WarningConfig(schedule=schedule)).parameters.items()
    }
    assert schedule_of(logged) == schedule


def test_parameters_that_are_no_schedule_are_said():
    with pytest.raises(
        ConfigError, match="planned_epochs='soon' and drop_epochs='none' must be whole numbers"
    ):
        schedule_of({"planned_epochs": "soon"})


@pytest.mark.parametrize("epoch", [-1, 1.5, True])
def test_an_epoch_must_be_a_whole_number(epoch):
    with pytest.raises(ConfigError, match="must be a whole number from 0"):
        ConvergenceMonitor().update(epoch, 0.5)


def test_unknown_words_are_answered_with_those_known():
    with pytest.raises(ConfigError, match="mode='halt' is not known; accepted: off, warn, stop"):
        ConvergenceMonitor(WarningConfig(mode="halt"))
    with pytest.raises(ConfigError, match=r"detector='volatilty' is not known.*Did you mean 'volatility'"):
        ConvergenceMonitor(WarningConfig(detector="volatilty"))
    with pytest.raises(ConfigError, match="planned_epochs=0 must be at least 1"):
        Schedule(planned_epochs=0)


def test_a_schedule_learnt_later_judges_what_was_fed_as_if_it_had_been_known():
    monitor = ConvergenceMonitor(WarningConfig(mode="stop"))
    feed(monitor, settling()[:70])
    monitor.expect(Schedule(name="step", planned_epochs=EPOCHS, drop_epochs=(90,)))
    known = ConvergenceMonitor(
        WarningConfig(mode="stop", schedule=Schedule(name="step", planned_epochs=EPOCHS, drop_epochs=(90,)))
    )
    assert facts(feed(monitor, settling()[70:], first=70)) == facts(feed(known, settling()))[70:]
    assert monitor.converged_epoch == known.converged_epoch
    assert monitor.parameters == known.parameters


def test_start_up_is_as_if_the_training_had_begun_after_it():
    series = settling()
    wild = np.random.default_rng(0).uniform(0, 1, 10)
    later = ConvergenceMonitor(WarningConfig(schedule=Schedule(name="constant", planned_epochs=EPOCHS + 10)))
    for epoch, value in enumerate(wild):
        verdict = later.update(epoch, value, start_up=True)
        assert (verdict.state, verdict.signal) == ("waiting", 0)
        assert verdict.message.endswith("The window is still in start-up.")
    after = feed(later, series, first=10)
    alone = feed(ConvergenceMonitor(schedule=PLAN), series)
    np.testing.assert_array_equal([v.score for v in after], [v.score for v in alone])
    assert [v.signal for v in after] == [v.signal for v in alone]


def test_divergence_is_told_in_start_up_too():
    monitor = ConvergenceMonitor()
    monitor.update(0, 0.5, loss=1.0, start_up=True)
    assert monitor.update(1, 0.5, loss=math.nan, start_up=True).state == "diverging"
    assert monitor.update(2, 1.5, loss=1.0, start_up=True).state == "diverging"


def test_a_schedule_is_read_where_a_warning_could_go_by_it_and_none_is_given():
    assert WarningConfig().reads_schedule
    assert not WarningConfig(schedule=PLAN).reads_schedule
    assert not WarningConfig(mode="off").reads_schedule
    assert WarningConfig().unless_given(PLAN) == WarningConfig(schedule=PLAN)
    assert WarningConfig(schedule=PLAN).unless_given(Schedule()) == WarningConfig(schedule=PLAN)


def test_a_warning_that_is_off_has_no_monitor():
    with pytest.raises(ConfigError, match="mode='off' is not known; accepted: warn, stop"):
        ConvergenceMonitor(WarningConfig(mode="off"))
