"""See how a network's layers move together while it trains: dynamical measures as MLflow metrics.

The public names are resolved on first use, so that importing this package loads neither torch nor mlflow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

__version__ = "0.1.0"

_HOME: Final = {
    "ConvergenceMonitor": "mlflow_dynamics.convergence",
    "MeasureConfig": "mlflow_dynamics.config",
    "RecordingConfig": "mlflow_dynamics.config",
    "autolog": "mlflow_dynamics.autologging",
    "load_activations": "mlflow_dynamics.tracking",
    "load_metrics": "mlflow_dynamics.tracking",
    "search_runs": "mlflow_dynamics.tracking",
    "track": "mlflow_dynamics.session",
}
_SUBMODULES: Final = ("errors", "measures")

__all__ = [
    "ConvergenceMonitor",
    "MeasureConfig",
    "RecordingConfig",
    "autolog",
    "errors",
    "load_activations",
    "load_metrics",
    "measures",
    "search_runs",
    "track",
]

if TYPE_CHECKING:
    from mlflow_dynamics import errors, measures
    from mlflow_dynamics.autologging import autolog
    from mlflow_dynamics.config import MeasureConfig, RecordingConfig
    from mlflow_dynamics.convergence import ConvergenceMonitor
    from mlflow_dynamics.session import track
    from mlflow_dynamics.tracking import load_activations, load_metrics, search_runs


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"mlflow_dynamics.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'mlflow_dynamics' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
