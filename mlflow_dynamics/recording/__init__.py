"""Recording with torch: the choice of layers, the reduction inside the forward pass, the cut into epochs."""

from mlflow_dynamics.recording.pending_epoch import PendingEpoch
from mlflow_dynamics.recording.recorder import Recorder

__all__ = ["PendingEpoch", "Recorder"]
