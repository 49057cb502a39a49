"""Keeps the best weights of a training so far on disk, so that they can be restored at the end, also after a resume."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mlflow_dynamics.training.checkpoints import write_checkpoint
from mlflow_dynamics.training.loop import Epoch

logger = logging.getLogger(__name__)


class BestWeights:
    """The weights of the first epoch with the highest validation accuracy.

    Args:
        path: the file that holds the weights. A file that is there already belongs to the same training.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._accuracy = -1.0
        if path.is_file():
            self._accuracy = float(self._load()["accuracy"])

    def keep(self, epoch: Epoch, model: nn.Module) -> None:
        """Keep the model's weights if the epoch is the best so far."""
        if not epoch.validation_accuracy > self._accuracy:
            return
        self._accuracy = epoch.validation_accuracy
        state = {"epoch": epoch.number, "accuracy": epoch.validation_accuracy, "model": model.state_dict()}
        write_checkpoint(self._path, state)

    def restore(self, model: nn.Module) -> int | None:
        """Load the best weights into the model and return their epoch.

        If no epoch has a validation accuracy, the model keeps its last weights and None is returned.
        """
        if not self._path.is_file():
            logger.info("No epoch has a validation accuracy: the model is that of the last one.")
            return None
        state = self._load()
        model.load_state_dict(state["model"])
        logger.info(
            "The model is that of epoch %d, with the best validation accuracy (%.3f).",
            state["epoch"],
            state["accuracy"],
        )
        return int(state["epoch"])

    def _load(self) -> dict[str, Any]:
        state: dict[str, Any] = torch.load(self._path, map_location="cpu", weights_only=True)
        return state
