"""Does the early warning help? It beside other stopping rules, on finished runs: what each saves, and what it costs."""

from mlflow_dynamics.evaluation.report import report
from mlflow_dynamics.evaluation.traces import read_experiment, read_traces

__all__ = ["read_experiment", "read_traces", "report"]
