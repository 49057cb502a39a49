"""The run of the training that is recorded: opened with its first epoch, without waiting for MLflow; ended with it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import mlflow

from mlflow_dynamics.autologging.script_metrics import ScriptMetrics
from mlflow_dynamics.config import EarlyStopping, MeasureConfig, RecordingConfig
from mlflow_dynamics.convergence.monitor import monitor_for
from mlflow_dynamics.measuring import Measuring
from mlflow_dynamics.recording.distributed import writes_run
from mlflow_dynamics.recording.followed import FollowedTraining
from mlflow_dynamics.recording.schedule import SchedulerWatch
from mlflow_dynamics.session import Tracker, closing
from mlflow_dynamics.tracking import RunWriter, activate_run, names, new_run
from mlflow_dynamics.tracking.runs import named

logger = logging.getLogger(__name__)

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
    recording: RecordingConfig
    measures: MeasureConfig
    early_stopping: EarlyStopping
    detector: str


class RecordedRun:
    """A training's run: the caller's own active one, else a new one, which MLflow creates when it answers.

    Attributes:
        owned: it is a new one, which is ours to end.

    Args:
        training: whose first epoch has ended.
        joined: the caller's own run, which stays the caller's to end; None makes a new one.
        tags: of a new run.
        config: of `autolog`.
        schedulers: among which the training's is.
        script_metrics: what the script logs itself.
    """

    def __init__(
        self,
        training: FollowedTraining,
        joined: str | None,
        tags: Mapping[str, str],
        config: AutologConfig,
        schedulers: SchedulerWatch,
        script_metrics: ScriptMetrics,
    ) -> None:
        self._writer: RunWriter | None = None
        self.owned = joined is None
        self._to_activate = self.owned
        if not writes_run(training.model):  # of several processes one does; the others hand over their parts
            self._tracker = Tracker(training.recorder, None, close=None)
            return
        self._writer = writer = RunWriter(joined or new_run(tags))
        _tell(training, joined, config)
        monitor = monitor_for(config.early_stopping, detector=config.detector)
        measuring = Measuring(
            writer,
            recording=config.recording,
            measures=config.measures,
            monitor=monitor,
            log_every_n_epoch=config.log_every_n_epoch,
            beside=script_metrics.beside,
        )
        self._tracker = Tracker(
            training.recorder,
            measuring,
            close=closing(writer, owned=joined is None),
            schedulers=None if monitor is None else schedulers,
        )

    @property
    def run_id(self) -> str | None:
        """MLflow's run; None while it is not created, and where another process writes it."""
        return None if self._writer is None else self._writer.run_id

    def activate(self) -> str | None:
        """Make a new run the thread's active one as soon as MLflow has created it; its id, that once."""
        run = self._writer.created if self._to_activate and self._writer is not None else None
        if run is None:
            return None
        self._to_activate = False
        if mlflow.active_run() is not None:
            return None
        activate_run(run)
        return str(run.info.run_id)

    def end_epoch(self, training: FollowedTraining, late: int) -> None:
        """Hand over the training's open epoch, over `late` steps ago, with the losses that are known."""
        rate, losses = training.close_epoch(late)
        training.recorder.averages = {_METRICS[key]: value for key, value in losses.items()}
        self._tracker.end_epoch(**({} if rate is None else {names.LEARNING_RATE: float(rate)}))

    def pause(self) -> None:
        """The training waits for its user."""
        self._tracker.pause()

    def close(self, status: str) -> None:
        """Measure and send what is left; end the run if it is ours."""
        self._tracker.close(status)


def _tell(training: FollowedTraining, joined: str | None, config: AutologConfig) -> None:
    """Say what is recorded, and which rule found the epochs."""
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
    if config.early_stopping == "stop":
        logger.warning(
            "early_stopping='stop' only warns here: autolog cannot end a loop that is not its own. Ask "
            "tracker.should_stop of mlflow_dynamics.track(model, early_stopping='stop') in your loop, or pass a "
            "framework's trainer the DynamicsCallback of mlflow_dynamics.integrations."
        )
