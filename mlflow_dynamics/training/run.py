"""Runs one training as one MLflow run with its parameters, data set, epochs, dynamics and trained model."""

from __future__ import annotations

import importlib.metadata
import logging
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Final

import mlflow
import torch
from mlflow.entities import Run
from mlflow.environment_variables import MLFLOW_RUN_ID
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME
from torch import nn

from mlflow_dynamics.config import AUTO
from mlflow_dynamics.convergence import Schedule, WarningConfig
from mlflow_dynamics.pipeline import EpochResult
from mlflow_dynamics.recording import Recorder
from mlflow_dynamics.run_log import RunLog
from mlflow_dynamics.text import encodable
from mlflow_dynamics.tracker import CLOSE_TIMEOUT_S, Tracker
from mlflow_dynamics.tracking import RunWriter, end_run, reopen_run, start_run
from mlflow_dynamics.tracking.joining import whole_record
from mlflow_dynamics.tracking.query import created_run, find_runs
from mlflow_dynamics.tracking.settings import PROJECT_PARAMETERS
from mlflow_dynamics.tracking.sync import sync
from mlflow_dynamics.training.best import BestWeights
from mlflow_dynamics.training.checkpoints import (
    best_path,
    checkpoint_path,
    how_to_go_on,
    keep_for,
    open_checkpoints,
    run_to_go_on_in,
)
from mlflow_dynamics.training.data import ImageData, load_dataset
from mlflow_dynamics.training.inputs import log_inputs
from mlflow_dynamics.training.interruption import (
    after_launcher,
    ignore_interrupts,
    keep_killed,
    said_when_interrupted,
    terminate_as_interrupt,
)
from mlflow_dynamics.training.logged_model import log_model, model_name
from mlflow_dynamics.training.loop import Epoch, Trainer, resolve_device, seed_everything
from mlflow_dynamics.training.models import build_model, input_size
from mlflow_dynamics.training.optimisation import build_optimizer, build_schedule, drop_epochs
from mlflow_dynamics.training.parameters import TrainingConfig
from mlflow_dynamics.training.progress import progress_bar

logger = logging.getLogger(__name__)

FAILED_TIMEOUT_S: Final = 10.0
"""After an error or an interruption, the longest time that the user waits for a server that does not answer."""

VERSIONS_LOGGED: Final = (
    "mlflow-dynamics",
    "mlflow",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scipy",
    "pyarrow",
)


def train_in_run(
    config: TrainingConfig,
    *,
    tags: Mapping[str, str] | None = None,
    after_epoch: Callable[[], None] | None = None,
) -> str:
    """Train as `config` says in an MLflow run, and return the run's id.

    The run is the one that `mlflow run` has made, or a new one. If the tracking server does not answer, training goes
    on and the whole run is sent later; the id is then the local name of the run.

    Args:
        config: the parameters of the training.
        tags: the run's tags; None outside a grid.
        after_epoch: called when an epoch is kept; None outside a grid, which has a progress bar of its own.

    Raises:
        ConfigError: a parameter does not fit the data, the model or this machine. No run is made.
        DataError: the data set is missing or damaged. No run is made.
        TrackingError: the run to be carried on is not in MLflow. No run is made.
        KeyboardInterrupt: the training was interrupted (Ctrl-C or SIGTERM). The run is KILLED and keeps its record.
    """
    with interruptible() as prepared:
        open_checkpoints()
        interrupted = run_to_go_on_in(config)
        seed_everything(config.seed)
        data, trainer = _prepare(config)
        earlier = None
        if interrupted is not None:
            trainer.restore(checkpoint_path(interrupted))
            earlier = _to_carry_on(interrupted)
        with managed_run(config.title, tags=tags, prepared=prepared, earlier=earlier) as (run_id, writer):
            if interrupted is not None:
                keep_for(run_id, interrupted)
            same_command = tags is not None or config.resume == AUTO
            go_on = partial(how_to_go_on, run_id, config, same_command=same_command)
            _log_new_parameters(writer, config.as_parameters() | _versions())
            inputs = log_inputs(writer, data)
            epoch = _train(
                config,
                trainer,
                writer,
                run_id=run_id,
                goes_on=earlier is not None,
                go_on=go_on,
                after_epoch=after_epoch,
            )
            with said_when_interrupted(go_on):
                log_model(
                    writer,
                    trainer.model,
                    name=model_name(config.title),
                    epoch=epoch,
                    images=data.test,
                    inputs=inputs,
                )
            checkpoint_path(run_id).unlink(missing_ok=True)
            best_path(run_id).unlink(missing_ok=True)
    return run_id


@contextmanager
def interruptible() -> Iterator[str | None]:
    """Yield the id of the run that `mlflow run` has prepared, or None. If the block is interrupted, it is KILLED."""
    prepared = MLFLOW_RUN_ID.get()
    MLFLOW_RUN_ID.unset()
    with terminate_as_interrupt():
        try:
            yield prepared
        except KeyboardInterrupt:
            ignore_interrupts()
            if prepared is not None:
                keep_killed(prepared)
            raise


@contextmanager
def managed_run(
    name: str,
    *,
    tags: Mapping[str, str] | None = None,
    prepared: str | None = None,
    earlier: Run | None = None,
    system_metrics: bool = True,
) -> Iterator[tuple[str, RunWriter]]:
    """Open a run for the block and yield its id (or local name) and its writer.

    After the block, the run ends as FINISHED, as FAILED after an error, or as KILLED after an interruption.

    Args:
        name: the run's name.
        tags: the run's tags.
        prepared: the id of the run that `mlflow run` has prepared; None makes a new run.
        earlier: the run of an interrupted training, which is reopened instead. A prepared run is deleted then.
        system_metrics: let MLflow log the machine's load.
    """
    name = encodable(name)
    if earlier is None:
        run_id = start_run(run_name=name, tags=tags, prepared=prepared, system_metrics=system_metrics)
    else:
        run_id = str(earlier.info.run_id)
        reopen_run(earlier, joined=False, system_metrics=system_metrics)
    writer = RunWriter(run_id, owned=prepared is None or earlier is not None).start()
    if earlier is not None:
        writer.set_tags(tags or {})
    elif prepared is not None and mlflow.active_run() is None:
        writer.set_tags({MLFLOW_RUN_NAME: name})
    status = "FAILED"
    try:
        yield run_id, writer
        status = "FINISHED"
    except KeyboardInterrupt:
        ignore_interrupts()
        status = "KILLED"
        raise
    finally:
        end_run(writer, status, CLOSE_TIMEOUT_S if status == "FINISHED" else FAILED_TIMEOUT_S)
        if earlier is not None and prepared is not None:
            after_launcher(prepared, "delete")


def _prepare(config: TrainingConfig) -> tuple[ImageData, Trainer]:
    """Load the data and build the trainer. Every error in the parameters is raised here, before there is a run."""
    device = resolve_device(config.device)
    data = load_dataset(
        config.dataset,
        data_dir=config.data_dir,
        limit_train=config.limit_train,
        limit_test=config.limit_test,
        image_size=config.image_size or input_size(config.model),
        augment=config.augment,
        seed=config.seed,
        labels=config.labels,
    )
    model = build_model(
        config.model,
        num_classes=data.num_classes,
        image_size=data.image_size,
        channels=data.channels,
        pretrained=config.pretrained,
        checkpoint=config.checkpoint,
    ).to(device)
    return data, _trainer(config, model=model, data=data, device=device)


def _trainer(config: TrainingConfig, *, model: nn.Module, data: ImageData, device: torch.device) -> Trainer:
    optimizer = build_optimizer(
        config.optimizer,
        model.parameters(),
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    scheduler = build_schedule(
        config.schedule,
        optimizer,
        learning_rate=config.learning_rate,
        epochs=config.epochs,
        steps_per_epoch=-(-len(data.train) // config.batch_size),
    )
    return Trainer(
        model=model,
        forward=torch.compile(model) if config.compile else None,
        optimizer=optimizer,
        scheduler=scheduler,
        data=data,
        batch_size=config.batch_size,
        device=device,
        precision=config.precision,
        seed=config.seed,
        workers=config.workers,
    )


def _train(
    config: TrainingConfig,
    trainer: Trainer,
    writer: RunWriter,
    *,
    run_id: str,
    goes_on: bool,
    go_on: Callable[[], str],
    after_epoch: Callable[[], None] | None,
) -> int:
    """Train, restore the best weights into the model, and return their epoch.

    Args:
        config: the parameters of the training.
        trainer: the trainer, which may have been restored from a checkpoint.
        writer: the run's writer.
        run_id: the run's id.
        goes_on: the run holds the training up to the trainer's next epoch.
        go_on: returns the sentence that says how to carry on after an interruption.
        after_epoch: as in `train_in_run`.
    """
    first = trainer.next_epoch
    run_log = RunLog(
        writer,
        recording=config.recording,
        measures=config.measures,
        warning=WarningConfig(
            mode=config.early_stopping,
            detector=config.detector,
            schedule=_schedule(config),
            stop_before_last_phase=config.stop_before_last_phase,
        ),
        logged_already=PROJECT_PARAMETERS,
    )
    steps = (config.epochs - first) * len(trainer.train_loader)
    with (
        Tracker(
            Recorder(trainer.model, config.recording, optimizer=trainer.optimizer), run_log, close=None
        ).start() as tracker,
        progress_bar(steps if after_epoch is None else None) as bar,
        said_when_interrupted(go_on),  # the innermost block, because ending the run may take long
    ):
        if goes_on:
            tracker.carry_on(run_id)
            tracker.start_at(first, step=first * len(trainer.train_loader))
        best = BestWeights(best_path(run_id))
        bar.set_description(f"epoch {first}")
        for epoch in trainer.epochs(config.epochs, after_step=bar.update):
            tracker.end_epoch(epoch.as_metrics(), epoch=epoch.number)
            result = tracker.wait(epoch.number)
            # The checkpoint comes last. After an interruption before it, the epoch is trained again, with the same
            # result, and neither recorded nor kept twice.
            best.keep(epoch, trainer.model)
            trainer.save(checkpoint_path(run_id), trained=config.trained())
            if after_epoch is not None:
                after_epoch()
            bar.write(f"{_epoch_line(epoch, result)}\n", end="")  # in a single write
            bar.set_description(f"epoch {epoch.number + 1}")
            # After the last epoch there is nothing left to stop.
            if trainer.next_epoch < config.epochs and tracker.should_stop():
                logger.info("Stopped early, after epoch %d.", epoch.number)
                break
    restored = best.restore(trainer.model)
    return trainer.next_epoch - 1 if restored is None else restored


def _schedule(config: TrainingConfig) -> Schedule:
    """Return the schedule of the learning rate, for the convergence monitor."""
    drops = drop_epochs(config.epochs) if config.schedule == "step" else ()
    return Schedule(name=config.schedule, planned_epochs=config.epochs, drop_epochs=drops)


def _epoch_line(epoch: Epoch, result: EpochResult | None) -> str:
    line = (
        f"epoch {epoch.number:3d}  train loss {epoch.train_loss:.3f} accuracy {epoch.train_accuracy:.3f}"
        f"  validation loss {epoch.validation_loss:.3f} accuracy {epoch.validation_accuracy:.3f}"
    )
    if result is None:
        return line
    measures = result.measures
    if measures.reason is not None:
        return f"{line}  | {measures.reason}"
    return (
        f"{line}  | integration {measures.integration:.3f} metastability {measures.metastability:.3f}"
        f" stability {measures.stability:.3f} volatility {result.volatility:.4f}"
    )


def _to_carry_on(run_id: str) -> Run:
    """Send what the interrupted run has recorded and not sent, and return the run as MLflow has it."""
    sync()
    (run,) = find_runs([created_run(run_id)])
    return whole_record(run)


def _versions() -> dict[str, str]:
    versions = {"version/python": platform.python_version()}
    for package in VERSIONS_LOGGED:
        try:
            versions[f"version/{package}"] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            # This package is not installed when `mlflow run` runs it from a source folder; the git commit says more.
            continue
    return versions


def _log_new_parameters(writer: RunWriter, parameters: dict[str, str]) -> None:
    """Log the parameters that `mlflow run` has not logged already, because a parameter cannot be written twice."""
    active = mlflow.active_run()
    present = {} if active is None else active.data.params
    writer.log_params({key: value for key, value in parameters.items() if key not in present})
