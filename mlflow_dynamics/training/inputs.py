"""Logs the two parts of an image data set as inputs of a run, each with its own digest, schema and profile."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset import Dataset
from mlflow.data.schema import TensorDatasetSchema
from mlflow.types import Schema, TensorSpec

from mlflow_dynamics.tracking import RunWriter
from mlflow_dynamics.training.data import ImageData, ImageDataset
from mlflow_dynamics.training.parameters import short_name

PARTS: Final = {"train": "training", "test": "validation"}
"""Part of the data -> MLflow's word for its purpose. The metrics of the parts begin with `train/` and `validation/`."""


class ImagePart(Dataset):
    """One part of an image data set, in the form in which MLflow stores data sets."""

    def __init__(self, name: str, images: ImageDataset, *, of: ImageData) -> None:
        self._images = images
        self._of = of
        super().__init__(CodeDatasetSource(tags={"location": of.source}), name=name)

    def _compute_digest(self) -> str:
        return self._images.digest()

    @property
    def schema(self) -> TensorDatasetSchema:
        """The types and shapes that the model is given: normalised images and labels."""
        shape = (-1, self._of.channels, self._of.image_size, self._of.image_size)
        return TensorDatasetSchema(
            features=Schema([TensorSpec(np.dtype(np.float32), shape, "image")]),
            targets=Schema([TensorSpec(np.dtype(np.int64), (-1,), "label")]),
        )

    @property
    def profile(self) -> Mapping[str, Any]:
        """The number of images, in all and of each class, and the mean and deviation with which they are normalised."""
        counts = np.bincount(self._images.labels.numpy(), minlength=self._of.num_classes)
        return {
            "images": len(self._images),
            "classes": self._of.num_classes,
            "images_per_class": dict(zip(self._of.class_names, counts.tolist(), strict=True)),
            "normalisation_mean": self._of.mean,
            "normalisation_std": self._of.std,
        }

    def to_dict(self) -> dict[str, str]:
        """Return what the base class returns, with schema and profile added."""
        return super().to_dict() | {
            "schema": json.dumps(self.schema.to_dict()),
            "profile": json.dumps(self.profile),
        }


def log_inputs(writer: RunWriter, data: ImageData) -> dict[str, ImagePart]:
    """Log both parts as inputs of the run; return them by their purpose, `training` and `validation`."""
    name = short_name(data.name)
    parts = {}
    for part, context in PARTS.items():
        parts[context] = ImagePart(f"{name}/{part}", getattr(data, part), of=data)
        writer.log_dataset(parts[context], context=context)
    return parts
