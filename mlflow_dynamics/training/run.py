"""One training as one MLflow run: parameters, data set, epochs with their dynamics, the trained model."""

from __future__ import annotations

import copy
import importlib.metadata
import logging
import platform
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import mlflow
import torch
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.environment_variables import MLFLOW_RUN_ID
from mlflow.models import infer_signature
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME
from torch import nn
from tqdm import tqdm

from mlflow_dynamics.convergence import Schedule
from mlflow_dynamics.convergence.monitor import monitor_for
from mlflow_dynamics.errors import ConfigError
from mlflow_dynamics.measuring import EpochSummary, Measuring
from mlflow_dynamics.recording import Recorder
from mlflow_dynamics.session import Tracker
from mlflow_dynamics.tracking import RunWriter, end_run, start_run
from mlflow_dynamics.tracking.runs import created_run
from mlflow_dynamics.tracking.sync import sync
from mlflow_dynamics.training.best import BestWeights, carry_over
from mlflow_dynamics.training.config import TrainingConfig
from mlflow_dynamics.training.data import ImageData, load_dataset
from mlflow_dynamics.training.interruption import ignore_interrupts, keep_killed, terminate_as_interrupt
from mlflow_dynamics.training.loop import Epoch, Trainer, resolve_device, seed_everything
from mlflow_dynamics.training.models import build_model, input_size
from mlflow_dynamics.training.optimisation import build_optimizer, build_schedule, drop_epochs

logger = logging.getLogger(__name__)

CHECKPOINTS: Final = Path(".mlflow_dynamics") / "checkpoints"
SENT_TIMEOUT_S: Final = 30.0
"""At the end of training, how long the model waits for what was recorded before it to be sent."""

FAILED_TIMEOUT_S: Final = 10.0
"""Who interrupts a training, or has to read what was wrong, waits no longer than this for a server that is gone."""

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


def train_in_run(config: TrainingConfig, *, tags: Mapping[str, str] | None = None) -> str:
    """Train as `config` says inside an MLflow run (the one `mlflow run` made, else a new one); returns its id.

    Where the tracking server does not answer, training goes on and all of the run is sent later; the id is then the
    local name of its folder.

    Raises:
        ConfigError: a parameter does not fit the data, the model or this machine; no epoch was trained then.
        DataError: the data set is not what it should be; likewise.
        KeyboardInterrupt: interrupted (Ctrl-C or SIGTERM); the run is KILLED and keeps what it has recorded.
    """
    with managed_run(config.title, tags=tags) as (run_id, writer):
        _log_new_parameters(writer, config.as_parameters() | _versions())
        checkpoint = _checkpoint(config.resume) if config.resume is not None else None
        device = resolve_device(config.device)
        seed_everything(config.seed)
        data = load_dataset(
            config.dataset,
            data_dir=config.data_dir,
            limit_train=config.limit_train,
            limit_test=config.limit_test,
            image_size=config.image_size or input_size(config.model),
            augment=config.augment,
            seed=config.seed,
        )
        model = build_model(
            config.model,
            num_classes=data.num_classes,
            image_size=data.image_size,
            channels=data.channels,
            pretrained=config.pretrained,
            checkpoint=config.checkpoint,
        ).to(device)
        trainer = _trainer(config, model=model, data=data, device=device)
        if checkpoint is not None:
            trainer.restore(checkpoint)
        _log_dataset(writer, data)
        _train(config, trainer, writer, run_id=run_id)
        _log_model(writer, model, data)
        _checkpoint_path(run_id).unlink(missing_ok=True)
        _best_path(run_id).unlink(missing_ok=True)
    return run_id


@contextmanager
def managed_run(
    name: str, *, tags: Mapping[str, str] | None = None, system_metrics: bool = True
) -> Iterator[tuple[str, RunWriter]]:
    """A run's id (or local name) and its writer; it ends FINISHED, FAILED (an error) or KILLED (an interruption)."""
    prepared = MLFLOW_RUN_ID.get()
    MLFLOW_RUN_ID.unset()
    with terminate_as_interrupt():
        run_id = start_run(run_name=name, tags=tags, prepared=prepared, system_metrics=system_metrics)
        writer = RunWriter(run_id)
        if prepared is not None:
            writer.set_tags({MLFLOW_RUN_NAME: name})
        try:
            yield run_id, writer
        except KeyboardInterrupt:
            ignore_interrupts()
            end_run(writer, "KILLED", FAILED_TIMEOUT_S)
            if prepared is not None:
                keep_killed(prepared)
            raise
        except BaseException:
            end_run(writer, "FAILED", FAILED_TIMEOUT_S)
            raise
        end_run(writer, "FINISHED")


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


def _train(config: TrainingConfig, trainer: Trainer, writer: RunWriter, *, run_id: str) -> None:
    first = trainer.next_epoch
    measuring = Measuring(
        writer,
        recording=config.recording,
        measures=config.measures,
        monitor=monitor_for(
            config.early_stopping,
            detector=config.detector,
            schedule=_schedule(config),
            stop_before_last_phase=config.stop_before_last_phase,
        ),
    )
    with (
        Tracker(
            Recorder(trainer.model, config.recording, optimizer=trainer.optimizer), measuring, close=None
        ) as tracker,
        tqdm(
            total=(config.epochs - first) * len(trainer.train_loader), unit="step", dynamic_ncols=True
        ) as bar,
    ):
        if config.resume is not None:
            # What the interrupted run had recorded and not sent is part of it.
            sync()
            tracker.carry_on(created_run(config.resume), epochs=first)
            carry_over(_best_path(config.resume), _best_path(run_id))
        best = BestWeights(_best_path(run_id))
        bar.set_description(f"epoch {first}")
        for epoch in trainer.epochs(config.epochs, after_step=bar.update):
            tracker.end_epoch(epoch.number, **epoch.as_metrics())
            # The best first: interrupted between the two, the epoch is trained again and is as good.
            best.keep(epoch, trainer.model)
            trainer.save(_checkpoint_path(run_id))
            bar.write(_epoch_line(epoch, tracker.wait(epoch.number)))
            bar.set_description(f"epoch {epoch.number + 1}")
            # After the last epoch there is nothing left to stop.
            if trainer.next_epoch < config.epochs and tracker.should_stop:
                best.restore(trainer.model)
                break


def _schedule(config: TrainingConfig) -> Schedule:
    """What the convergence monitor may know of the learning rate ahead."""
    drops = drop_epochs(config.epochs) if config.schedule == "step" else ()
    return Schedule(name=config.schedule, planned_epochs=config.epochs, drop_epochs=drops)


def _epoch_line(epoch: Epoch, summary: EpochSummary | None) -> str:
    line = (
        f"epoch {epoch.number:3d}  train loss {epoch.train_loss:.3f} accuracy {epoch.train_accuracy:.3f}"
        f"  validation loss {epoch.validation_loss:.3f} accuracy {epoch.validation_accuracy:.3f}"
    )
    if summary is None:
        return line
    measures = summary.measures
    if measures.reason is not None:
        return f"{line}  | {measures.reason}"
    return (
        f"{line}  | integration {measures.integration:.3f} metastability {measures.metastability:.3f}"
        f" stability {measures.stability:.3f} volatility {summary.volatility:.4f}"
    )


def has_checkpoint(run_id: str) -> bool:
    """Whether a training of this run can be carried on from here."""
    return _checkpoint_path(run_id).is_file()


def _checkpoint_path(run_id: str) -> Path:
    return CHECKPOINTS / f"{run_id}.pt"


def _best_path(run_id: str) -> Path:
    return _checkpoint_path(run_id).with_suffix(".best")


def _checkpoint(run_id: str) -> Path:
    known = sorted(path.stem for path in CHECKPOINTS.glob("*.pt"))
    if run_id not in known:
        raise ConfigError(
            f"resume={run_id!r} has no checkpoint in {str(CHECKPOINTS)!r} (it finished, never ended an epoch, or "
            f"trained elsewhere); runs that can be resumed here: {', '.join(known) or 'none'}."
        )
    return _checkpoint_path(run_id)


def _versions() -> dict[str, str]:
    versions = {"version/python": platform.python_version()}
    for package in VERSIONS_LOGGED:
        try:
            versions[f"version/{package}"] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            # Run from a source folder (mlflow run with its own environment): the git commit says more.
            continue
    return versions


def _log_new_parameters(writer: RunWriter, parameters: dict[str, str]) -> None:
    """Log what `mlflow run` has not logged already: a parameter of a run cannot be written twice."""
    active = mlflow.active_run()
    present = {} if active is None else active.data.params
    writer.log_params({key: value for key, value in parameters.items() if key not in present})


def _log_dataset(writer: RunWriter, data: ImageData) -> None:
    """Log the two parts of the data set as the run's inputs, with where they came from and their sizes."""
    source = CodeDatasetSource(
        tags={"location": data.source, **{k: str(v) for k, v in data.summary().items()}}
    )
    kind, colon, path = data.name.partition(":")
    name = Path(path).resolve().name if colon else kind
    for part, context in (("train", "training"), ("test", "validation")):
        dataset = MetaDataset(source, name=f"{name}/{part}", digest=data.digest)  # type: ignore[abstract]
        writer.log_dataset(dataset, context=context)


def _log_model(writer: RunWriter, model: nn.Module, data: ImageData) -> None:
    """Log the model in torch's export format, which needs neither pickle nor this package to be loaded.

    As MLflow logs models where the server takes records; else as files of the run, sent when it does.
    """
    model = copy.deepcopy(model).cpu().eval()
    # Two images: an example of one would fix the batch size to one.
    images = torch.stack([data.test[i % len(data.test)][0] for i in range(2)])
    with torch.no_grad():
        output = model(images)
    packages = ("mlflow", "torch", "torchvision", "timm")
    options = {
        "input_example": images.numpy(),
        "signature": infer_signature(images.numpy(), output.numpy()),
        "serialization_format": "pt2",
        "pip_requirements": [f"{name}=={importlib.metadata.version(name)}" for name in packages],
    }
    if writer.all_sent(SENT_TIMEOUT_S):
        mlflow.pytorch.log_model(model, name="model", **options)
        return
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "model"
        mlflow.pytorch.save_model(model, saved, **options)
        files = {path.relative_to(folder).as_posix(): path for path in saved.rglob("*") if path.is_file()}
        writer.write_files({name: path.read_bytes() for name, path in files.items()})
