"""The dynamical measures: arrays in, numbers out."""

from mlflow_dynamics.measures.epoch import measure
from mlflow_dynamics.measures.estimators import ESTIMATORS, global_integration, hurst, integration
from mlflow_dynamics.measures.fractal import dfa, fluctuations
from mlflow_dynamics.measures.hurst_kolmogorov import HurstKolmogorov, hurst_kolmogorov
from mlflow_dynamics.measures.protocols import SignalWindow
from mlflow_dynamics.measures.stability import stability_index, volatility
from mlflow_dynamics.measures.synchrony import (
    metastability,
    metastability_ratio,
    metastability_unbiased,
    order_parameter,
    synchrony,
)
from mlflow_dynamics.measures.uncertainty import (
    Interval,
    SurrogateTests,
    integration_interval,
    surrogate_tests,
)

__all__ = [
    "ESTIMATORS",
    "HurstKolmogorov",
    "Interval",
    "SignalWindow",
    "SurrogateTests",
    "dfa",
    "fluctuations",
    "global_integration",
    "hurst",
    "hurst_kolmogorov",
    "integration",
    "integration_interval",
    "measure",
    "metastability",
    "metastability_ratio",
    "metastability_unbiased",
    "order_parameter",
    "stability_index",
    "surrogate_tests",
    "synchrony",
    "volatility",
]
