"""The best weights of a training so far, kept on disk, so that an early stop, also of a resumed one, can go back."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mlflow_dynamics.training.loop import Epoch

logger = logging.getLogger(__name__)


class BestWeights:
    """The weights of the epoch with the highest validation accuracy, of several the first.

    Args:
        path: where they are kept; what is there already belongs to the same training.
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
        self._path.parent.mkdir(parents=True, exist_ok=True)
        state = {"epoch": epoch.number, "accuracy": epoch.validation_accuracy, "model": model.state_dict()}
        partial = self._path.with_suffix(".best-partial")
        torch.save(state, partial)
        partial.replace(self._path)

    def restore(self, model: nn.Module) -> None:
        """Give the model the best weights; where no epoch had an accuracy it keeps the last ones."""
        if not self._path.is_file():
            logger.info(
                "Stopped early; no epoch has a validation accuracy, the model is that of the last one."
            )
            return
        state = self._load()
        model.load_state_dict(state["model"])
        logger.info(
            "Stopped early; the model is that of epoch %d, with the best validation accuracy (%.3f).",
            state["epoch"],
            state["accuracy"],
        )

    def _load(self) -> dict[str, Any]:
        state: dict[str, Any] = torch.load(self._path, map_location="cpu", weights_only=True)
        return state


def carry_over(earlier: Path, path: Path) -> None:
    """Begin with the best weights of the training that is carried on, if it kept any."""
    if earlier.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(earlier, path)
