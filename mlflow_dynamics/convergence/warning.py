"""The configuration of the early warning of convergence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mlflow_dynamics.checks import check_choice, check_flag, check_instance
from mlflow_dynamics.config import WARNING_MODES, WarningMode
from mlflow_dynamics.convergence.installed import OURS, detector_names, find_detector
from mlflow_dynamics.convergence.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class WarningConfig:
    """The early warning of convergence.

    Attributes:
        mode: "warn" logs the convergence signal; "stop" also has `Tracker.should_stop()` say so, which the callbacks
            obey; "off" does neither.
        detector: the name of an installed convergence detector.
        schedule: what is known of the learning rate ahead; None reads it from the training's scheduler, as far as that
            is certain (docs/early-warning.md).
        stop_before_last_phase: a stop does not wait for the last phase of a smooth schedule (such as cosine or
            one-cycle). It still waits for a known step of the rate.
    """

    mode: WarningMode = "warn"
    detector: str = OURS
    schedule: Schedule | None = None
    stop_before_last_phase: bool = False

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, WARNING_MODES)
        if not isinstance(self.detector, str):
            check_choice("detector", self.detector, detector_names())
        find_detector(self.detector)
        words = "a mlflow_dynamics.Schedule or None"
        check_instance("schedule", self.schedule, kind=Schedule, words=words)
        check_flag("stop_before_last_phase", self.stop_before_last_phase)

    @property
    def parameters(self) -> Mapping[str, str]:
        """What was asked for, as parameters of a run; the schedule has its own."""
        return {
            "detector": self.detector,
            "mode": self.mode,
            "stop_before_last_phase": str(self.stop_before_last_phase),
        }

    @property
    def reads_schedule(self) -> bool:
        """Whether the training's scheduler is to be read."""
        return self.mode != "off" and self.schedule is None

    def unless_given(self, schedule: Schedule) -> WarningConfig:
        """This configuration, with the given schedule if it has none."""
        return self if self.schedule is not None else replace(self, schedule=schedule)
