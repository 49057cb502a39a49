"""The frameworks' callbacks in two processes, for torchrun: `distributed_frameworks.py FOLDER FRAMEWORK`.

Writes `FOLDER/FRAMEWORK RANK.json`: mean and mean square of the first layer's output at every step, as the layer itself
saw them.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import mlflow
import torch
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader, TensorDataset

SIZE, BATCH, EPOCHS = 128, 4, 2


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(SIZE, 8, generator=generator)
    images[1::2] += 2.0  # the ranks' parts differ
    return TensorDataset(images, torch.randint(0, 3, (SIZE,), generator=generator))


seen: list[tuple[float, float]] = []


class Watching(nn.Linear):
    """Says what it returned."""

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        seen.append((output.mean().item(), output.square().mean().item()))
        return output


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Watching(8, 6), nn.ReLU(), nn.Linear(6, 3))


def with_lightning() -> None:
    import lightning.pytorch as pl

    from mlflow_dynamics import WarningConfig
    from mlflow_dynamics.integrations.lightning import DynamicsCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[DynamicsCallback(warning=WarningConfig(mode="stop"))],
    ).fit(Module(), DataLoader(data(), batch_size=BATCH))


def with_transformers() -> None:
    from transformers import Trainer, TrainingArguments

    from mlflow_dynamics import WarningConfig
    from mlflow_dynamics.integrations.transformers import DynamicsCallback

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.net(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    def collate(samples: list[Any]) -> dict[str, Tensor]:
        return {"x": torch.stack([x for x, _ in samples]), "labels": torch.stack([y for _, y in samples])}

    Trainer(
        model=Net(),
        args=TrainingArguments(
            output_dir="out",
            use_cpu=True,
            ddp_backend="gloo",
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=BATCH,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        data_collator=collate,
        train_dataset=data(),
        callbacks=[DynamicsCallback(warning=WarningConfig(mode="stop"))],
    ).train()


if __name__ == "__main__":
    logging.basicConfig()
    if os.environ["RANK"] == "0":
        mlflow.set_experiment(sys.argv[2])
    {"lightning": with_lightning, "transformers": with_transformers}[sys.argv[2]]()
    (Path(sys.argv[1]) / f"{sys.argv[2]} {distributed.get_rank()}.json").write_text(json.dumps(seen))
