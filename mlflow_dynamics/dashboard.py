"""Shows a watched run on a few lines of a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from mlflow_dynamics.text import printable
from mlflow_dynamics.tracking import names
from mlflow_dynamics.watching import WatchedEpoch

SHOWN: Final = {
    names.TRAIN_LOSS: "training loss",
    names.VALIDATION_ACCURACY: "validation accuracy",
    names.INTEGRATION: "integration",
    names.METASTABILITY: "metastability",
    names.STABILITY: "stability",
    names.VOLATILITY: "volatility",
}

_BARS: Final = "▁▂▃▄▅▆▇█"
_NAME: Final = max(map(len, SHOWN.values()))
_VALUE: Final = 9


def dashboard(epochs: Sequence[WatchedEpoch], *, width: int) -> list[str]:
    """Return lines that show the last epochs of a run: the last value and the curve of each metric, and the verdict.

    A line has at most `width` characters, or 31 if `width` is less. A metric without a value has no line, and an epoch
    without a value is a gap in the curve.
    """
    last = epochs[-1]
    lines = [f"epoch {last.verdict.epoch}"]
    for key, name in SHOWN.items():
        values = [epoch.metrics.get(key, math.nan) for epoch in epochs]
        if any(map(math.isfinite, values)):
            curve = curve_of(values[-max(width - _NAME - _VALUE - 2, 1) :])
            lines.append(f"{name:<{_NAME}} {values[-1]:{_VALUE}.4g} {curve}")
    lines.append(printable(last.verdict.message.partition(": ")[2], limit=width))
    return lines


def curve_of(values: Sequence[float]) -> str:
    """Return a curve with a character for each value: a bar, or a space if the value is not finite."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return " " * len(values)
    low, spread = min(finite), (max(finite) - min(finite)) or 1.0
    steps = len(_BARS) - 1
    return "".join(
        _BARS[round(steps * (value - low) / spread)] if math.isfinite(value) else " " for value in values
    )
