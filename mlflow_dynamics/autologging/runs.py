"""Which runs trainings are recorded in: the script's own active ones, each once, else new ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow.tracking.context.registry import resolve_tags

from mlflow_dynamics.autologging.recorded_run import AutologConfig, RecordedRun
from mlflow_dynamics.autologging.script_metrics import ScriptMetrics
from mlflow_dynamics.recording.followed import FollowedTraining
from mlflow_dynamics.recording.schedule import SchedulerWatch
from mlflow_dynamics.tracking import active_runs, run_to_join, script_run


class Runs:
    """The run of the training that is recorded, and those that were used up by others before.

    Args:
        config: of `autolog`.
        schedulers: among which a training's is.
        script_metrics: what the script logs itself.
    """

    def __init__(
        self, config: AutologConfig, schedulers: SchedulerWatch, script_metrics: ScriptMetrics
    ) -> None:
        self._config = config
        self._schedulers = schedulers
        self._script_metrics = script_metrics
        self._tags = resolve_tags()  # asks git: nothing for a training step
        self._open: RecordedRun | None = None
        self._bound: str | None = None
        self._used: set[str] = set()
        self._parents: RecordedRun | None = None

    @property
    def owned(self) -> bool | None:
        """Whether the open run is ours to end; None where none is open."""
        return None if self._open is None else self._open.owned

    @property
    def fresh(self) -> bool:
        """Whether the script has a run active in which no training was recorded."""
        run = script_run()
        return run is not None and run.info.run_id not in self._used

    def bind(self) -> str | None:
        """Take the active run, if there is one, for a training that begins; why that cannot be, or None."""
        run = script_run()
        self._bound = None if run is None else run.info.run_id
        if run is not None and self._config.exclusive:
            return "exclusive=True and a run of your own is active"
        if self._bound in self._used:
            return "the active run holds another model's dynamics; start a run for each"
        return None

    def replaced_by(self, given: Mapping[str, Any]) -> bool:
        """Whether the run that the script is about to start, with these arguments, is to take the open one's place."""
        if self._open is None:
            return False
        ended = self._bound not in (None, given.get("run_id"), *active_runs())
        return ended or (self._open.owned and not given.get("nested"))

    def ended_by(self, status: str) -> bool:
        """Whether the script, which ends the active run with this status, ends what is recorded in it.

        A run of its own it may open again, for the next epoch, unless it has failed.
        """
        run = mlflow.active_run()
        if run is None:
            return False
        ours = self._open is not None and self._open.owned and run.info.run_id == self._open.run_id
        return ours or (status != "FINISHED" and run.info.run_id == self._bound)

    def end_epoch(self, training: FollowedTraining, late: int) -> None:
        """Hand over the training's open epoch, over `late` steps ago; the first one opens the run."""
        if self._open is None:
            joined = self._bound or run_to_join()
            self._open = RecordedRun(
                training, joined, self._tags, self._config, self._schedulers, self._script_metrics
            )
            if joined is not None:
                self._used.add(joined)
        self._open.end_epoch(training, late)

    def activate(self) -> None:
        """Make a new run of ours the active one, once MLflow has created it."""
        created = None if self._open is None else self._open.activate()
        if created is not None:
            self._used.add(created)

    def pause(self) -> None:
        """The training waits for its user."""
        if self._open is not None:
            self._open.pause()

    def end(self, status: str) -> None:
        """Close what is recorded, if anything is; the run ends if it is ours."""
        closing, self._open = self._open, None
        if closing is not None:
            closing.close(status)

    def leave_to_the_parent(self) -> None:
        """In a forked process: the open run is the parent's."""
        # Kept, as freeing what is on a GPU would call CUDA, which a forked process must not.
        self._parents = self._open
        self._open = self._bound = None
