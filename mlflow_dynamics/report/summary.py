"""What happened in a run, in three lines."""

from __future__ import annotations

from mlflow_dynamics.report.history import RunHistory
from mlflow_dynamics.tracking import names


def summary(history: RunHistory) -> list[str]:
    """What happened, in three lines: plateau, warning and what else was raised, final numbers."""
    plateau, warning = history.plateau, history.converged_epoch
    if plateau is not None:
        accuracy = f"flat (within half a point of its best) from epoch {plateau}"
    elif names.VALIDATION_ACCURACY in history.frame:
        accuracy = "not flat: it never stays within half a point of its best"
    else:
        accuracy = "not logged"
    raised = (
        "The early warning did not fire."
        if warning is None
        else f"The early warning fired at epoch {warning}."
    )
    if history.unsettled_epoch is not None:
        raised += f" The volatility of stability had risen at epoch {history.unsettled_epoch}."
    if history.diverging_epoch is not None:
        raised += f" Training diverged at epoch {history.diverging_epoch}."
    lines = [f"Validation accuracy is {accuracy}.", raised]
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
