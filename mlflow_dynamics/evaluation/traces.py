"""Reads the runs of an evaluation from a file or an experiment, and gives each as curves with its early warning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlflow_dynamics.convergence import ConvergenceMonitor, Schedule, WarningConfig
from mlflow_dynamics.convergence.plateau import PLATEAU_TOLERANCE, plateau_epoch
from mlflow_dynamics.convergence.schedule import SMOOTH, is_step
from mlflow_dynamics.errors import DataError
from mlflow_dynamics.pipeline import judge
from mlflow_dynamics.tracking import names
from mlflow_dynamics.tracking.query import load_metrics

Array = NDArray[np.float64]

CONFIGURATION: Final = ("dataset", "model", "schedule")
"""The columns that make up a configuration. A rule is tuned for a run on runs that differ from it in one of these."""

NEEDED: Final = (names.STABILITY, names.TRAIN_LOSS, names.VALIDATION_LOSS, names.VALIDATION_ACCURACY)
MANY_CLASSES: Final = 100


@dataclass(frozen=True, kw_only=True)
class Curves:
    """One finished run.

    Attributes:
        configuration: the run's data set, model and schedule.
        accuracy, validation_loss, training_loss: (epochs,) the validation accuracy and the losses.
        score: (epochs,) the early warning's statistic divided by its threshold; NaN in epochs without a statistic.
        warned: the epoch of the warning at its own threshold; None if there was none.
        plateau: the epoch from which validation accuracy is flat; None if it is never flat.
        tolerance: the deviation of accuracy, of 1, that still counts as flat.
    """

    configuration: tuple[str, ...]
    accuracy: Array
    validation_loss: Array
    training_loss: Array
    score: Array
    warned: int | None
    plateau: int | None
    tolerance: float


def read_traces(path: Path) -> pd.DataFrame:
    """Read a CSV file of epochs with the columns of `CONFIGURATION`, `seed`, `epoch` and the metrics.

    The columns `classes` and `run_id` are optional. Without `run_id`, each seed of a configuration is one run. Epochs
    that are marked as start-up (`dynamics/start_up`) are not judged.

    Raises:
        DataError: the file cannot be read or lacks a column, or a run has an epoch twice.
    """
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a CSV file of epochs: {error}") from error
    return _checked(frame, str(path))


def read_experiment(experiment: str, filter_string: str = "") -> pd.DataFrame:
    """Read the runs of an MLflow experiment, as `read_traces` reads a file.

    The runs must have dataset, model, schedule and seed as parameters.

    Args:
        experiment: the experiment's name.
        filter_string: a filter in MLflow's own search syntax.

    Raises:
        TrackingError: the experiment is unknown or cannot be read.
        DataError: the runs lack a metric, or there are none.
    """
    frame = load_metrics(
        experiment_names=experiment, filter_string=filter_string, params=(*CONFIGURATION, "seed")
    )
    frame = frame.dropna(subset=["epoch"])
    frame.columns = frame.columns.str.removeprefix("params.")
    return _checked(frame, f"experiment {experiment!r}")


def curves_of(frame: pd.DataFrame) -> list[tuple[Curves, str]]:
    """Return each run of the frame with its seed, ordered by configuration and seed."""
    found = []
    for key, run in frame.groupby(_one_run(frame), sort=True):
        configuration, seed = key[: len(CONFIGURATION)], key[len(CONFIGURATION)]
        run = run.sort_values("epoch")
        classes = run["classes"].iloc[0] if "classes" in run else 0
        tolerance = 0.01 if classes >= MANY_CLASSES else PLATEAU_TOLERANCE
        monitor = ConvergenceMonitor(WarningConfig(schedule=_schedule(str(configuration[-1]), run)))
        verdicts = [judge(monitor, int(row["epoch"]), row) for row in run.to_dict("records")]
        accuracy = run[names.VALIDATION_ACCURACY].to_numpy(dtype=np.float64)
        curves = Curves(
            configuration=tuple(map(str, configuration)),
            accuracy=accuracy,
            validation_loss=run[names.VALIDATION_LOSS].to_numpy(dtype=np.float64),
            training_loss=run[names.TRAIN_LOSS].to_numpy(dtype=np.float64),
            score=np.array([verdict.score for verdict in verdicts]),
            warned=monitor.converged_epoch,
            plateau=plateau_epoch(accuracy, tolerance=tolerance),
            tolerance=tolerance,
        )
        found.append((curves, str(seed)))
    return found


def _schedule(name: str, run: pd.DataFrame) -> Schedule:
    """Return the schedule that a training would have known in advance if it was planned as this run went."""
    drops: list[int] = []
    if name not in SMOOTH and names.LEARNING_RATE in run:
        rates = run[names.LEARNING_RATE].to_list()
        epochs = run["epoch"].to_list()
        drops = [int(epochs[i]) for i in range(1, len(rates)) if is_step(rates[i - 1], rates[i])]
    return Schedule(name=name, planned_epochs=int(run["epoch"].max()) + 1, drop_epochs=tuple(drops))


def _checked(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    missing = [column for column in (*CONFIGURATION, "seed", "epoch", *NEEDED) if column not in frame]
    if missing or frame.empty:
        lacking = f"lacks {', '.join(missing)}" if missing else "holds no epoch"
        raise DataError(
            f"{where} {lacking}; the evaluation needs the columns {', '.join((*CONFIGURATION, 'seed', 'epoch'))} and "
            f"the metrics {', '.join(NEEDED)}."
        )
    run = _one_run(frame)
    twice = frame[frame.duplicated([*run, "epoch"])]
    if len(twice):
        which = ", ".join(f"{column} {twice[column].iloc[0]}" for column in (*run, "epoch"))
        raise DataError(
            f"{where} has more than one row of {which}: rows of several runs would be joined to one; give each run its "
            "own run_id in a column of that name."
        )
    return frame


def _one_run(frame: pd.DataFrame) -> list[str]:
    """Return the columns that identify a run. Without run_id, two runs that differ in anything else look like one."""
    return [*CONFIGURATION, "seed", *(["run_id"] if "run_id" in frame else [])]
