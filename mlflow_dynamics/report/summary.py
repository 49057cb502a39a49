"""Says in three lines what happened in a run."""

from __future__ import annotations

from collections.abc import Sequence

from mlflow_dynamics.report.history import RunHistory
from mlflow_dynamics.report.verdict import verdict
from mlflow_dynamics.tracking import names


def summary(history: RunHistory) -> list[str]:
    """Return three lines: the verdict on the run; the warning, risen volatility and start-up; the last numbers."""
    raised = _warning(history)
    if history.unsettled_epoch is not None:
        raised += f" The volatility of stability had risen at epoch {history.unsettled_epoch}."
    if history.start_up:
        told = ", ".join(map(_span, spans(history.start_up)))
        raised += f" Start-up, from which no measure is judged or compared: {told}."
    lines = [verdict(history), raised]
    last = history.metrics[-1] if history.metrics else {}
    shown = {
        "validation accuracy": names.VALIDATION_ACCURACY,
        "integration": names.INTEGRATION,
        "metastability": names.METASTABILITY,
        "stability": names.STABILITY,
        "volatility": names.VOLATILITY,
    }
    numbers = ", ".join(f"{name} {last[key]:.3f}" for name, key in shown.items() if key in last)
    lines.append(f"After epoch {last.get('epoch', 0):.0f}: {numbers or 'nothing measured'}.")
    return lines


def _warning(history: RunHistory) -> str:
    if history.converged_epoch is not None:
        return f"The early warning fired at epoch {history.converged_epoch}."
    if any(names.CONVERGENCE_SCORE in row for row in history.metrics):
        return f"The early warning {'has not fired so far' if history.running else 'did not fire'}."
    if any(names.CONVERGENCE_SIGNAL in row for row in history.metrics):
        could = (
            "has judged no epoch so far" if history.running else "could not fire: no epoch could be judged"
        )
        return f"The early warning {could}."
    return "The early warning was off."


def spans(epochs: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first and the last epoch of each stretch of consecutive epochs."""
    firsts = [one for one in epochs if one - 1 not in epochs]
    lasts = [one for one in epochs if one + 1 not in epochs]
    return list(zip(firsts, lasts, strict=True))


def _span(run: tuple[int, int]) -> str:
    first, last = run
    return f"epoch {first}" if first == last else f"epochs {first} to {last}"
