"""The checkpoints from which trainings can be carried on: a file for each run that has not ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from mlflow_dynamics.errors import ConfigError
from mlflow_dynamics.tracking.folder import Folder
from mlflow_dynamics.training.parameters import TrainingConfig

CHECKPOINTS: Final = Path(".mlflow_dynamics") / "checkpoints"


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


def how_to_go_on(config: TrainingConfig, run_id: str, *, in_grid: bool) -> str:
    """Return a sentence that says how to carry on this interrupted run."""
    if in_grid:
        return "Give the same command again: what is trained is kept, and this training goes on after its last epoch."
    here = [run for run in (run_id, config.resume) if run is not None and has_checkpoint(run)]
    if not here:
        return "It was interrupted before an epoch had ended: it can only begin anew."
    return f"It goes on after its last whole epoch with: {replace(config, resume=here[0]).command}"


def checkpoint_path(run_id: str) -> Path:
    """Return the file that holds a run's state after the last whole epoch."""
    return CHECKPOINTS / f"{run_id}.pt"


def best_path(run_id: str) -> Path:
    """Return the file that holds a run's best weights."""
    return checkpoint_path(run_id).with_suffix(".best")


def checkpoint_of(run_id: str) -> Path:
    """Return the checkpoint of a run that is to be resumed.

    Raises:
        ConfigError: there is no checkpoint of this run.
    """
    known = sorted(path.stem for path in CHECKPOINTS.glob("*.pt"))
    if run_id not in known:
        raise ConfigError(
            f"resume={run_id!r} has no checkpoint in {str(CHECKPOINTS)!r} (it finished, never ended an epoch, or "
            f"trained elsewhere); runs that can be resumed here: {', '.join(known) or 'none'}."
        )
    return checkpoint_path(run_id)
