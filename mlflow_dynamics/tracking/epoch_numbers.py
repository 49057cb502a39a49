"""Finds the epoch of each logged value. We log with the epoch as step; a framework may log with its global step.

A recording leaves marks: metrics of ours that are logged when an epoch ends, with the epoch and the time. A value with
the step and time of a mark was logged with it, so its step is the epoch. For all other values of a metric, two
readings are tried: the step is the framework's global step, or the step is the epoch. A reading is accepted if the
times of the values do not contradict it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlflow_dynamics.tracking import names

MARKS: Final = (names.GLOBAL_STEP, names.CONVERGENCE_SIGNAL, names.LAYERS_DROPPED)
"""A run that we have recorded has at least one of these metrics in each epoch, or in each epoch from the first one that
was measured."""

Integers = NDArray[np.int64]


def epochs_of(points: pd.DataFrame) -> pd.Series:
    """Return the epoch of each point; missing if the meaning of the point's step is unknown.

    Args:
        points: run_id, key, step, timestamp and value of each point, including the points of `MARKS`.
    """
    marks = points[points["key"].isin(MARKS)]
    moment = ["run_id", "step", "timestamp"]
    ours = pd.MultiIndex.from_frame(points[moment]).isin(pd.MultiIndex.from_frame(marks[moment]))
    epochs = points["step"].astype("Int64").where(ours)
    ended = dict(tuple(marks.drop_duplicates(["run_id", "step"], keep="last").groupby("run_id")))
    clocks = dict(tuple(marks[marks["key"] == names.GLOBAL_STEP].groupby("run_id")))
    for (run_id, _), some in points[~ours].groupby(["run_id", "key"], sort=False):
        found = _by_some_clock(some, ended.get(run_id), clocks.get(run_id))
        if found is not None:
            epochs.loc[some.index] = found
    return epochs


def _by_some_clock(
    points: pd.DataFrame, ended: pd.DataFrame | None, clock: pd.DataFrame | None
) -> Integers | None:
    steps, times = points["step"].to_numpy(), points["timestamp"].to_numpy()
    if ended is None:  # not a recording of ours: steps from 0 or 1 without a gap are taken for epochs
        seen = np.unique(steps)
        return steps if seen[0] <= 1 and seen[-1] - seen[0] + 1 == len(seen) else None
    ended = ended.sort_values("step")
    known, when = ended["step"].to_numpy(), ended["timestamp"].to_numpy()
    if clock is not None:
        clock = clock.sort_values("step")
        numbers = np.append(clock["step"].to_numpy(), clock["step"].max() + 1)
        found = numbers[np.searchsorted(clock["value"].to_numpy(), steps)]
        after = np.append(when, np.iinfo(np.int64).max)[np.searchsorted(known, found, side="right")]
        if _logged_after_marks(found, times, known, when) and (times <= after).all():
            return found
    gap = np.diff(known).max(initial=1)
    if _logged_after_marks(steps, times, known, when) and steps.max() <= known[-1] + gap:
        return steps
    return None


def _logged_after_marks(epochs: Integers, times: Integers, known: Integers, when: Integers) -> bool:
    """Whether no value is older than the end of the epoch before its own epoch.

    Args:
        epochs, times: the epoch and time of each value.
        known, when: the epochs with a mark, ascending, and the time of each mark.
    """
    before = np.searchsorted(known, epochs) - 1
    return bool(((before < 0) | (times >= when[before])).all())
