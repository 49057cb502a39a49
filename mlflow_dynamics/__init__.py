"""See how a network's layers move together while it trains: dynamical measures as MLflow metrics.

The public names are resolved on first use, so that importing this package loads neither torch nor mlflow.
"""

from __future__ import annotations

import functools
import importlib
import logging
from typing import TYPE_CHECKING, Any, Final

__version__ = "0.2.0"

_HOME: Final = {
    "ConvergenceMonitor": "mlflow_dynamics.convergence",
    "Event": "mlflow_dynamics.alerts",
    "MeasureConfig": "mlflow_dynamics.config",
    "RecordingConfig": "mlflow_dynamics.config",
    "Schedule": "mlflow_dynamics.convergence",
    "Tracker": "mlflow_dynamics.tracker",
    "Verdict": "mlflow_dynamics.convergence",
    "WarningConfig": "mlflow_dynamics.convergence",
    "autolog": "mlflow_dynamics.autologging",
    "load_activations": "mlflow_dynamics.tracking",
    "load_metrics": "mlflow_dynamics.tracking",
    "recompute": "mlflow_dynamics.recomputing",
    "search_runs": "mlflow_dynamics.tracking",
    "sync": "mlflow_dynamics.tracking.sync",
    "track": "mlflow_dynamics.session",
    "watch": "mlflow_dynamics.watching",
}
_SUBMODULES: Final = ("errors", "measures")

__all__ = [
    "ConvergenceMonitor",
    "Event",
    "MeasureConfig",
    "RecordingConfig",
    "Schedule",
    "Tracker",
    "Verdict",
    "WarningConfig",
    "autolog",
    "errors",
    "load_activations",
    "load_metrics",
    "measures",
    "recompute",
    "search_runs",
    "sync",
    "track",
    "watch",
]

if TYPE_CHECKING:
    from mlflow_dynamics import errors, measures
    from mlflow_dynamics.alerts import Event
    from mlflow_dynamics.autologging import autolog
    from mlflow_dynamics.config import MeasureConfig, RecordingConfig
    from mlflow_dynamics.convergence import ConvergenceMonitor, Schedule, Verdict, WarningConfig
    from mlflow_dynamics.recomputing import recompute
    from mlflow_dynamics.session import track
    from mlflow_dynamics.tracker import Tracker
    from mlflow_dynamics.tracking import load_activations, load_metrics, search_runs
    from mlflow_dynamics.tracking.sync import sync
    from mlflow_dynamics.watching import watch


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"mlflow_dynamics.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'mlflow_dynamics' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_HOME[name]), name)
    except ImportError as error:  # the installed torch or MLflow lacks a name that this package uses
        from mlflow_dynamics.extras import unusable

        if name == "autolog":
            return functools.partial(_declined, str(unusable(error)))
        raise unusable(error) from error
    globals()[name] = value
    return value


def _declined(reason: str, **_: Any) -> None:
    """Take the place of `autolog`: log the reason, because `autolog` must not raise into a training."""
    logging.getLogger(__name__).warning("Nothing is recorded: %s", reason)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
