"""The convergence monitor: stability, loss and learning rate in, each epoch's verdict out."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, get_args

from mlflow_dynamics.config import EARLY_STOPPING, EarlyStopping
from mlflow_dynamics.convergence.detectors import OURS, Detector, find_detector
from mlflow_dynamics.convergence.schedule import HOLD_OFF, Schedule, is_step
from mlflow_dynamics.errors import ConfigError, unknown_choice

Mode = Literal["warn", "stop"]
State = Literal["waiting", "learning", "converging", "unsettled", "diverging"]

EXPLOSION: Final = 3.0
"""The loss has exploded when it exceeds the largest of the first epochs' by this factor."""

FIRST_LOSSES: Final = 3
"""So many epochs with a loss say how large it is before anything has been learnt."""

QUIET_EPOCHS: Final = 10
"""So many epochs up to the detection are what volatility must rise above to take it back."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the monitor says after one epoch.

    Attributes:
        epoch: from 0.
        signal: 1 while convergence is near, else 0. It stays 1 from the epoch of detection until the learning
            rate makes a step, volatility rises again or training diverges.
        score: the detector's statistic over its threshold, NaN where there is none (see `state`).
        state: "waiting" (no score: too few epochs, a hold-off, stability undefined), "learning", "converging",
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


class ConvergenceMonitor:
    """Says, epoch by epoch, whether a training is about to converge.

    Its verdicts depend on nothing but what it is fed: a stored series gives those of the live run. A missing
    epoch adds nothing. An epoch that was fed before means that the training has gone back to it: whatever had
    been fed from there on is forgotten, as if it had never been.

    Args:
        detector: the name of an installed detector.
        mode: "warn" never asks to stop.
        schedule: what is known of the learning rate ahead; None is a constant rate and an unknown length, until
            `expect` says otherwise.
        stop_before_last_phase: under a smooth schedule (such as cosine or one-cycle) let the stop not wait for the
            last phase; for a known step of the rate it waits all the same.

    Raises:
        ConfigError: an unknown detector or mode.
    """

    def __init__(
        self,
        detector: str = OURS,
        *,
        mode: Mode = "warn",
        schedule: Schedule | None = None,
        stop_before_last_phase: bool = False,
    ) -> None:
        if mode not in get_args(Mode):
            raise unknown_choice("mode", mode, get_args(Mode))
        self._name = detector
        self._make = find_detector(detector)
        self._mode = mode
        self.schedule_given = schedule is not None
        self._schedule = schedule or Schedule()
        self._stop_before_last_phase = stop_before_last_phase
        self._begin()

    @property
    def parameters(self) -> Mapping[str, float | int | str]:
        """What the verdicts depend on, to be logged with the run."""
        # Ours last: they are read back, and a foreign detector may call its own anything.
        return {
            **self._detector.parameters,
            "detector": self._name,
            "mode": self._mode,
            "stop_before_last_phase": str(self._stop_before_last_phase),
            **self._schedule.parameters,
        }

    @property
    def converged_epoch(self) -> int | None:
        """The first epoch at which convergence was detected, None before; a later reset does not change it."""
        return self.first_epochs.get("converging")

    @property
    def should_stop(self) -> bool:
        """Whether the last epoch's verdict was to end the training; only in mode "stop"."""
        return self._should_stop

    def expect(self, schedule: Schedule) -> None:
        """Take in what has become known of the learning rate ahead; what was fed is judged anew by it."""
        self._schedule = schedule
        self._judge_anew(self._fed)

    def update(
        self, epoch: int, stability: float, *, loss: float | None = None, learning_rate: float | None = None
    ) -> Verdict:
        """The verdict after `epoch`.

        Args:
            epoch: from 0.
            stability: the stability index, in [0, 1]; NaN where it is not defined.
            loss: the training loss; it tells divergence.
            learning_rate: that the epoch was trained with; it tells a step of the schedule.

        Raises:
            ConfigError: epoch is negative or not a whole number.
        """
        if isinstance(epoch, bool) or int(epoch) != epoch or epoch < 0:
            raise ConfigError(f"epoch={epoch!r} must be a whole number from 0.")
        if self._fed and epoch <= self._fed[-1].epoch:
            self._judge_anew([fed for fed in self._fed if fed.epoch < epoch])
        return self._judge(_Fed(int(epoch), float(stability), loss, learning_rate))

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
        self.first_epochs: dict[State, int] = {}
        """The first epoch in each state there has been; a later reset does not change them."""
        self._restart()

    def _restart(self) -> None:
        """Let the past no longer count."""
        self._detector: Detector = self._make(planned_epochs=self._schedule.planned_epochs)
        self._since: int | None = None
        self._recent: deque[tuple[int, float]] = deque(maxlen=QUIET_EPOCHS)
        # Volatility that rises after convergence is told by a second detector: in the first one's eyes, the
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
            return self._verdict(fed, "waiting", math.nan, "The stability index is not defined yet.")
        self._seen_stability = True
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
        if waits is not None and not (self._stop_before_last_phase and self._no_drop_ahead(fed.epoch)):
            return self._verdict(fed, "converging", score, f"{message}; too early to stop, {waits}.")
        stop = self._mode == "stop"
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
        """What shows that training diverges, in words."""
        if math.isnan(fed.stability):
            if self._seen_stability:
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


def monitor_for(
    early_stopping: EarlyStopping,
    *,
    detector: str = OURS,
    schedule: Schedule | None = None,
    stop_before_last_phase: bool = False,
) -> ConvergenceMonitor | None:
    """The monitor that `early_stopping` asks for; None for "off".

    Raises:
        ConfigError: an unknown way of stopping or detector, also where it would not be used.
    """
    if early_stopping not in EARLY_STOPPING:
        raise unknown_choice("early_stopping", early_stopping, EARLY_STOPPING)
    if early_stopping == "off":
        find_detector(detector)
        return None
    return ConvergenceMonitor(
        detector,
        mode=early_stopping,
        schedule=schedule,
        stop_before_last_phase=stop_before_last_phase,
    )
