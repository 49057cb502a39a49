"""Reads the runs of an evaluation from a file or an experiment, and computes the warning that each would have had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from mlflow_dynamics.convergence import ConvergenceMonitor, Schedule, WarningConfig
from mlflow_dynamics.convergence.plateau import PLATEAU_TOLERANCE, plateau_epoch
from mlflow_dynamics.convergence.schedule import SMOOTH, is_step
from mlflow_dynamics.errors import DataError
from mlflow_dynamics.pipeline import judge
from mlflow_dynamics.tracking import names
from mlflow_dynamics.tracking.query import load_metrics

Array = NDArray[np.float64]

CONFIGURATION: Final = ("dataset", "model", "schedule")
"""Runs that agree in these columns are of one configuration."""

NEEDED: Final = (names.STABILITY, names.TRAIN_LOSS, names.VALIDATION_LOSS, names.VALIDATION_ACCURACY)
MANY_CLASSES: Final = 100


@dataclass(frozen=True, kw_only=True)
class Curves:
    """The curves of one finished run.

    Attributes:
        configuration: the data set, the model and the schedule.
        accuracy, validation_loss, training_loss: (epochs,).
        rate: (epochs,) the learning rate divided by its highest value so far; 1 if no rate was logged.
        score: (epochs,) the early warning's statistic divided by its threshold; NaN in epochs without a statistic.
        warned: the epoch at which the warning fires at its own threshold, or None.
        plateau: the epoch from which validation accuracy is flat, or None.
        tolerance: the difference of accuracies in [0, 1] that counts as flat.
    """

    configuration: tuple[str, ...]
    accuracy: Array
    validation_loss: Array
    training_loss: Array
    rate: Array
    score: Array
    warned: int | None
    plateau: int | None
    tolerance: float

    @cached_property
    def remaining_gain(self) -> Array:
        """(epochs,): by how many points the best accuracy of the whole run exceeds the best accuracy so far."""
        best = 100 * np.fmax.accumulate(self.accuracy)
        return np.asarray(best[-1] - best)


def read_traces(path: Path) -> pd.DataFrame:
    """Read a CSV file of epochs: the columns of `CONFIGURATION`, seed, epoch, metrics, perhaps `classes` and `run_id`.

    Epochs that are marked as start-up (`dynamics/details/start_up`) are not judged. Without a column `run_id`, each
    seed of a configuration is a run.

    Raises:
        DataError: the file does not exist or lacks a column, or a run has an epoch twice.
    """
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a CSV file of epochs: {error}") from error
    return _checked(frame, str(path))


def read_experiment(experiment: str, filter_string: str = "") -> pd.DataFrame:
    """Return the frame of `read_traces` from the runs of an MLflow experiment.

    The runs must have logged dataset, model, schedule and seed as parameters.

    Raises:
        TrackingError: the experiment is unknown or cannot be read.
        DataError: the runs of the experiment lack a metric.
    """
    frame = load_metrics(
        experiment_names=experiment, filter_string=filter_string, params=(*CONFIGURATION, "seed")
    )
    frame = frame.dropna(subset=["epoch"])
    frame.columns = frame.columns.str.removeprefix("params.")
    return _checked(frame, f"experiment {experiment!r}")


def curves_of(frame: pd.DataFrame) -> list[tuple[Curves, str]]:
    """Return (curves, seed) of each run in the frame, in the order of configuration and seed."""
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
            rate=_relative_rate(run),
            score=np.array([verdict.score for verdict in verdicts]),
            warned=monitor.converged_epoch,
            plateau=plateau_epoch(accuracy, tolerance=tolerance),
            tolerance=tolerance,
        )
        found.append((curves, str(seed)))
    return found


def clusters_of(runs: Sequence[Curves]) -> NDArray[np.int64]:
    """Return (runs,): the number of each run's cluster, from 0.

    Two runs are in one cluster if they have one configuration or the same losses in their first epoch, directly or by
    way of other runs. Runs of one seed under a `step` and a `constant` schedule are one training until the first step
    of the rate, so they must not count as two. Other runs as good as never agree in both losses of an epoch.
    """
    configurations = [run.configuration for run in runs]
    starts = [(run.training_loss[0], run.validation_loss[0]) for run in runs]
    joined = [
        [configurations[i] == configurations[k] or starts[i] == starts[k] for k in range(len(runs))]
        for i in range(len(runs))
    ]
    _, cluster = connected_components(np.array(joined), directed=False)
    return cluster.astype(np.int64)


def _relative_rate(run: pd.DataFrame) -> Array:
    if names.LEARNING_RATE not in run:
        return np.ones(len(run))
    rate = run[names.LEARNING_RATE].to_numpy(dtype=np.float64)
    return np.nan_to_num(rate / np.fmax.accumulate(rate), nan=1.0)


def _schedule(name: str, run: pd.DataFrame) -> Schedule:
    """Return the schedule that a run would have announced, if it was planned as it went."""
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
    """Return the columns that identify a run. `run_id` is one, because seeds repeat if other settings were varied."""
    return [*CONFIGURATION, "seed", *(["run_id"] if "run_id" in frame else [])]
