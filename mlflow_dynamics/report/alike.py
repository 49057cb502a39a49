"""Which runs are comparable, and which of them repeat one training: one definition for all that a page pools."""

from __future__ import annotations

from typing import Final

import pandas as pd

from mlflow_dynamics.tracking.settings import MEANING

SETTINGS: Final = ("dataset", "model", "optimizer", "schedule")
"""Parameters of a run that say what was trained."""

MEASURED: Final = ("window", *MEANING)
"""How a run was measured: numbers of runs that differ in one of these are not compared. Windows of different length
have different bias; under another signal, protocol, estimator or recording a measure is another quantity."""

ALIKE: Final = (*SETTINGS, *MEASURED)
"""Runs that agree in all of these are taken for repetitions of one training (seeds)."""


def differing(frame: pd.DataFrame) -> list[str]:
    """Those of `MEASURED` in which the runs differ."""
    return [key for key in MEASURED if frame[key].nunique() > 1]


def described(frame: pd.DataFrame, keys: list[str]) -> pd.Series:
    """Of each run, what it has of `keys`, as "window 48, estimator dfa"; empty text without keys."""
    words = [
        [f"{key} {value}" for key, value in zip(keys, row, strict=True)] for row in frame[keys].to_numpy()
    ]
    return pd.Series([", ".join(one) for one in words], index=frame.index, dtype=object)
