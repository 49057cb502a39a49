"""What happened in a run, in three sentences."""

from __future__ import annotations

from mlflow_dynamics.report.history import RunHistory
from mlflow_dynamics.tracking import names


def summary(history: RunHistory) -> list[str]:
    """What happened, in three sentences: plateau, warning, final numbers."""
    plateau, warning = history.plateau, history.converged_epoch
    lines = [
        "Validation accuracy is not logged."
        if plateau is None
        else f"Validation accuracy is flat (within half a point of its best) from epoch {plateau}.",
        "The early warning did not fire."
        if warning is None
        else f"The early warning fired at epoch {warning}.",
    ]
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
