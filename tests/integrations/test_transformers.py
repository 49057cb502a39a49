"""Hugging Face Trainer and Accelerate: recorded in their own runs, and trained to the same weights as without us."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import accelerate
import mlflow
import pytest
import torch
import transformers
from foreign_detector import install
from torch import nn

import mlflow_dynamics
from mlflow_dynamics.config import MeasureConfig
from mlflow_dynamics.convergence import WarningConfig
from mlflow_dynamics.integrations.transformers import DynamicsCallback
from mlflow_dynamics.tracking import names
from mlflow_dynamics.tracking.activations import load_layers

pytestmark = pytest.mark.filterwarnings("ignore")

EPOCHS, STEPS, BATCH = 2, 70, 4
WINDOW = MeasureConfig(window=64)


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


def arguments_in(folder: Path, **settings: object) -> transformers.TrainingArguments:
    """What all trainings of this file have in common, and what one has of its own."""
    return transformers.TrainingArguments(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=BATCH,
        use_cpu=True,
        disable_tqdm=True,
        seed=5,
        **settings,
    )


def train(folder: Path, *, callbacks: tuple = (), report_to: str = "none") -> nn.Module:
    model = small_vit()
    arguments = arguments_in(folder, num_train_epochs=EPOCHS, report_to=report_to, save_strategy="no")
    transformers.Trainer(
        model=model, args=arguments, train_dataset=Images(), callbacks=list(callbacks)
    ).train()
    return model


@pytest.mark.drawn
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


def test_what_the_trainer_logs_by_its_own_step_stands_at_its_epoch(own_mlflow: Path) -> None:
    arguments = arguments_in(
        own_mlflow,
        num_train_epochs=EPOCHS,
        report_to="mlflow",
        save_strategy="no",
        eval_strategy="epoch",
        logging_strategy="epoch",
    )
    trainer = transformers.Trainer(
        model=small_vit(),
        args=arguments,
        train_dataset=Images(),
        eval_dataset=Images(),
        callbacks=[DynamicsCallback()],
    )
    trainer.train()
    mlflow.end_run()
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    evaluated = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    trained = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    frame = mlflow_dynamics.load_metrics([run.info.run_id], metrics=["eval_loss", "loss", names.STABILITY])
    assert frame["epoch"].tolist() == list(range(EPOCHS))
    assert frame["eval_loss"].tolist() == evaluated
    assert frame["loss"].tolist() == trained


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


class Plain(nn.Module):
    """A model whose checkpoints the Trainer writes and reads as they are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.layers(pixel_values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize(
    ("kind", "told", "trained"), [("constant", False, 4), ("linear", False, 7), ("linear", True, 4)]
)
def test_a_stop_waits_for_the_last_phase_and_the_trainer_goes_back_to_its_best(
    own_mlflow: Path, monkeypatch: pytest.MonkeyPatch, kind: str, told: bool, trained: int
) -> None:
    monkeypatch.syspath_prepend(install(own_mlflow / "installed"))
    alerts: list[mlflow_dynamics.Event] = []
    arguments = arguments_in(
        own_mlflow,
        num_train_epochs=8,
        lr_scheduler_type=kind,
        report_to="none",
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,  # so that the best epoch is the first, not the one it was stopped in
    )
    trainer = transformers.Trainer(
        model=Plain(),
        args=arguments,
        train_dataset=Images(),
        eval_dataset=Images(),
        callbacks=[
            DynamicsCallback(
                measures=WINDOW,
                on_event=alerts.append,
                warning=WarningConfig(mode="stop", stop_before_last_phase=told, detector="third"),
            )
        ],
    )
    trainer.train()
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    known = run.data.params
    assert (known["dynamics/warning/schedule"], known["dynamics/warning/planned_epochs"]) == (kind, "8")
    assert run.info.status == "FINISHED"
    assert run.data.tags[names.TAG_STOPPED_EARLY] == "true"
    assert [(alert.kind, str(alert.epoch)) for alert in alerts[:1]] == [
        ("converging", run.data.tags[names.TAG_CONVERGED_EPOCH])
    ]
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == trained
    assert losses[0] == max(losses)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[0])


def resumable(folder: Path, epochs: int, save: dict[str, object]) -> transformers.Trainer:
    arguments = arguments_in(folder, num_train_epochs=epochs, report_to="none", **save)
    ours = DynamicsCallback(measures=WINDOW)
    return transformers.Trainer(model=Plain(), args=arguments, train_dataset=Images(), callbacks=[ours])


def test_a_training_that_is_resumed_goes_on_at_its_epoch_in_the_same_run(own_mlflow: Path) -> None:
    with mlflow.start_run() as run:
        resumable(own_mlflow, 2, {"save_strategy": "epoch"}).train()
        resumable(own_mlflow, 5, {"save_strategy": "epoch"}).train(resume_from_checkpoint=True)
    table = mlflow_dynamics.load_activations(run.info.run_id, layers=[0]).to_pandas()
    assert table["epoch"].to_list() == [epoch for epoch in range(5) for _ in range(STEPS)]
    assert table["step"].to_list() == list(range(5 * STEPS))
    points = mlflow.MlflowClient().get_metric_history(run.info.run_id, names.STABILITY)
    assert [point.step for point in points] == list(range(5))


def test_a_second_training_in_the_same_run_has_a_nested_one(own_mlflow: Path) -> None:
    with mlflow.start_run() as run:
        for _ in range(2):
            resumable(own_mlflow, 2, {"save_strategy": "no"}).train()
    found = mlflow.search_runs(search_all_experiments=True, output_format="list")
    (nested,) = [one for one in found if one.info.run_id != run.info.run_id]
    assert nested.data.tags["mlflow.parentRunId"] == run.info.run_id
    for one in found:
        points = mlflow.MlflowClient().get_metric_history(one.info.run_id, names.STABILITY)
        assert [point.step for point in points] == [0, 1]


def test_a_training_that_is_resumed_within_an_epoch_records_the_rest_of_it(own_mlflow: Path) -> None:
    save = {"save_strategy": "steps", "save_steps": STEPS + 30, "max_steps": STEPS + 30}
    resumable(own_mlflow, 3, save).train()
    with mlflow.start_run() as run:
        resumable(own_mlflow, 3, {"save_strategy": "no"}).train(
            resume_from_checkpoint=str(own_mlflow / "out" / f"checkpoint-{STEPS + 30}")
        )
    table = mlflow_dynamics.load_activations(run.info.run_id, layers=[0]).to_pandas()
    assert table["epoch"].to_list() == [1] * (STEPS - 30) + [2] * STEPS
    assert table["step"].to_list() == list(range(STEPS + 30, 3 * STEPS))


DISTRIBUTED = """
import sys
import torch, transformers
sys.path.insert(0, sys.argv[1])
from tests_of_transformers import Images, Plain
from mlflow_dynamics.integrations.transformers import DynamicsCallback
from mlflow_dynamics.config import MeasureConfig
from mlflow_dynamics.convergence import WarningConfig

arguments = transformers.TrainingArguments(
    output_dir=sys.argv[2], num_train_epochs=8, per_device_train_batch_size=2, lr_scheduler_type="constant",
    report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True, ddp_backend="gloo",
)
ours = DynamicsCallback(warning=WarningConfig(mode="stop", detector="third"), measures=MeasureConfig(window=64))
trainer = transformers.Trainer(model=Plain(), args=arguments, train_dataset=Images(), callbacks=[ours])
trainer.train()
print("epochs", trainer.state.epoch)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_all_processes_stop_together(own_mlflow: Path) -> None:
    shutil.copy(__file__, own_mlflow / "tests_of_transformers.py")
    paths = [install(own_mlflow / "installed"), Path(__file__).parents[1], os.environ.get("PYTHONPATH", "")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DISTRIBUTED, str(own_mlflow), str(own_mlflow / f"out{rank}")],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        told = [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], told
    assert ["epochs 3.0" in out for out, _ in told] == [True, True], told
