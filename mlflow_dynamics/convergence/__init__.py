"""The convergence early warning: a series of numbers in, a verdict out."""

from mlflow_dynamics.convergence.detector import Detector, Reading
from mlflow_dynamics.convergence.installed import detector_names, find_detector
from mlflow_dynamics.convergence.monitor import ConvergenceMonitor, State, Verdict
from mlflow_dynamics.convergence.schedule import Schedule
from mlflow_dynamics.convergence.volatility import VolatilityDetector
from mlflow_dynamics.convergence.warning import WarningConfig

__all__ = [
    "ConvergenceMonitor",
    "Detector",
    "Reading",
    "Schedule",
    "State",
    "Verdict",
    "VolatilityDetector",
    "WarningConfig",
    "detector_names",
    "find_detector",
]
