"""PyTorch Lightning with the dynamics in the same run as MLflow's own autologging."""

from __future__ import annotations

import mlflow
import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mlflow_dynamics.integrations.lightning import DynamicsCallback


class Digits(LightningModule):
    """Two convolutions on 8 x 8 digits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(2048, 10)),
        )

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, targets = batch
        loss = nn.functional.cross_entropy(self.layers(images), targets)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
loader = DataLoader(TensorDataset(images, torch.tensor(digits.target)), batch_size=16, shuffle=True)

mlflow.pytorch.autolog(log_models=False)
with mlflow.start_run():
    trainer = Trainer(max_epochs=4, accelerator="cpu", logger=False, callbacks=[DynamicsCallback()])
    trainer.fit(Digits(), loader)
