"""Answers each of the paper's three questions in a sentence that counts comparisons and claims no more."""

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
    """Return the 95 % Student interval of the mean of (runs,) values. Both ends are NaN for a single run."""
    if len(values) < 2:
        return np.nan, np.nan
    mean, error = float(values.mean()), float(stats.sem(values))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    return mean - half, mean + half


def apart(frame: pd.DataFrame, value: str, *, within: Sequence[str], between: Sequence[str]) -> list[bool]:
    """Return, for each group of runs that agree in `within`, whether its parts lie apart.

    A part holds the runs of a group that agree in `between`. The parts lie apart if no two of their Student intervals
    overlap. Parts of a single run do not count, and groups of fewer than two parts are left out.

    Args:
        frame: the runs, as `comparison.gather` returns them.
        value: the column of which intervals are taken.
        within: the columns whose values define the groups.
        between: the columns whose values define the parts.
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
    """Say in how many trainings integration separates the data sets. `frame` is as `comparison.gather` returns it."""
    within = [key for key in ALIKE if key != "dataset"]
    found = apart(frame, "integration", within=within, between=["dataset"])
    if not found:
        return "These runs cannot tell: nothing was trained several times on each of several data sets."
    return (
        f"The data sets' intervals lie apart in {sum(found)} of the {len(found)} trainings that were repeated on "
        "several of them."
    )


def warning_leads(frame: pd.DataFrame) -> str:
    """Say in how many runs the warning comes before the plateau. `frame` is as `comparison.gather` returns it."""
    lead = frame["lead_time"].dropna()
    if lead.empty:
        return "These runs cannot tell: none has both a warning and a plateau of validation accuracy."
    return (
        f"It came before in {int((lead > 0).sum())} of the {len(lead)} runs that have both; "
        f"the median lead is {lead.median():g} epochs."
    )


def styles_apart(frame: pd.DataFrame) -> str:
    """Say how often the measures separate optimizers and schedules. `frame` is as `comparison.gather` returns it."""
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
