"""The runs of an evaluation: read from a file or an experiment, each as curves with the warning it would have had."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlflow_dynamics.convergence import ConvergenceMonitor, Schedule
from mlflow_dynamics.convergence.plateau import PLATEAU_TOLERANCE, plateau_epoch
from mlflow_dynamics.convergence.schedule import SMOOTH, is_step
from mlflow_dynamics.errors import DataError
from mlflow_dynamics.tracking import names
from mlflow_dynamics.tracking.query import load_metrics

Array = NDArray[np.float64]

CONFIGURATION: Final = ("dataset", "model", "schedule")
"""Runs that agree in these differ by their seed alone."""

NEEDED: Final = (names.STABILITY, names.TRAIN_LOSS, names.VALIDATION_LOSS, names.VALIDATION_ACCURACY)
MANY_CLASSES: Final = 100


@dataclass(frozen=True, kw_only=True)
class Curves:
    """One finished run.

    Attributes:
        configuration: its data set, model and schedule.
        accuracy, validation_loss, training_loss: (epochs,).
        score: (epochs,) the early warning's statistic over its threshold, NaN where there is none.
        warned: the epoch of the warning at its own threshold, or None.
        plateau: the epoch from which validation accuracy is flat, or None.
        tolerance: what counts as flat, of an accuracy in [0, 1].
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
    """A CSV file of epochs: the columns of `CONFIGURATION`, seed, epoch, metrics, and optionally `classes`.

    Raises:
        DataError: there is no such file, or it lacks a column.
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
    frame = load_metrics(experiment=experiment, filter_string=filter_string, params=(*CONFIGURATION, "seed"))
    frame.columns = frame.columns.str.removeprefix("params.")
    return _checked(frame, f"experiment {experiment!r}")


def curves_of(frame: pd.DataFrame) -> list[tuple[Curves, str]]:
    """Each run of the frame with its seed, ordered by configuration and seed."""
    found = []
    for (*configuration, seed), run in frame.groupby([*CONFIGURATION, "seed"], sort=True):
        run = run.sort_values("epoch")
        classes = run["classes"].iloc[0] if "classes" in run else 0
        tolerance = 0.01 if classes >= MANY_CLASSES else PLATEAU_TOLERANCE
        monitor = ConvergenceMonitor(schedule=_schedule(str(configuration[-1]), run))
        verdicts = [
            monitor.update(int(epoch), stability, loss=loss)
            for epoch, stability, loss in zip(
                run["epoch"], run[names.STABILITY], run[names.TRAIN_LOSS], strict=True
            )
        ]
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
    return frame
