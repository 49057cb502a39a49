"""Recording with torch: which layers, the reduction inside the forward pass, where epochs begin and end."""

from mlflow_dynamics.recording.pending import PendingEpoch
from mlflow_dynamics.recording.recorder import Recorder

__all__ = ["PendingEpoch", "Recorder"]
