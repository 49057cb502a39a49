"""The convergence monitor: stability, loss and learning rate in, each epoch's verdict out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from mlflow_dynamics.convergence.detectors import find_detector
from mlflow_dynamics.errors import ConfigError, unknown_choice

State = Literal["waiting", "learning", "converging", "unsettled", "diverging"]
Mode = Literal["warn", "stop"]
MODES: Final = ("warn", "stop")

RATE_STEP: Final = 2.0
"""A learning rate that changes by this factor from one epoch to the next is a step, not a smooth schedule."""

SMOOTH_SCHEDULES: Final = ("cosine", "onecycle")
LAST_PHASE: Final = 0.8
"""Under a smooth schedule a stop waits for this fraction of the planned epochs: accuracy rises in the last decay."""

EXPLOSION: Final = 10.0
"""A loss this many times its best, and above where it started, is exploding."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What is known of the learning rate ahead.

    Attributes:
        name: "constant", "step", "cosine", "onecycle" or another; the smooth ones hold a stop back.
        planned_epochs: the length of the training, None where unknown.
        drop_epochs: at whose start the rate drops.
    """

    name: str = "constant"
    planned_epochs: int | None = None
    drop_epochs: tuple[int, ...] = ()

    def holds_back(self, epoch: int) -> str | None:
        """Why a stop after `epoch` would come too early, or None."""
        coming = [drop for drop in self.drop_epochs if drop > epoch]
        if coming:
            return f"the learning rate still drops at epoch {coming[0]}"
        if self.name in SMOOTH_SCHEDULES and self.planned_epochs is not None:
            last_phase = math.ceil(self.planned_epochs * LAST_PHASE)
            if epoch + 1 < last_phase:
                return f"the {self.name} schedule has its last phase from epoch {last_phase} on"
        return None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the monitor says after one epoch.

    Attributes:
        epoch: from 0.
        signal: 1 from the epoch in which convergence was detected until the detector starts anew, else 0.
        score: the detector's statistic over its threshold, NaN while it is too early.
        state: in a word.
        should_stop: whether training should end now (mode "stop" only).
        message: the same in a sentence.
    """

    epoch: int
    signal: int
    score: float
    state: State
    should_stop: bool
    message: str


class ConvergenceMonitor:
    """Says, epoch by epoch, whether a training is about to converge.

    The verdicts depend on what it is fed alone, so a stored series gives those of the live run. An epoch whose
    stability is NaN, and an epoch that is missing, add nothing. A step of the learning rate (by a factor of 2 or
    more between epochs) starts the detector anew, which is silent for its first 11 epochs.

    Args:
        detector: the name under which `mlflow_dynamics.detectors` offers it.
        mode: "warn" never asks to stop.
        schedule: what is known of the learning rate ahead; None is a constant rate and an unknown length.
        wait_for_schedule: hold a stop back while the schedule says that accuracy will still rise.

    Raises:
        ConfigError: an unknown detector or mode.
    """

    def __init__(
        self,
        detector: str = "volatility",
        *,
        mode: Mode = "warn",
        schedule: Schedule | None = None,
        wait_for_schedule: bool = True,
    ) -> None:
        if mode not in MODES:
            raise unknown_choice("mode", mode, MODES)
        self._schedule = schedule or Schedule()
        self._detector = find_detector(detector)(self._schedule.planned_epochs)
        self._mode = mode
        self._wait_for_schedule = wait_for_schedule
        self._last_epoch = -1
        self._rate: float | None = None
        self._losses: list[float] = []
        self.converged_epoch: int | None = None
        self.should_stop = False

    def update(
        self, epoch: int, stability: float, *, loss: float | None = None, learning_rate: float | None = None
    ) -> Verdict:
        """The verdict after `epoch`.

        Args:
            epoch: above the last one; missing epochs are allowed.
            stability: the stability index, NaN where undefined.
            loss: the epoch's training loss, to tell divergence.
            learning_rate: at the epoch's start, to tell a step of it.

        Raises:
            ConfigError: epochs do not ascend.
        """
        if epoch <= self._last_epoch:
            raise ConfigError(f"epoch={epoch} follows epoch {self._last_epoch}; epochs must ascend.")
        self._last_epoch = epoch
        if self._stepped(learning_rate):
            self._restart()
        trouble = self._divergence(stability, loss)
        if trouble is not None:
            self._restart()
            return self._verdict(epoch, math.nan, "diverging", f"Diverging: {trouble}.")
        if math.isnan(stability):
            state: State = "waiting" if self.converged_epoch is None else "converging"
            return self._verdict(epoch, math.nan, state, "The stability index is undefined in this epoch.")
        scores = self._detector.update(stability)
        if math.isnan(scores.falling):
            return self._verdict(epoch, math.nan, "waiting", "Too few epochs to tell.")
        if scores.rising >= 1.0 and scores.falling < 1.0:
            self.converged_epoch = None
            return self._verdict(epoch, scores.falling, "unsettled", "Stability has become more volatile.")
        if self.converged_epoch is None and scores.falling >= 1.0:
            self.converged_epoch = epoch
        if self.converged_epoch is None:
            return self._verdict(epoch, scores.falling, "learning", "Volatility of stability has not fallen.")
        return self._converging(epoch, scores.falling)

    def _converging(self, epoch: int, score: float) -> Verdict:
        message = f"Convergence: since epoch {self.converged_epoch} the volatility of stability has fallen for good"
        held = self._schedule.holds_back(epoch) if self._wait_for_schedule else None
        if held is not None:
            message += f"; no reason to stop yet, {held}"
        self.should_stop = self._mode == "stop" and held is None
        return self._verdict(epoch, score, "converging", f"{message}.")

    def _verdict(self, epoch: int, score: float, state: State, message: str) -> Verdict:
        if state != "converging":
            self.should_stop = False
        return Verdict(
            epoch=epoch,
            signal=int(self.converged_epoch is not None),
            score=score,
            state=state,
            should_stop=self.should_stop,
            message=message,
        )

    def _restart(self) -> None:
        self._detector.reset()
        self.converged_epoch = None

    def _stepped(self, learning_rate: float | None) -> bool:
        before, self._rate = self._rate, learning_rate if learning_rate is not None else self._rate
        if before is None or learning_rate is None or before <= 0 or learning_rate <= 0:
            return False
        if self._schedule.name in SMOOTH_SCHEDULES:
            # The end of a smooth decay halves the rate from epoch to epoch; that is no step.
            return False
        ratio = learning_rate / before
        return not 1 / RATE_STEP < ratio < RATE_STEP

    def _divergence(self, stability: float, loss: float | None) -> str | None:
        if not math.isnan(stability) and not 0.0 <= stability <= 1.0:
            return f"the stability index {stability:.3g} is outside 0 to 1"
        if loss is None:
            return None
        if not math.isfinite(loss):
            return f"the training loss is {loss}"
        self._losses.append(loss)
        if loss > EXPLOSION * min(self._losses) and loss > self._losses[0]:
            return f"the training loss {loss:.3g} is over {EXPLOSION:g} times its best"
        return None
