"""How long a window is and when start-up ends, by the number of steps in an epoch; and volatility outside start-up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mlflow_dynamics.config import MIN_STEPS
from mlflow_dynamics.measures.stability import volatility
from mlflow_dynamics.records import Measures

EPOCHS: Final = 3
"""A window whose length follows the training holds so many epochs, within these bounds in steps:"""

LEAST_STEPS: Final = MIN_STEPS
MOST_STEPS: Final = 512

FIRST_STEPS: Final = 64
"""At most so many first steps are left out, as the transient of fresh weights. In five small trainings on real images,
S from windows of 32 to 240 steps was up to three times its later level for windows that begin at step 0, and had come
to that level for windows that begin at step 40 to 56."""

START_UP: Final = 5
"""If epochs are short, the number of first steps left out is such that start-up ends after this many epochs, but at
least the first epoch is left out."""

EPOCHS_THAT_DECIDE: Final = 2
"""The longest of so many first epochs counts as a whole epoch: the first may be the rest of an interrupted epoch."""


CHANGED: Final = 1.25
"""An epoch longer or shorter by this factor begins another start-up. Neighbouring windows then overlap more or less
than before, so S moves more or less even if no layer changes: with epochs of 80, 40, 20 steps the warning fired in 38
of 100 trainings in which nothing changed."""

LEAST_JUDGED: Final = 8
"""Start-up never ends if epochs have fewer steps than this: their windows overlap so much that the warning fires in
22 % of trainings in which nothing changes (at one step an epoch)."""


@dataclass(frozen=True)
class WindowRule:
    """The windows of one training.

    Attributes:
        length: the number of steps in a window.
        left_out: the number of first steps of the training that no window after start-up holds.
    """

    length: int
    left_out: int

    def starting_up(self, steps: int) -> bool:
        """Whether the window that ends after `steps` steps is not full, or holds one of the `left_out` first steps."""
        return steps < self.left_out + self.length


def window_rule(first_epochs: Sequence[int], length: int | None = None) -> WindowRule:
    """The windows of a training whose first epochs have so many steps.

    The rule does not change from the second epoch on. After the first epoch alone the window may be shorter than later,
    but start-up is not over then with either window.

    Args:
        first_epochs: the number of steps in each of the first epochs that have any; at least one epoch.
        length: the number of steps in a window; None follows the training.

    Examples:
        >>> window_rule([8, 8]), window_rule([79]), window_rule([5000])
        (WindowRule(length=32, left_out=8), WindowRule(length=237, left_out=64), WindowRule(length=512, left_out=64))
        >>> window_rule([15, 15], 512).starting_up(35 * 15), window_rule([15, 15], 512).starting_up(36 * 15)
        (True, False)
    """
    epoch = max(first_epochs[:EPOCHS_THAT_DECIDE])
    if length is None:
        length = min(max(EPOCHS * epoch, LEAST_STEPS), MOST_STEPS)
    return WindowRule(length=length, left_out=min(FIRST_STEPS, max(epoch, START_UP * epoch - length)))


def changed(steps: int, epoch: int) -> bool:
    """Whether an epoch of so many steps is of another length than those of `epoch` steps.

    Examples:
        >>> changed(79, 80), changed(40, 80), changed(160, 80)
        (False, True, True)
    """
    return not epoch / CHANGED <= steps <= epoch * CHANGED


def volatility_of(epochs: Sequence[Measures], *, window: int) -> float:
    """`volatility` of the last `window` epochs; NaN if there are fewer, or if one of them belongs to start-up."""
    last = epochs[-window:]
    if len(last) < window or any(measures.start_up for measures in last):
        return math.nan
    return volatility([measures.stability for measures in last], window=window)
