"""Detectors and the monitor that reads them: a series of numbers in, a verdict out."""

from mlflow_dynamics.convergence.detectors import Detector, Scores, find_detector
from mlflow_dynamics.convergence.monitor import ConvergenceMonitor, Schedule, State, Verdict
from mlflow_dynamics.convergence.volatility import VolatilityDetector

__all__ = [
    "ConvergenceMonitor",
    "Detector",
    "Schedule",
    "Scores",
    "State",
    "Verdict",
    "VolatilityDetector",
    "find_detector",
]
