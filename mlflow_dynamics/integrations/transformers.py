"""Hugging Face Trainer: a callback that records the dynamics of `Trainer.train` in the Trainer's own run."""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mlflow_dynamics.config import EarlyStopping, MeasureConfig, RecordingConfig
from mlflow_dynamics.convergence import Schedule
from mlflow_dynamics.convergence.detectors import OURS
from mlflow_dynamics.convergence.monitor import monitor_for
from mlflow_dynamics.recording.schedule import plan_of
from mlflow_dynamics.session import Tracker, track
from mlflow_dynamics.tracking import names


class DynamicsCallback(TrainerCallback):
    """Records every epoch of a training; with `early_stopping="stop"` it ends it on the convergence signal.

    ```python
    Trainer(model=model, args=TrainingArguments(report_to="mlflow"), callbacks=[DynamicsCallback()], ...)
    ```

    The run is the active one (with `report_to="mlflow"` the Trainer's own), else one of its own. With several
    processes the first of them writes the run, with the statistics of the global batch. After a stop the model is that
    of the last epoch, with `load_best_model_at_end=True` the best one, as with the Trainer's `EarlyStoppingCallback`.

    Args:
        recording, measures, early_stopping, stop_before_last_phase, detector: as for `mlflow_dynamics.track`.
        schedule: what is known of the learning rate ahead; None reads it from the Trainer and its scheduler.

    Raises:
        ConfigError: an unknown way of stopping or detector.
    """

    def __init__(
        self,
        *,
        recording: RecordingConfig | None = None,
        measures: MeasureConfig | None = None,
        early_stopping: EarlyStopping = "warn",
        stop_before_last_phase: bool = False,
        detector: str = OURS,
        schedule: Schedule | None = None,
    ) -> None:
        monitor_for(early_stopping, detector=detector)
        self._recording = recording
        self._measures = measures
        self._early_stopping: EarlyStopping = early_stopping
        self._stop_before_last_phase = stop_before_last_phase
        self._detector = detector
        self._schedule = schedule
        self._tracker: Tracker | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach to the model."""
        self._tracker = track(
            kwargs["model"],
            recording=self._recording,
            measures=self._measures,
            early_stopping=self._early_stopping,
            stop_before_last_phase=self._stop_before_last_phase,
            detector=self._detector,
            schedule=self._schedule or _schedule_of(state, kwargs.get("lr_scheduler")),
        )
        # Above 0 with `resume_from_checkpoint`; a checkpoint within an epoch leaves the rest of it to be recorded.
        self._tracker.start_at(int(state.epoch or 0), step=state.global_step)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the epoch; stop the training where asked to."""
        stop = False
        if self._tracker is not None:
            optimizer = kwargs.get("optimizer")
            rate = {} if optimizer is None else {names.LEARNING_RATE: float(optimizer.param_groups[0]["lr"])}
            self._tracker.end_epoch(**rate)
            # After the last epoch there is nothing left to stop.
            stop = state.global_step < state.max_steps and self._tracker.should_stop
        if _by_any_process(stop, args):
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Send the rest, detach."""
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            tracker.close()


def _by_any_process(stop: bool, args: TrainingArguments) -> bool:
    """One decision for all processes, or the others would wait for one that has left."""
    if args.world_size <= 1 or not torch.distributed.is_initialized():
        return stop
    told = torch.tensor(int(stop), device=args.device)
    torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
    return bool(told.item())


def _schedule_of(state: TrainerState, scheduler: object) -> Schedule:
    """What the Trainer knows of its own length and of the scheduler, which it steps after every training step."""
    epochs = state.num_train_epochs
    if not 0 < epochs < sys.maxsize:  # the data has no length
        return plan_of(scheduler).schedule(ticks_per_epoch=None)
    return plan_of(scheduler).schedule(
        ticks_per_epoch=state.max_steps / epochs, planned_epochs=max(round(epochs), 1)
    )
