"""Tracking (MLflow and pyarrow): metric and artifact names, writing, sending later, reading back.

run_id, owned = open_run()                 # on the user's thread: MLflow's active run belongs to a thread
writer = RunWriter(run_id).start()
writer.write_layers(layers); writer.write_epoch(...)       # from any thread
end_run(writer, status, timeout_s) if owned else writer.close(timeout_s)       # on the user's thread

The names below are resolved on first use, because MLflow takes seconds to load, and the process that draws a report
needs only `names`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mlflow_dynamics.tracking import names
    from mlflow_dynamics.tracking.activations import load_activations, load_layers, scan_activations
    from mlflow_dynamics.tracking.joining import (
        OpenedRun,
        beside_run,
        open_run,
        reopen_run,
        run_to_carry_on,
        run_to_resume,
    )
    from mlflow_dynamics.tracking.query import load_metrics, load_metrics_table, search_runs
    from mlflow_dynamics.tracking.runs import (
        activate_run,
        active_runs,
        end_run,
        new_run,
        run_to_join,
        script_run,
        start_run,
    )
    from mlflow_dynamics.tracking.writer import RunWriter

_HOME: Final = {
    "activations": ("load_activations", "load_layers", "scan_activations"),
    "query": ("load_metrics", "load_metrics_table", "search_runs"),
    "joining": (
        "OpenedRun",
        "beside_run",
        "open_run",
        "reopen_run",
        "run_to_carry_on",
        "run_to_resume",
    ),
    "runs": (
        "activate_run",
        "active_runs",
        "end_run",
        "new_run",
        "run_to_join",
        "script_run",
        "start_run",
    ),
    "writer": ("RunWriter",),
}

__all__ = [
    "OpenedRun",
    "RunWriter",
    "activate_run",
    "active_runs",
    "beside_run",
    "end_run",
    "load_activations",
    "load_layers",
    "load_metrics",
    "load_metrics_table",
    "names",
    "new_run",
    "open_run",
    "reopen_run",
    "run_to_carry_on",
    "run_to_join",
    "run_to_resume",
    "scan_activations",
    "script_run",
    "search_runs",
    "start_run",
]


def __getattr__(name: str) -> Any:
    for module, defined in _HOME.items():
        if name in defined:
            value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
