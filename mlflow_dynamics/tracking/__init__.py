"""Tracking (MLflow and pyarrow): metric and artifact names, writing, sending later, reading back.

run_id, owned = open_run()                 # on the user's thread: MLflow's active run belongs to a thread
writer = RunWriter(run_id)
writer.write_layers(layers); writer.write_epoch(...)       # from any thread
end_run(writer, status, timeout_s) if owned else writer.close(timeout_s)       # on the user's thread
"""

from mlflow_dynamics.tracking import names
from mlflow_dynamics.tracking.activations import load_activations, load_layers, scan_activations
from mlflow_dynamics.tracking.query import load_metrics, load_metrics_table, search_runs
from mlflow_dynamics.tracking.runs import (
    OpenedRun,
    activate_run,
    active_runs,
    end_run,
    new_run,
    open_run,
    run_to_join,
    script_run,
    start_run,
)
from mlflow_dynamics.tracking.writer import RunWriter

__all__ = [
    "OpenedRun",
    "RunWriter",
    "activate_run",
    "active_runs",
    "end_run",
    "load_activations",
    "load_layers",
    "load_metrics",
    "load_metrics_table",
    "names",
    "new_run",
    "open_run",
    "run_to_join",
    "scan_activations",
    "script_run",
    "search_runs",
    "start_run",
]
