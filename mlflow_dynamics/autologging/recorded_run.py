"""The run of the recorded training: opened with its first epoch, without waiting for MLflow, and ended with it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import mlflow
from mlflow.entities import Run

from mlflow_dynamics.alerts import OnEvent
from mlflow_dynamics.autologging.script_metrics import ScriptMetrics
from mlflow_dynamics.config import MeasureConfig, OnSigterm, RecordingConfig
from mlflow_dynamics.convergence import WarningConfig
from mlflow_dynamics.loop.followed_training import FollowedTraining
from mlflow_dynamics.recording.distributed import writes_run
from mlflow_dynamics.run_log import RunLog
from mlflow_dynamics.session import closing
from mlflow_dynamics.tracker import Tracker
from mlflow_dynamics.tracking import RunWriter, names
from mlflow_dynamics.tracking.run_record import RunRecord
from mlflow_dynamics.tracking.runs import named

logger = logging.getLogger(__name__)

CREATED_TIMEOUT_S: Final = 20.0
"""The longest time that a notebook's next cell waits for the run of the training before it."""

_METRICS: Final = {
    "train_loss": names.TRAIN_LOSS,
    "validation_loss": names.VALIDATION_LOSS,
    "validation_accuracy": names.VALIDATION_ACCURACY,
}


@dataclass(frozen=True, kw_only=True)
class AutologConfig:
    """What `autolog` was called with."""

    log_every_n_epoch: int
    exclusive: bool
    silent: bool
    extra_tags: Mapping[str, str]
    recording: RecordingConfig
    measures: MeasureConfig
    warning: WarningConfig
    on_sigterm: OnSigterm
    on_event: OnEvent | None
    loop_log: Path | None


class RecordedRun:
    """A training's run: the script's own active run, or else a new one, created as soon as MLflow answers.

    Args:
        training: the training, whose first epoch has ended.
        run: the id of the script's own run, which the script ends, or a description of a new run.
        config: the arguments of `autolog`.
        script_metrics: knows which metrics the script logs itself.
    """

    def __init__(
        self,
        training: FollowedTraining,
        run: str | RunRecord,
        config: AutologConfig,
        script_metrics: ScriptMetrics,
    ) -> None:
        self._writer: RunWriter | None = None
        owned = isinstance(run, RunRecord)
        self._waited = False
        if not writes_run(training.model):  # another process writes the run; this one hands over its parts
            self._tracker = Tracker(training.recorder, None, close=None).start()
            return
        self._writer = writer = RunWriter(run).start()
        _tell(training, None if owned else writer.run_id, config)
        run_log = RunLog(
            writer,
            recording=config.recording,
            measures=config.measures,
            warning=config.warning,
            log_every_n_epoch=config.log_every_n_epoch,
            on_event=config.on_event,
            not_logged_by_script=script_metrics.not_logged_by_script,
        )
        self._tracker = Tracker(
            training.recorder,
            run_log,
            close=closing(writer, owned=owned),
            reads_schedule=config.warning.reads_schedule,
        ).start()

    def created(self, *, waiting: bool = False) -> Run | None:
        """The new run, or None while MLflow has not created it or if another process writes the run.

        MLflow takes seconds to create a run in a new store. With `waiting` this waits, but only once: a store may never
        answer.
        """
        if self._writer is None:
            return None
        timeout_s = CREATED_TIMEOUT_S if waiting and not self._waited else 0.0
        self._waited = self._waited or waiting
        return self._writer.created_within(timeout_s)

    def end_epoch(self, training: FollowedTraining, late: int) -> None:
        """Hand over the training's open epoch, which ended `late` steps ago, with the losses that are known."""
        rate, losses = training.close_epoch(late)
        training.recorder.averages = {_METRICS[key]: value for key, value in losses.items()}
        self._tracker.end_epoch({} if rate is None else {names.LEARNING_RATE: float(rate)})

    def pause(self) -> None:
        """The training waits for its user."""
        self._tracker.pause()

    def close(self, status: str) -> None:
        """Measure and send the remaining epochs; end the run if it is ours."""
        self._tracker.close(status)


def _tell(training: FollowedTraining, joined: str | None, config: AutologConfig) -> None:
    """Log what is recorded, and which rule found the epochs."""
    finder = training.finder
    logger.info(
        "Recording %s (%d layers) into %s. Epochs: passes over the DataLoader it is trained on, %s%s.",
        training.name,
        len(training.recorder.layers),
        "a new run" if joined is None else f"run {joined}",
        "of unknown length" if finder.length is None else f"{finder.length} batches each",
        "; of several drawn in turn, the first" if finder.several else "",
    )
    active = mlflow.active_run()
    if active is not None and active.info.run_id == joined:
        logger.info("The run is %s", named(active))
    if config.warning.mode == "stop":
        logger.warning(
            "WarningConfig(mode='stop') only warns here: autolog cannot end a loop that is not its own. "
            "Ask tracker.should_stop() of mlflow_dynamics.track(model, warning=WarningConfig(mode='stop')) in your "
            "loop, or pass a framework's trainer the DynamicsCallback of mlflow_dynamics.integrations."
        )
