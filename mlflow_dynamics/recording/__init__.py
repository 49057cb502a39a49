"""Recording with torch: which layers, the reduction inside the forward pass, where epochs begin and end."""

from mlflow_dynamics.recording.recorder import PendingEpoch, Recorder

__all__ = ["PendingEpoch", "Recorder"]
