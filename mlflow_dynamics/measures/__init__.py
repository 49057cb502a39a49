"""The dynamical measures: arrays in, numbers out."""

from mlflow_dynamics.measures.fractal import dfa, fluctuations
from mlflow_dynamics.measures.protocols import SignalWindow
from mlflow_dynamics.measures.stability import measure, stability_index, volatility
from mlflow_dynamics.measures.synchrony import order_parameter

__all__ = ["SignalWindow", "dfa", "fluctuations", "measure", "order_parameter", "stability_index", "volatility"]
