"""NoRun: the writer of a process that writes no run, because another rank of its training does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mlflow_dynamics.records import EpochActivations, Layer, Measures


class NoRun:
    """Takes what a `RunWriter` takes and keeps none of it."""

    run_id = None
    created = None
    title = ""
    stop_requested = False

    def write_layers(self, layers: Sequence[Layer]) -> None:
        """Nothing is written."""

    def write_epoch(
        self,
        epoch: int,
        activations: EpochActivations | None,
        metrics: Mapping[str, float],
        measures: Measures | None,
        timestamp_ms: int,
    ) -> None:
        """Nothing is written."""

    def write_files(self, files: Mapping[str, bytes]) -> None:
        """Nothing is written."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Nothing is written."""

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Nothing is written."""
