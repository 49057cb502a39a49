"""PyTorch Lightning: a callback that records the dynamics of `Trainer.fit` in the run to which Lightning logs."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger

from mlflow_dynamics.alerts import OnEvent
from mlflow_dynamics.arguments import check_arguments
from mlflow_dynamics.config import MeasureConfig, RecordingConfig
from mlflow_dynamics.convergence import Schedule, WarningConfig
from mlflow_dynamics.recording.schedule_reader import schedule_from
from mlflow_dynamics.session import track
from mlflow_dynamics.tracker import Tracker
from mlflow_dynamics.tracking import names, run_to_carry_on


class DynamicsCallback(Callback):
    """Records every epoch of a fit, and ends the fit on the convergence signal with `WarningConfig(mode="stop")`.

    ```python
    trainer = Trainer(max_epochs=30, logger=MLFlowLogger(), callbacks=[DynamicsCallback()])
    ```

    The run is that of an `MLFlowLogger`. If there is no such logger, it is the active run (such as that of
    `mlflow.pytorch.autolog()`), or a new run if none is active. With several processes, the first one writes the run,
    with the statistics of the global batch. After a stop, the module has the weights of the last epoch, as with
    Lightning's `EarlyStopping`; `ModelCheckpoint` keeps the best ones.

    Args:
        recording: as in `mlflow_dynamics.track`.
        measures: as in `mlflow_dynamics.track`.
        warning: as in `mlflow_dynamics.track`; if no schedule is given, it is read from the trainer and its scheduler.
        resume: the run to carry on. None carries on the run above, if it holds a training and the fit begins at a later
            epoch than 0 (`ckpt_path`). A fit that begins at epoch 0 in a run that holds a training gets a run nested
            under it.
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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach to the module."""
        # The logger knows its run only on the first rank; the other ranks hand over their parts.
        loggers = trainer.loggers if trainer.is_global_zero else []
        ours = next((one for one in loggers if isinstance(one, MLFlowLogger)), None)
        run_id = None if ours is None else ours.run_id
        tracking_uri = None if ours is None else ours._tracking_uri
        resume = self._resume
        if resume is None and trainer.is_global_zero and trainer.current_epoch > 0:
            resume = run_to_carry_on(run_id, tracking_uri=tracking_uri)
        self._tracker = track(
            pl_module,
            recording=self._recording,
            measures=self._measures,
            warning=self._warning.unless_given(_schedule_of(trainer)),
            run_id=run_id if resume in (None, run_id) else None,
            resume=resume,
            tracking_uri=tracking_uri,
            on_event=self._on_event,
        )
        # Both numbers are above 0 with `ckpt_path`.
        self._tracker.start_at(trainer.current_epoch, step=trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the epoch, and stop the fit if the tracker says so."""
        if self._tracker is not None:
            self._tracker.at_global_step(_logging_step(trainer))
            self._tracker.end_epoch(_learning_rate(trainer), epoch=trainer.current_epoch)
        # Every rank must come to the same decision, even if the trackers of the ranks exchange nothing.
        stop = self._tracker is not None and not _is_last(trainer) and self._tracker.should_stop()
        trainer.should_stop = trainer.should_stop or trainer.strategy.reduce_boolean_decision(stop, all=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the tracker: send what is left and detach from the module."""
        self._close("FINISHED")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the tracker after an error or an interruption."""
        self._close("KILLED" if isinstance(exception, KeyboardInterrupt) else "FAILED")

    def _close(self, status: str) -> None:
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            tracker.close(status)


def _schedule_of(trainer: Trainer) -> Schedule:
    """Return the schedule of the fit, from the trainer's length and its scheduler, which the trainer steps itself."""
    planned = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else None
    if not trainer.lr_scheduler_configs:
        return Schedule(planned_epochs=planned)
    if len(trainer.lr_scheduler_configs) > 1:
        return Schedule(name="unknown", planned_epochs=planned)
    (config,) = trainer.lr_scheduler_configs
    steps: float = 1
    if config.interval == "step":
        steps = trainer.num_training_batches / trainer.accumulate_grad_batches
    ticks = math.ceil(steps) / config.frequency if math.isfinite(steps) else None
    return schedule_from(config.scheduler, ticks_per_epoch=ticks, planned_epochs=planned)


def _is_last(trainer: Trainer) -> bool:
    """Whether the fit ends with this epoch anyway, so that nothing is left to stop."""
    return trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs


def _logging_step(trainer: Trainer) -> int:
    """Return the step with which Lightning logs the results of the epoch that ends. It counts batches, not steps."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped - 1


def _learning_rate(trainer: Trainer) -> dict[str, Any]:
    if not trainer.optimizers:
        return {}
    return {names.LEARNING_RATE: float(trainer.optimizers[0].param_groups[0]["lr"])}
