"""The parameters of a training and of grids, with their defaults and the checks of their values."""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from mlflow_dynamics.config import AUTO, WARNING_MODES, MeasureConfig, RecordingConfig, WarningMode
from mlflow_dynamics.errors import ConfigError, unknown_choice
from mlflow_dynamics.training.catalogue import DATASETS, MODELS

OPTIMIZERS: Final = ("sgd", "adam", "adamw")
SCHEDULES: Final = ("constant", "step", "cosine", "onecycle")
PRECISIONS: Final = ("fp32", "bf16")
ENGINES: Final = ("local", "ray")

_LARGEST_INT: Final = 2**31 - 1
_LARGEST_RATE: Final = 1e6
"""Far above every useful rate, but small enough that the products in a training step stay within float32."""


def _parameter(default: Any, description: str) -> Any:
    """Return a field that is also an option of the command line and a parameter of the MLproject."""
    return field(default=default, metadata={"help": description})


def _optional(kind: type, word: str, description: str) -> Any:
    """Return a field that may be None, for which `word` stands on the command line and in MLflow."""
    return field(default=None, metadata={"help": description, "kind": kind, "word": word})


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One training of one model on one data set. The MLproject's entry point `main` has the same parameters.

    Raises:
        ConfigError: a value is not usable.
    """

    model: str = _parameter("resnet20", f"{', '.join(MODELS)} or any timm model's name")
    dataset: str = _parameter("digits", ", ".join(DATASETS))
    data_dir: Path = _parameter(Path("data"), "where torchvision sets are downloaded to")
    epochs: int = _parameter(30, "passes over the training images")
    batch_size: int = _parameter(32, "images per training step")
    learning_rate: float = _parameter(0.1, "the schedule's highest rate")
    optimizer: str = _parameter("sgd", "what changes the weights")
    schedule: str = _parameter("onecycle", "of the learning rate")
    weight_decay: float = _parameter(5e-4, "L2 penalty (decoupled for adamw)")
    augment: bool = _parameter(True, "standard augmentation of the training images")
    limit_train: int | None = _optional(int, "all", "use only the first so many training images")
    limit_test: int | None = _optional(int, "all", "use only the first so many validation images")
    labels: str = _parameter(
        "given", "given, random, noisy:FRACTION or merged:CLASSES: what stands in place of the data set's own"
    )
    pretrained: bool = _parameter(False, "start from the library's pretrained weights (downloaded)")
    checkpoint: Path | None = _optional(Path, "none", "start from this local weights file")
    image_size: int | None = _optional(int, "auto", "resize images to this side in pixels")
    precision: str = _parameter("fp32", "of the numbers in training")
    compile: bool = _parameter(False, "train the model through torch.compile")
    device: str = _parameter("auto", "auto, cpu, cuda, cuda:1, mps, ...")
    seed: int = _parameter(0, "of weights, order and augmentation; the same seed gives the same losses")
    workers: int = _parameter(0, "processes that load data")
    early_stopping: WarningMode = _parameter("warn", "what the convergence signal does")
    stop_before_last_phase: bool = _parameter(
        False, "under a smooth schedule let the stop not wait for the last phase"
    )
    detector: str = _parameter("volatility", "of convergence: an installed detector's name")
    record_every: int = _parameter(1, "record activations at every n-th training step")
    batch_samples: int | None = _optional(
        int, "all", "at most so many samples of each batch enter a layer's statistics"
    )
    signal: str = _parameter("rms", "what stands for a layer at a step")
    protocol: str = _parameter("steps", "what plays the part of time")
    window: int | None = _optional(
        int, AUTO, "training steps that enter the measures of an epoch; auto follows the length of the epochs"
    )
    estimator: str | None = _optional(str, "auto", "of the integration exponent; auto is the protocol's own")
    uncertainty: bool = _parameter(
        False, "also log integration's confidence interval and the p-values of the surrogate tests"
    )
    resume: str | None = _optional(
        str,
        "none",
        "go on in this interrupted run (its id); auto: in the last one of the same training, if any",
    )
    run_name: str | None = _optional(str, "auto", "of the run in MLflow; auto says what is trained")

    def __post_init__(self) -> None:
        if self.run_name is not None and not self.run_name.strip():
            raise ConfigError(f"run_name={self.run_name!r} is empty; give a name, or auto.")
        for name, accepted in _CHOICES.items():
            if getattr(self, name) not in accepted:
                raise unknown_choice(name, getattr(self, name), accepted)
        for name in ("epochs", "batch_size", "limit_train", "limit_test", "image_size"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= _LARGEST_INT:
                raise ConfigError(f"{name}={value} must be at least 1 and at most {_LARGEST_INT}.")
        _require_labels(self.labels)
        if self.workers < 0:
            raise ConfigError(f"workers={self.workers} must be 0 (load in the training process) or more.")
        if not 0 <= self.seed <= _LARGEST_INT:
            raise ConfigError(f"seed={self.seed} must be 0 or more and at most {_LARGEST_INT}.")
        if not 0 < self.learning_rate <= _LARGEST_RATE:
            raise ConfigError(
                f"learning_rate={self.learning_rate} must be a finite number above 0, at most {_LARGEST_RATE}."
            )
        if not 0 <= self.weight_decay <= _LARGEST_RATE:
            raise ConfigError(
                f"weight_decay={self.weight_decay} must be a finite number of at least 0, at most {_LARGEST_RATE}."
            )
        if self.checkpoint is not None and not self.checkpoint.is_file():
            raise ConfigError(
                f"checkpoint={str(self.checkpoint)!r} is not a file; give a local weights file or none."
            )
        if self.checkpoint is not None and self.pretrained:
            raise ConfigError("pretrained=True and checkpoint exclude each other; give one of them.")
        # These check their values too, before any work starts.
        _ = self.recording, self.measures
        _require_detector(self.detector)

    @property
    def recording(self) -> RecordingConfig:
        """The settings of recording."""
        return RecordingConfig(record_every=self.record_every, batch_samples=self.batch_samples)

    @property
    def measures(self) -> MeasureConfig:
        """The settings of measuring."""
        return MeasureConfig(
            signal=self.signal,  # type: ignore[arg-type]  # checked in its own __post_init__
            protocol=self.protocol,  # type: ignore[arg-type]
            window=self.window,
            estimator=self.estimator,  # type: ignore[arg-type]
            uncertainty=self.uncertainty,
        )

    @property
    def title(self) -> str:
        """The run's name: the given one or, if none is given, what is trained and what differs from the defaults."""
        if self.run_name is not None:
            return self.run_name
        parts = [
            f"{self.model} on {short_name(self.dataset)}",
            f"{self.optimizer} {self.schedule}",
            f"seed {self.seed}",
        ]
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name not in _NOT_IN_TITLE and value != f.default:
                parts.append(f"{f.name} {value.stem if isinstance(value, Path) else value}")
        return ", ".join(parts)

    @property
    def command(self) -> str:
        """The command of this training, with the parameters that differ from the defaults."""
        words = ["mlflow-dynamics", "train"]
        for f in fields(self):
            if (value := getattr(self, f.name)) != f.default:
                words += [f"--{f.name.replace('_', '-')}", str(value)]
        return shlex.join(words)

    def trained(self) -> dict[str, str]:
        """Return the parameters that a training has in common with the one that it carries on."""
        return {key: value for key, value in self.as_parameters().items() if key not in _CHANGES_NOTHING}

    def digest(self) -> str:
        """Return 16 hexadecimal digits that are the same for every start of the same training, resumed or not."""
        text = repr(sorted((k, v) for k, v in self.as_parameters().items() if k != "resume"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def as_parameters(self) -> dict[str, str]:
        """Return all parameters but the run's name as MLflow stores them, in words that the command line accepts."""
        return {
            f.name: f.metadata["word"] if (value := getattr(self, f.name)) is None else str(value)
            for f in fields(self)
            if f.name != "run_name"
        }


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """What may be changed in the paper's grid, which is the file `paper.yaml`."""

    easy_dataset: str = _parameter("cifar10", "the data set that plays CIFAR-10, as for train --dataset")
    hard_dataset: str = _parameter("cifar100", "the data set that plays CIFAR-100, as for train --dataset")
    data_dir: Path = _parameter(Path("data"), "where torchvision sets are downloaded to")
    epochs: int = _parameter(60, "passes over the training images")
    batch_size: int = _parameter(128, "images per training step")
    limit_train: int | None = _optional(int, "all", "use only the first so many training images")
    limit_test: int | None = _optional(int, "all", "use only the first so many validation images")
    seeds: str = _parameter("0", "comma-separated; every combination is trained once with each")
    vit_checkpoint: Path | None = _optional(
        Path, "none", "the ViT starts from this file, not from a download"
    )
    precision: str = _parameter("fp32", "of the numbers in training")
    device: str = _parameter("auto", "auto, cpu, cuda, cuda:1, mps, ...")
    workers: int = _parameter(0, "processes that load data")
    early_stopping: WarningMode = _parameter("warn", "what the convergence signal does")
    stop_before_last_phase: bool = _parameter(
        False, "under a smooth schedule let the stop not wait for the last phase"
    )
    detector: str = _parameter("volatility", "of convergence: an installed detector's name")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What trains the cells of a grid.

    Raises:
        ConfigError: a value is not usable, or is of the other engine.
    """

    engine: str = _parameter("local", "what trains the cells: processes of this machine, or a Ray cluster's")
    jobs: int = _parameter(1, "of local: how many cells are trained at a time, each in a process of its own")
    address: str | None = _optional(
        str, "auto", "of the Ray cluster; auto is RAY_ADDRESS, the Ray that runs here, or a new one"
    )
    gpus_per_cell: float | None = _optional(
        float, "auto", "of ray; auto is 1 if the cluster has GPUs and 0 otherwise"
    )
    cpus_per_cell: float = _parameter(1.0, "of ray; also the threads of a cell, unless OMP_NUM_THREADS says")

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise unknown_choice("engine", self.engine, ENGINES)
        if self.jobs < 1:
            raise ConfigError(f"jobs={self.jobs} must be at least 1.")
        if not (self.cpus_per_cell >= 0 and (self.gpus_per_cell or 0) >= 0):
            raise ConfigError(
                f"cpus_per_cell={self.cpus_per_cell} and gpus_per_cell={self.gpus_per_cell} must be at least 0."
            )
        others = ("jobs",) if self.engine == "ray" else ("address", "gpus_per_cell", "cpus_per_cell")
        for f in fields(self):
            if f.name in others and getattr(self, f.name) != f.default:
                raise ConfigError(
                    f"{f.name} is not for engine={self.engine}; leave it out, or choose the other."
                )


def short_name(dataset: str) -> str:
    """Return the name of a data set without its kind and path: `cifar10` for `parquet:/long/path/cifar10`."""
    kind, colon, path = dataset.partition(":")
    return (Path(path).expanduser().resolve().name or kind) if colon else kind


def _require_detector(name: str) -> None:
    # The import stands here because the command line builds its options from this module, and its help needs no numpy.
    from mlflow_dynamics.convergence import find_detector

    find_detector(name)


def _require_labels(labels: str) -> None:
    # Likewise: it needs torch.
    from mlflow_dynamics.training.data.labels import check_labels

    check_labels(labels)


_CHANGES_NOTHING: Final = frozenset({"data_dir", "device", "workers", "resume", "run_name"})
"""Parameters that change nothing in what is trained."""

_NOT_IN_TITLE: Final = _CHANGES_NOTHING | {"model", "dataset", "optimizer", "schedule", "seed"}
"""The last five are in every title."""

_CHOICES: Final = {
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "precision": PRECISIONS,
    "early_stopping": WARNING_MODES,
}
