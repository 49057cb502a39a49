"""The epoch of each logged value: what we log has it as its step, a framework may log by its global step.

A recording leaves marks: metrics of ours, logged as each epoch ended, with the time of that moment. What has step and
time of a mark was logged with it. For the rest of a metric a clock is believed where the times do not contradict it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlflow_dynamics.tracking import names

MARKS: Final = (names.GLOBAL_STEP, names.CONVERGENCE_SIGNAL, names.LAYERS_DROPPED)
"""Of these a run that we have recorded has at least one in each epoch, or in each from the first measured one on."""

Integers = NDArray[np.int64]


def epochs_of(points: pd.DataFrame) -> pd.Series:
    """The epoch of each point; missing where the clock by which it was logged is not known.

    Args:
        points: run_id, key, step, timestamp and value, with the points of `MARKS`.
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
    if ended is None:  # not a recording of ours: epochs are what is logged one after the other
        seen = np.unique(steps)
        return steps if seen[0] <= 1 and seen[-1] - seen[0] + 1 == len(seen) else None
    ended = ended.sort_values("step")
    known, when = ended["step"].to_numpy(), ended["timestamp"].to_numpy()
    if clock is not None:
        clock = clock.sort_values("step")
        numbers = np.append(clock["step"].to_numpy(), clock["step"].max() + 1)
        found = numbers[np.searchsorted(clock["value"].to_numpy(), steps)]
        after = np.append(when, np.iinfo(np.int64).max)[np.searchsorted(known, found, side="right")]
        if _begun(found, times, known, when) and (times <= after).all():
            return found
    gap = np.diff(known).max(initial=1)
    if _begun(steps, times, known, when) and steps.max() <= known[-1] + gap:
        return steps
    return None


def _begun(epochs: Integers, times: Integers, known: Integers, when: Integers) -> bool:
    """Whether no value is older than the end of the epoch before its own."""
    before = np.searchsorted(known, epochs) - 1
    return bool(((before < 0) | (times >= when[before])).all())
