"""The convergence monitor, which gives each epoch's verdict from its stability, loss and learning rate."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

from mlflow_dynamics.checks import check_choice
from mlflow_dynamics.convergence.detector import Detector
from mlflow_dynamics.convergence.installed import find_detector
from mlflow_dynamics.convergence.schedule import HOLD_OFF, Schedule, is_step
from mlflow_dynamics.convergence.warning import WarningConfig
from mlflow_dynamics.errors import ConfigError

State = Literal["waiting", "learning", "converging", "unsettled", "diverging"]

EXPLOSION: Final = 3.0
"""The loss has exploded if it exceeds the largest loss of the first epochs by this factor."""

FIRST_LOSSES: Final = 3
"""The first so many epochs with a loss say how large the loss is before anything has been learnt."""

QUIET_EPOCHS: Final = 10
"""A detection is taken back if volatility rises above that of so many epochs up to the detection."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The monitor's verdict after one epoch.

    Attributes:
        epoch: the epoch's number, from 0.
        signal: 1 while convergence is near, else 0. It stays 1 from the epoch of detection until the learning
            rate makes a step, volatility rises again or training diverges.
        score: the detector's statistic over its threshold, NaN where there is none (see `state`).
        state: "waiting" (no score: start-up, too few epochs, a hold-off, S undefined), "learning", "converging",
            "unsettled" (volatility has risen) or "diverging".
        should_stop: end the training now; only in mode "stop".
        message: the state in a sentence.
    """

    epoch: int
    signal: int
    score: float
    state: State
    should_stop: bool
    message: str


class _Fed(NamedTuple):
    epoch: int
    stability: float
    loss: float | None
    learning_rate: float | None
    start_up: bool


class ConvergenceMonitor:
    """Says, epoch by epoch, whether a training is about to converge.

    The verdicts depend on nothing but what the monitor is fed: a stored series gives the verdicts of the live run. A
    missing epoch adds nothing. If an epoch is fed again, the training has gone back to it: what was fed from that epoch
    on is forgotten, as if it had never been.

    Args:
        config: the warning's configuration, in mode "warn" or "stop"; None takes the defaults.
        schedule: the schedule of this training, in place of the config's. If neither is given, the rate is taken as
            constant and the length as unknown, until `expect` says otherwise.

    Raises:
        ConfigError: the mode is "off".
    """

    def __init__(self, config: WarningConfig | None = None, *, schedule: Schedule | None = None) -> None:
        config = config or WarningConfig()
        if schedule is not None:
            config = replace(config, schedule=schedule)
        check_choice("mode", config.mode, ("warn", "stop"))
        self._config = config
        self._make = find_detector(config.detector)
        self._schedule = config.schedule or Schedule()
        self._begin()

    @property
    def parameters(self) -> Mapping[str, float | int | str]:
        """What the verdicts depend on, to be logged with the run."""
        # Our parameters come last, because they are read back: a foreign detector may give its own the same names.
        return {
            **self._detector.parameters,
            **self._config.parameters,
            **self._schedule.parameters,
        }

    @property
    def converged_epoch(self) -> int | None:
        """The first epoch at which convergence was detected, or None; a later reset does not change it."""
        return self.first_epochs.get("converging")

    @property
    def should_stop(self) -> bool:
        """Whether the last epoch's verdict was to end the training; only in mode "stop"."""
        return self._should_stop

    def expect(self, schedule: Schedule) -> None:
        """Take in what has become known of the learning rate ahead; all epochs so far are judged anew by it."""
        self._schedule = schedule
        self._judge_anew(self._fed)

    def update(
        self,
        epoch: int,
        stability: float,
        *,
        loss: float | None = None,
        learning_rate: float | None = None,
        start_up: bool = False,
    ) -> Verdict:
        """The verdict after `epoch`.

        Args:
            epoch: the epoch's number, from 0.
            stability: the stability index, in [0, 1]; NaN where it is not defined. If it was defined before and no loss
                is given, NaN is divergence; a finite loss says otherwise.
            loss: the training loss, which shows divergence.
            learning_rate: the rate that the epoch was trained with, which shows a step of the schedule.
            start_up: the window is not full yet or holds some of the training's first steps: its stability may show
                divergence, but not convergence.

        Raises:
            ConfigError: epoch is negative or not a whole number.
        """
        if isinstance(epoch, bool) or int(epoch) != epoch or epoch < 0:
            raise ConfigError(f"epoch={epoch!r} must be a whole number from 0.")
        if self._fed and epoch <= self._fed[-1].epoch:
            self._judge_anew([fed for fed in self._fed if fed.epoch < epoch])
        return self._judge(_Fed(int(epoch), float(stability), loss, learning_rate, start_up))

    def _judge_anew(self, kept: list[_Fed]) -> None:
        self._begin()
        for fed in kept:
            self._judge(fed)

    def _begin(self) -> None:
        self._fed: list[_Fed] = []
        self._losses: list[float] = []
        self._rate: float | None = None
        self._should_stop = False
        self._resume_at = 0
        self._seen_stability = False
        self._first_read: int | None = None
        self.first_epochs: dict[State, int] = {}
        """The first epoch in each state so far; a later reset does not change these epochs."""
        self._restart()

    def _restart(self) -> None:
        """Begin with a fresh detector: the past no longer counts."""
        planned = self._schedule.planned_epochs
        if planned is not None and self._first_read is not None:
            planned = max(planned - self._first_read, 1)
        self._detector: Detector = self._make(planned_epochs=planned)
        self._since: int | None = None
        self._recent: deque[tuple[int, float]] = deque(maxlen=QUIET_EPOCHS)
        # A second detector, begun at convergence, tells rising volatility from there on: for the first detector the
        # whole series would have to become louder than it had been at the start.
        self._after: Detector | None = None

    def _judge(self, fed: _Fed) -> Verdict:
        first = self._fed[-1].epoch + 1 if self._fed else 0
        self._fed.append(fed)
        self._follow_rate(first, fed)
        trouble = self._trouble(fed)
        if trouble is not None:
            self._restart()
            return self._verdict(fed, "diverging", math.nan, f"Training diverges: {trouble}.")
        if math.isnan(fed.stability):
            return self._verdict(fed, "waiting", math.nan, "The stability index is not defined.")
        self._seen_stability = True
        if fed.start_up:
            if (
                self._first_read is not None
            ):  # the epochs have changed their length, so S no longer moves as before
                self._first_read = None
                self._restart()
            return self._verdict(fed, "waiting", math.nan, "The window is still in start-up.")
        if self._first_read is None:
            # The detector sees fewer epochs than are planned: none of those in start-up.
            self._first_read = fed.epoch
            self._restart()
        if fed.epoch < self._resume_at:
            return self._verdict(
                fed,
                "waiting",
                math.nan,
                f"The learning rate has just changed; watching goes on at epoch {self._resume_at}.",
            )
        return self._read(fed)

    def _read(self, fed: _Fed) -> Verdict:
        reading = self._detector.update(fed.epoch, fed.stability)
        self._recent.append((fed.epoch, fed.stability))
        rising = reading.rising
        if self._after is not None:
            rising = self._after.update(fed.epoch, fed.stability).rising
        if rising >= 1.0:
            if self._since is not None:
                self._restart()
            return self._verdict(
                fed, "unsettled", reading.score, "The volatility of the stability index has risen."
            )
        if self._since is None and reading.score >= 1.0:
            self._since = fed.epoch
            self._after = self._make(planned_epochs=None)
            for epoch, stability in self._recent:
                self._after.update(epoch, stability)
        if self._since is not None:
            return self._converging(fed, reading.score)
        if math.isnan(reading.score):
            return self._verdict(fed, "waiting", math.nan, "There are too few epochs to tell.")
        return self._verdict(
            fed, "learning", reading.score, "The volatility of the stability index has not fallen for sure."
        )

    def _converging(self, fed: _Fed, score: float) -> Verdict:
        message = (
            f"Convergence is near: since epoch {self._since} the volatility of stability has surely fallen"
        )
        waits = self._schedule.waits_for(fed.epoch)
        if waits is not None and not (self._config.stop_before_last_phase and self._no_drop_ahead(fed.epoch)):
            return self._verdict(fed, "converging", score, f"{message}; too early to stop, {waits}.")
        stop = self._config.mode == "stop"
        return self._verdict(fed, "converging", score, f"{message}.", should_stop=stop)

    def _no_drop_ahead(self, epoch: int) -> bool:
        return all(drop <= epoch for drop in self._schedule.drop_epochs)

    def _verdict(
        self, fed: _Fed, state: State, score: float, message: str, *, should_stop: bool = False
    ) -> Verdict:
        self._should_stop = should_stop
        self.first_epochs.setdefault(state, fed.epoch)
        return Verdict(
            epoch=fed.epoch,
            signal=int(self._since is not None),
            score=score,
            state=state,
            should_stop=should_stop,
            message=f"Epoch {fed.epoch}: {message}",
        )

    def _follow_rate(self, first: int, fed: _Fed) -> None:
        """Begin anew after a step of the learning rate, known or seen, in the epochs `first` to this one."""
        dropped = [drop for drop in self._schedule.drop_epochs if max(first, 1) <= drop <= fed.epoch]
        rate = (
            fed.learning_rate if fed.learning_rate is not None and math.isfinite(fed.learning_rate) else None
        )
        stepped = not self._schedule.smooth and is_step(self._rate, rate)
        self._rate = self._rate if rate is None else rate
        if dropped or stepped:
            self._restart()
            self._resume_at = (fed.epoch if stepped and not dropped else max(dropped)) + HOLD_OFF

    def _trouble(self, fed: _Fed) -> str | None:
        """What shows that training diverges, in words; None if nothing does."""
        if math.isnan(fed.stability):
            if self._seen_stability and fed.loss is None:
                return "the stability index is no longer defined"
        elif not 0.0 <= fed.stability <= 1.0:
            return f"the stability index {fed.stability:.4g} is outside 0 to 1"
        if fed.loss is None:
            return None
        if not math.isfinite(fed.loss):
            return f"the training loss is {fed.loss}"
        if len(self._losses) < FIRST_LOSSES:
            self._losses.append(abs(fed.loss))
        if fed.loss > EXPLOSION * max(self._losses):
            return f"the training loss {fed.loss:.4g} is over {EXPLOSION:g} times that of the first epochs"
        return None
