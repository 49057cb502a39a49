"""The convergence early warning: a series of numbers in, a verdict out."""

from mlflow_dynamics.convergence.detectors import Detector, Reading, detector_names, find_detector
from mlflow_dynamics.convergence.monitor import ConvergenceMonitor, State, Verdict
from mlflow_dynamics.convergence.schedule import Schedule
from mlflow_dynamics.convergence.volatility import VolatilityDetector

__all__ = [
    "ConvergenceMonitor",
    "Detector",
    "Reading",
    "Schedule",
    "State",
    "Verdict",
    "VolatilityDetector",
    "detector_names",
    "find_detector",
]
