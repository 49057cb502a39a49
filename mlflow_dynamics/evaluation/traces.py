"""The runs of an evaluation: read from a file or an experiment, each as curves with the warning it would have had."""

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
"""Runs that agree in these are of one configuration."""

NEEDED: Final = (names.STABILITY, names.TRAIN_LOSS, names.VALIDATION_LOSS, names.VALIDATION_ACCURACY)
MANY_CLASSES: Final = 100


@dataclass(frozen=True, kw_only=True)
class Curves:
    """One finished run.

    Attributes:
        configuration: its data set, model and schedule.
        accuracy, validation_loss, training_loss: (epochs,).
        rate: (epochs,) the learning rate over its highest so far, 1 where none was logged.
        score: (epochs,) the early warning's statistic over its threshold, NaN where there is none.
        warned: the epoch of the warning at its own threshold, or None.
        plateau: the epoch from which validation accuracy is flat, or None.
        tolerance: what counts as flat, of an accuracy in [0, 1].
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
        """(epochs,) points by which the best accuracy of the whole run exceeds the best so far."""
        best = 100 * np.fmax.accumulate(self.accuracy)
        return np.asarray(best[-1] - best)


def read_traces(path: Path) -> pd.DataFrame:
    """A CSV file of epochs: the columns of `CONFIGURATION`, seed, epoch, metrics, perhaps `classes` and `run_id`.

    Epochs marked as start-up (`dynamics/details/start_up`) are not judged. Without `run_id` each seed of a
    configuration is a run.

    Raises:
        DataError: there is no such file, it lacks a column, or a run has an epoch twice.
    """
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a CSV file of epochs: {error}") from error
    return _checked(frame, str(path))


def read_experiment(experiment: str, filter_string: str = "") -> pd.DataFrame:
    """The same from an MLflow experiment's runs, which log dataset, model, schedule and seed as parameters.

    Raises:
        TrackingError: the experiment is unknown or cannot be read.
        DataError: its runs lack a metric.
    """
    frame = load_metrics(
        experiment_names=experiment, filter_string=filter_string, params=(*CONFIGURATION, "seed")
    )
    frame = frame.dropna(subset=["epoch"])
    frame.columns = frame.columns.str.removeprefix("params.")
    return _checked(frame, f"experiment {experiment!r}")


def curves_of(frame: pd.DataFrame) -> list[tuple[Curves, str]]:
    """Each run of the frame with its seed, ordered by configuration and seed."""
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
    """(runs,) the cluster of each run, from 0: runs of one configuration, and of all that share their first epoch.

    Up to the first step of the rate a `step` and a `constant` schedule of one seed are one training, and what is one
    training says a thing once. That two others agree in both losses of an epoch by chance is as good as impossible.
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
    """What a training that was planned as this run went would have known of its learning rate."""
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
    """The columns whose values are those of one run alone: seeds repeat where anything else was varied."""
    return [*CONFIGURATION, "seed", *(["run_id"] if "run_id" in frame else [])]
