"""Hugging Face Trainer: a callback that records the dynamics of `Trainer.train` in the Trainer's own run."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mlflow_dynamics.config import EarlyStopping, MeasureConfig, RecordingConfig
from mlflow_dynamics.convergence import Schedule
from mlflow_dynamics.session import Tracker, track
from mlflow_dynamics.tracking import names


class DynamicsCallback(TrainerCallback):
    """Records every epoch of a training; with `early_stopping="stop"` it ends it on the convergence signal.

    ```python
    Trainer(model=model, args=TrainingArguments(report_to="mlflow"), callbacks=[DynamicsCallback()], ...)
    ```

    The run is the active one (with `report_to="mlflow"` the Trainer's own), else one of its own. With several
    processes the first of them writes the run, with the statistics of the global batch.

    Args:
        recording, measures, early_stopping: as for `mlflow_dynamics.track`.
    """

    def __init__(
        self,
        *,
        recording: RecordingConfig | None = None,
        measures: MeasureConfig | None = None,
        early_stopping: EarlyStopping = "warn",
    ) -> None:
        self._recording = recording
        self._measures = measures
        self._early_stopping: EarlyStopping = early_stopping
        self._tracker: Tracker | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach to the model."""
        planned = round(state.num_train_epochs) or None
        self._tracker = track(
            kwargs["model"],
            recording=self._recording,
            measures=self._measures,
            early_stopping=self._early_stopping,
            schedule=Schedule(name=_schedule(args), planned_epochs=planned),
        )

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the epoch; stop the training where asked to."""
        if self._tracker is None:
            return
        optimizer = kwargs.get("optimizer")
        rate = {} if optimizer is None else {names.LEARNING_RATE: float(optimizer.param_groups[0]["lr"])}
        self._tracker.end_epoch(**rate)
        if self._tracker.should_stop:
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Send the rest, detach."""
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            tracker.close()


def _schedule(args: TrainingArguments) -> str:
    """The Trainer's schedule in the monitor's words: those that fall all the time count as cosine."""
    kind = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    return "constant" if kind.startswith("constant") else "cosine"
