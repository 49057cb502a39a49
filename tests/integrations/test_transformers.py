"""Hugging Face Trainer and Accelerate: recorded in their own runs, and trained to the same weights as without us."""

from __future__ import annotations

from pathlib import Path

import accelerate
import mlflow
import pytest
import torch
import transformers
from torch import nn

import mlflow_dynamics
from mlflow_dynamics.integrations.transformers import DynamicsCallback
from mlflow_dynamics.tracking import names
from mlflow_dynamics.tracking.activations import load_layers

pytestmark = pytest.mark.filterwarnings("ignore")

EPOCHS, STEPS, BATCH = 2, 70, 4


class Images(torch.utils.data.Dataset):
    def __init__(self) -> None:
        self.pixels = torch.randn(STEPS * BATCH, 1, 8, 8, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pixels[index], "labels": (self.pixels[index].mean() > 0).long()}


def small_vit() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=2,
    )
    return transformers.ViTForImageClassification(config)


def train(folder: Path, *, callbacks: tuple = (), report_to: str = "none") -> nn.Module:
    model = small_vit()
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "out"),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        report_to=report_to,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        seed=5,
    )
    transformers.Trainer(
        model=model, args=arguments, train_dataset=Images(), callbacks=list(callbacks)
    ).train()
    return model


def test_the_callback_records_into_the_trainers_run_and_changes_nothing(own_mlflow: Path) -> None:
    recorded = train(own_mlflow, callbacks=(DynamicsCallback(),), report_to="mlflow")
    mlflow.end_run()
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    frame = mlflow_dynamics.load_metrics([run.info.run_id])
    assert list(frame["epoch"][frame[names.STABILITY].notna()]) == list(range(EPOCHS))
    table = mlflow_dynamics.load_activations(run.info.run_id)
    assert table.num_rows == EPOCHS * STEPS * len(load_layers(run.info.run_id))
    plain = train(own_mlflow)
    for one, other in zip(recorded.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


def test_autolog_without_a_callback_finds_the_same(own_mlflow: Path) -> None:
    mlflow_dynamics.autolog()
    try:
        train(own_mlflow)
    finally:
        mlflow_dynamics.autolog(disable=True)
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    table = mlflow_dynamics.load_activations(run.info.run_id)
    assert table.num_rows == EPOCHS * STEPS * len(load_layers(run.info.run_id))


def test_autolog_records_a_loop_of_accelerate(own_mlflow: Path) -> None:
    mlflow_dynamics.autolog()
    try:
        accelerator = accelerate.Accelerator(cpu=True)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loader = torch.utils.data.DataLoader(Images(), batch_size=BATCH, shuffle=True)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        for _ in range(EPOCHS):
            for batch in loader:
                loss = nn.functional.cross_entropy(model(batch["pixel_values"]), batch["labels"])
                optimizer.zero_grad()
                accelerator.backward(loss)
                optimizer.step()
    finally:
        mlflow_dynamics.autolog(disable=True)
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    table = mlflow_dynamics.load_activations(run.info.run_id)
    assert table.num_rows == EPOCHS * STEPS * 2
    assert sorted(set(table["epoch"].to_pylist())) == list(range(EPOCHS))
