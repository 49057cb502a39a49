"""What runs answer to the paper's three questions, in a sentence each: counts of what lies apart, never more."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from mlflow_dynamics.report.alike import ALIKE

LEVEL: Final = 0.95


def student_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The Student interval of the mean of (runs,) values; NaN for a single run."""
    if len(values) < 2:
        return np.nan, np.nan
    mean, error = float(values.mean()), float(stats.sem(values))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    return mean - half, mean + half


def apart(frame: pd.DataFrame, value: str, *, within: Sequence[str], between: Sequence[str]) -> list[bool]:
    """For each group of runs that agree in `within`: whether no two of its `between` groups' intervals overlap.

    Only `between` groups of two runs or more count, and only where there are at least two of them.
    """
    verdicts = []
    for _, group in frame.groupby(list(within)):
        repeated = [
            student_interval(one[value].to_numpy(dtype=np.float64))
            for _, one in group.groupby(list(between))
            if len(one) > 1
        ]
        if len(repeated) > 1:
            ordered = sorted(repeated)
            verdicts.append(all(high < low for (_, high), (low, _) in pairwise(ordered)))
    return verdicts


def tasks_apart(frame: pd.DataFrame) -> str:
    """Whether integration separates the data sets, of a frame as `comparison.gather` returns it."""
    within = [key for key in ALIKE if key != "dataset"]
    found = apart(frame, "integration", within=within, between=["dataset"])
    if not found:
        return "These runs cannot tell: nothing was trained several times on each of several data sets."
    return (
        f"The data sets' intervals lie apart in {sum(found)} of the {len(found)} trainings that were repeated on "
        "several of them."
    )


def warning_leads(frame: pd.DataFrame) -> str:
    """Whether the warning comes before the plateau, likewise."""
    lead = frame["lead_time"].dropna()
    if lead.empty:
        return "These runs cannot tell: none has both a warning and a plateau of validation accuracy."
    return (
        f"It came before in {int((lead > 0).sum())} of the {len(lead)} runs that have both; "
        f"the median lead is {lead.median():g} epochs."
    )


def styles_apart(frame: pd.DataFrame) -> str:
    """Whether integration and metastability separate optimizers and schedules, likewise."""
    style = ["optimizer", "schedule"]
    within = [key for key in ALIKE if key not in style]
    counts = {
        value: apart(frame, value, within=within, between=style) for value in ("integration", "metastability")
    }
    asked = len(counts["integration"])
    if not asked:
        return "These runs cannot tell: no model was trained several times in each of several styles on one data set."
    return (
        f"The styles' intervals lie apart by integration in {sum(counts['integration'])} and by metastability in "
        f"{sum(counts['metastability'])} of the {asked} pairs of data set and architecture with several repeated "
        "styles."
    )
