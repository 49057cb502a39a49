"""Where a training can be carried on: a file for each run that has not ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from mlflow_dynamics.errors import ConfigError
from mlflow_dynamics.tracking.folder import Folder
from mlflow_dynamics.training.parameters import TrainingConfig

CHECKPOINTS: Final = Path(".mlflow_dynamics") / "checkpoints"


def open_checkpoints() -> None:
    """Make the folder of checkpoints; ConfigError where a checkout has brought a link, or others can write."""
    try:
        with Folder.open(CHECKPOINTS.parent, create=True).at(CHECKPOINTS.name, create=True):
            return
    except OSError as error:
        raise ConfigError(
            f"Checkpoints cannot be kept in {str(CHECKPOINTS)!r} ({error.filename}: {error.strerror}); remove that, "
            "or train in another folder."
        ) from error


def has_checkpoint(run_id: str) -> bool:
    """Whether a training of this run can be carried on from here."""
    return checkpoint_path(run_id).is_file()


def how_to_go_on(config: TrainingConfig, run_id: str, *, in_grid: bool) -> str:
    """What to do after this run was interrupted."""
    if in_grid:
        return "Give the same command again: what is trained is kept, and this training goes on after its last epoch."
    here = [run for run in (run_id, config.resume) if run is not None and has_checkpoint(run)]
    if not here:
        return "It was interrupted before an epoch had ended: it can only begin anew."
    return f"It goes on after its last whole epoch with: {replace(config, resume=here[0]).command}"


def checkpoint_path(run_id: str) -> Path:
    """Where a run's last whole epoch is kept."""
    return CHECKPOINTS / f"{run_id}.pt"


def best_path(run_id: str) -> Path:
    """Where its best weights are kept."""
    return checkpoint_path(run_id).with_suffix(".best")


def checkpoint_of(run_id: str) -> Path:
    """Where the last whole epoch of a run lies that is to be resumed; ConfigError where there is none."""
    known = sorted(path.stem for path in CHECKPOINTS.glob("*.pt"))
    if run_id not in known:
        raise ConfigError(
            f"resume={run_id!r} has no checkpoint in {str(CHECKPOINTS)!r} (it finished, never ended an epoch, or "
            f"trained elsewhere); runs that can be resumed here: {', '.join(known) or 'none'}."
        )
    return checkpoint_path(run_id)
