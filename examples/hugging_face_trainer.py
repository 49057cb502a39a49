"""Hugging Face's Trainer with the dynamics in its own MLflow run: a small ViT on 8 x 8 digits, nothing downloaded."""

from __future__ import annotations

import mlflow
import torch
from sklearn.datasets import load_digits
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from mlflow_dynamics.integrations.transformers import DynamicsCallback


class Digits(Dataset):
    """scikit-learn's digits as the Trainer wants them."""

    def __init__(self) -> None:
        digits = load_digits()
        self.images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        self.targets = torch.tensor(digits.target)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.images[index], "labels": self.targets[index]}


config = ViTConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    image_size=8,
    patch_size=4,
    num_channels=1,
    num_labels=10,
)
arguments = TrainingArguments(
    output_dir="trainer_output",
    num_train_epochs=3,
    per_device_train_batch_size=16,
    learning_rate=1e-3,
    report_to="mlflow",
    save_strategy="no",
)
trainer = Trainer(
    model=ViTForImageClassification(config),
    args=arguments,
    train_dataset=Digits(),
    callbacks=[DynamicsCallback()],
)
trainer.train()
mlflow.end_run()
