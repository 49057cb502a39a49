"""Compares the early warning with other stopping rules on finished runs: the epochs saved and the accuracy lost."""

from mlflow_dynamics.evaluation.report import for_terminal, report
from mlflow_dynamics.evaluation.traces import read_experiment, read_traces

__all__ = ["for_terminal", "read_experiment", "read_traces", "report"]
