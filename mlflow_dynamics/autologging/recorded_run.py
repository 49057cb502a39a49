"""The run of the training that is recorded: opened with its first epoch, without waiting for MLflow; ended with it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from mlflow_dynamics.config import EarlyStopping, MeasureConfig, RecordingConfig
from mlflow_dynamics.convergence.monitor import monitor_for
from mlflow_dynamics.recording.distributed import writes_run
from mlflow_dynamics.recording.followed import FollowedTraining
from mlflow_dynamics.session import Tracker, closing
from mlflow_dynamics.tracking import NoRun, RunWriter, activate_run, names, new_run

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

    Args:
        training: whose first epoch has ended.
        joined: the caller's own run, which stays the caller's to end; None makes a new one.
        tags: of a new run.
        config: of `autolog`.
    """

    def __init__(
        self, training: FollowedTraining, joined: str | None, tags: Mapping[str, str], config: AutologConfig
    ) -> None:
        # Of several processes that train the model the others only hand over their parts.
        writes = writes_run(training.model)
        self._to_activate = writes and joined is None
        self._writer: RunWriter | NoRun = NoRun()
        close: Callable[[str], object] | None = None
        if writes:
            self._writer = writer = RunWriter(joined or new_run(tags))
            close = closing(writer, owned=joined is None)
            _tell(training, joined, config)
        self._tracker = Tracker(
            training.recorder,
            self._writer,
            measures=config.measures,
            monitor=monitor_for(config.early_stopping, detector=config.detector) if writes else None,
            close=close,
            log_every_n_epoch=config.log_every_n_epoch,
        )

    def activate(self) -> str | None:
        """Make a new run the thread's active one as soon as MLflow has created it; its id, that once."""
        run = self._writer.created if self._to_activate else None
        if run is None:
            return None
        self._to_activate = False
        logger.info("The run is %s.", run.info.run_id)
        activate_run(run)
        return str(run.info.run_id)

    def end_epoch(self, training: FollowedTraining) -> None:
        """Hand over the training's open epoch, with the losses that are known."""
        rate = training.learning_rate
        training.recorder.averages = {_METRICS[key]: value for key, value in training.close_epoch().items()}
        self._tracker.end_epoch(**({} if rate is None else {names.LEARNING_RATE: float(rate)}))

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
    if config.early_stopping == "stop":
        logger.warning(
            "early_stopping='stop' only warns here: autolog cannot end a loop that is not its own. Ask "
            "tracker.should_stop of mlflow_dynamics.track(model, early_stopping='stop') in your loop, or pass a "
            "framework's trainer the DynamicsCallback of mlflow_dynamics.integrations."
        )
