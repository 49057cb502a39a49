"""Hugging Face Trainer: a callback that records the dynamics of `Trainer.train` in the Trainer's own run."""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mlflow_dynamics.alerts import OnEvent
from mlflow_dynamics.arguments import check_arguments
from mlflow_dynamics.config import MeasureConfig, RecordingConfig
from mlflow_dynamics.convergence import Schedule, WarningConfig
from mlflow_dynamics.recording.schedule_reader import schedule_from
from mlflow_dynamics.session import track
from mlflow_dynamics.tracker import Tracker
from mlflow_dynamics.tracking import names, run_to_carry_on


class DynamicsCallback(TrainerCallback):
    """Records every epoch of a training, and ends it on the convergence signal with `WarningConfig(mode="stop")`.

    ```python
    Trainer(model=model, args=TrainingArguments(report_to="mlflow"), callbacks=[DynamicsCallback()], ...)
    ```

    The run is the active one, which with `report_to="mlflow"` is the Trainer's own; if none is active, it is a new one.
    With several processes, the first one writes the run, with the statistics of the global batch. After a stop, the
    model is that of the last epoch or, with `load_best_model_at_end=True`, the best one, as with the Trainer's
    `EarlyStoppingCallback`.

    Args:
        recording: as in `mlflow_dynamics.track`.
        measures: as in `mlflow_dynamics.track`.
        warning: as in `mlflow_dynamics.track`; if no schedule is given, it is read from the Trainer and its scheduler.
        resume: the run to carry on. None carries on the run above, if it holds a training and this training begins at a
            later epoch than 0 (`resume_from_checkpoint`). A training that begins at epoch 0 in a run that holds a
            training gets a run nested under it.
        on_event: as in `mlflow_dynamics.track`.

    Raises:
        ConfigError: an argument is not usable.
    """

    def __init__(
        self,
        *,
        recording: RecordingConfig | None = None,
        measures: MeasureConfig | None = None,
        warning: WarningConfig | None = None,
        resume: str | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        check_arguments(
            recording=recording,
            measures=measures,
            warning=warning,
            resume=resume,
            on_event=on_event,
        )
        self._recording = recording
        self._measures = measures
        self._warning = warning or WarningConfig()
        self._resume = resume
        self._on_event = on_event
        self._tracker: Tracker | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach to the model."""
        resume = self._resume
        if resume is None and state.is_world_process_zero and (state.epoch or 0) >= 1:
            resume = run_to_carry_on()
        self._tracker = track(
            kwargs["model"],
            recording=self._recording,
            measures=self._measures,
            warning=self._warning.unless_given(_schedule_of(state, kwargs.get("lr_scheduler"))),
            resume=resume,
            on_event=self._on_event,
        )
        # Both numbers are above 0 with `resume_from_checkpoint`. After a checkpoint within an epoch, only the rest of
        # that epoch is recorded.
        self._tracker.start_at(int(state.epoch or 0), step=state.global_step)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the epoch, and stop the training if the tracker says so."""
        stop = False
        if self._tracker is not None:
            optimizer = kwargs.get("optimizer")
            rate = {} if optimizer is None else {names.LEARNING_RATE: float(optimizer.param_groups[0]["lr"])}
            self._tracker.at_global_step(state.global_step)
            self._tracker.end_epoch(rate)
            # After the last epoch there is nothing left to stop.
            stop = state.global_step < state.max_steps and self._tracker.should_stop()
        if _by_any_process(stop, args):
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the tracker: send what is left and detach from the model."""
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            tracker.close()


def _by_any_process(stop: bool, args: TrainingArguments) -> bool:
    """Whether any process stops. All must stop together, or the others would wait for the one that has stopped."""
    if args.world_size <= 1 or not torch.distributed.is_initialized():
        return stop
    any_stops = torch.tensor(int(stop), device=args.device)
    torch.distributed.all_reduce(any_stops, op=torch.distributed.ReduceOp.MAX)
    return bool(any_stops.item())


def _schedule_of(state: TrainerState, scheduler: object) -> Schedule:
    """Return the schedule, from the Trainer's length and the scheduler, which it steps after every training step."""
    epochs = state.num_train_epochs
    if not 0 < epochs < sys.maxsize:  # the data has no known length
        return schedule_from(scheduler, ticks_per_epoch=None)
    return schedule_from(
        scheduler, ticks_per_epoch=state.max_steps / epochs, planned_epochs=max(round(epochs), 1)
    )
