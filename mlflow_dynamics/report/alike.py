"""Defines which runs may be compared, and which runs repeat one training. All parts of a page use this definition."""

from __future__ import annotations

from typing import Final

import pandas as pd

from mlflow_dynamics.tracking.settings import MEANING

SETTINGS: Final = ("dataset", "model", "optimizer", "schedule")
"""The parameters of a run that say what was trained."""

MEASURED: Final = ("window", *MEANING)
"""The settings that say how a run was measured. Numbers of runs that differ in one of these settings are not compared:
windows of different length have different bias, and a measure of another signal, protocol, estimator or recording is
another quantity."""

ALIKE: Final = (*SETTINGS, *MEASURED)
"""Runs that agree in all of these settings are taken for repetitions of one training with other seeds."""


def differing(frame: pd.DataFrame) -> list[str]:
    """Return the settings of `MEASURED` in which the runs differ."""
    return [key for key in MEASURED if frame[key].nunique() > 1]


def described(frame: pd.DataFrame, keys: list[str]) -> pd.Series:
    """Return for each run the values of `keys` as text: "window 48, estimator dfa". Without keys, the text is empty."""
    words = [
        [f"{key} {value}" for key, value in zip(keys, row, strict=True)] for row in frame[keys].to_numpy()
    ]
    return pd.Series([", ".join(one) for one in words], index=frame.index, dtype=object)
