"""Keeps the checkpoints from which trainings can be carried on: a file for each run that has not ended."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from mlflow_dynamics.config import AUTO
from mlflow_dynamics.errors import ConfigError
from mlflow_dynamics.tracking.folder import Folder
from mlflow_dynamics.training.parameters import TrainingConfig
from mlflow_dynamics.training.weights import UNREADABLE

logger = logging.getLogger(__name__)

CHECKPOINTS: Final = Path(".mlflow_dynamics") / "checkpoints"

TRAINED: Final = "trained"
"""The entry of a checkpoint that holds the parameters of its training."""


def open_checkpoints() -> None:
    """Make the folder of checkpoints.

    Raises:
        ConfigError: the folder is a link, which a checkout may have brought, or others can write to it.
    """
    try:
        with Folder.open(CHECKPOINTS.parent, create=True).at(CHECKPOINTS.name, create=True):
            return
    except OSError as error:
        raise ConfigError(
            f"Checkpoints cannot be kept in {str(CHECKPOINTS)!r} ({error.filename}: {error.strerror}); remove that, "
            "or train in another folder."
        ) from error


def has_checkpoint(run_id: str) -> bool:
    """Whether the training of this run can be carried on from a checkpoint in this folder."""
    return checkpoint_path(run_id).is_file()


def checkpoint_path(run_id: str) -> Path:
    """Return the file that holds a run's state after the last whole epoch."""
    return CHECKPOINTS / f"{run_id}.pt"


def best_path(run_id: str) -> Path:
    """Return the file that holds a run's best weights."""
    return checkpoint_path(run_id).with_suffix(".best")


def how_to_go_on(run_id: str, config: TrainingConfig, *, same_command: bool) -> str:
    """Return a sentence that says how to carry on this interrupted run."""
    if not has_checkpoint(run_id):
        return "It was interrupted before an epoch had ended: it can only begin anew."
    if same_command:
        return "Give the same command again: what is trained is kept, and this training goes on after its last epoch."
    return f"It goes on after its last whole epoch with: {replace(config, resume=run_id).command}"


def run_to_go_on_in(config: TrainingConfig) -> str | None:
    """Return the run that `config.resume` names, which has a checkpoint here; None if a new training is to begin.

    For `auto` this is the run of the last training with the same parameters that was interrupted in this folder.

    Raises:
        ConfigError: the named run has no checkpoint here or a damaged one, or was trained with other parameters.
    """
    if config.resume is None:
        return None
    files = sorted(CHECKPOINTS.glob("*.pt"), key=lambda path: path.stat().st_mtime, reverse=True)
    if config.resume == AUTO:
        return next((path.stem for path in files if _is_of(path, config)), None)
    known = sorted(path.stem for path in files)
    if config.resume not in known:
        raise ConfigError(
            f"resume={config.resume!r} has no checkpoint in {str(CHECKPOINTS)!r} (it finished, never ended an epoch, "
            f"or trained elsewhere); runs that can be resumed here: {', '.join(known) or 'none'}."
        )
    before, now = _trained(checkpoint_path(config.resume)), config.trained()
    if before is not None and before != now:
        other = [
            f"{key}={before.get(key)} (not {value})" for key, value in now.items() if before.get(key) != value
        ]
        raise ConfigError(
            f"resume={config.resume!r} is a training with {', '.join(other)}; give the parameters that it had, or "
            "train anew, without resume."
        )
    return config.resume


def read_checkpoint(
    path: Path, *, device: torch.device | str = "cpu", mapped: bool = False
) -> dict[str, Any]:
    """Read a checkpoint that `Trainer.save` has written. With `mapped`, the weights stay on disk until they are used.

    Raises:
        ConfigError: the checkpoint is damaged.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True, mmap=mapped)
    except UNREADABLE as error:
        raise ConfigError(
            f"The checkpoint {str(path)!r} is damaged; start the training anew, without resume."
        ) from error
    return state


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically.

    Raises:
        KeyboardInterrupt: the training was interrupted, and the file is as it was.
    """
    try:
        with Folder.open(path.parent, create=True).replacing(path.name) as file:
            torch.save(dict(state), file)
    except RuntimeError as error:
        # torch ends its archive after an interrupt too, and raises an error of its own because half of it is missing.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise


def keep_for(run_id: str, earlier: str) -> None:
    """Give the checkpoint files of run `earlier` the name of `run_id`.

    The names differ if the run had only a local name when it was interrupted.
    """
    if run_id == earlier:
        return
    with Folder.open(CHECKPOINTS.parent).at(CHECKPOINTS.name) as folder:
        for path_of in (checkpoint_path, best_path):
            if folder.holds(path_of(earlier).name):
                folder.move(path_of(earlier).name, folder, path_of(run_id).name)


def _is_of(path: Path, config: TrainingConfig) -> bool:
    try:
        return _trained(path) == config.trained()
    except ConfigError as error:
        logger.warning("%s", error)
        return False


def _trained(path: Path) -> Mapping[str, str] | None:
    """Return the parameters of a checkpoint's training; None if an earlier release has written the checkpoint."""
    found: Mapping[str, str] | None = read_checkpoint(path, mapped=True).get(TRAINED)
    return found
