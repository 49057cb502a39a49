"""PyTorch Lightning: recorded in its own run, stopped on request, and trained to the same weights as without us."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
import torch
from foreign_detector import install
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import MLFlowLogger
from torch import Tensor, nn

import mlflow_dynamics
from mlflow_dynamics.config import MeasureConfig
from mlflow_dynamics.convergence import WarningConfig
from mlflow_dynamics.errors import ConfigError
from mlflow_dynamics.integrations.lightning import DynamicsCallback
from mlflow_dynamics.tracking import names

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers and logging intervals

EPOCHS, STEPS = 3, 70


class Classifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2))
        self.fail = False

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        if self.fail and self.current_epoch == 1:
            raise RuntimeError("the user's own")
        inputs, targets = batch
        loss = nn.functional.cross_entropy(self.layers(inputs), targets)
        self.log("loss", loss, on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        inputs, targets = batch
        self.log("accuracy", (self.layers(inputs).argmax(1) == targets).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(batches: int) -> torch.utils.data.DataLoader:
    inputs = torch.randn(batches * 16, 8, generator=torch.Generator().manual_seed(1))
    data = torch.utils.data.TensorDataset(inputs, (inputs[:, 0] > 0).long())
    return torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)


def fit(folder: Path, *, callbacks: tuple = (), logger: object = False, fail: bool = False) -> Classifier:
    seed_everything(3, verbose=False)
    model = Classifier()
    model.fail = fail
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.fit(model, loader(STEPS), loader(2))
    return model


@pytest.mark.drawn
def test_the_callback_records_into_the_loggers_run_and_changes_nothing(own_mlflow: Path) -> None:
    logger = MLFlowLogger(experiment_name="lightning", tracking_uri=mlflow.get_tracking_uri())
    recorded = fit(own_mlflow, callbacks=(DynamicsCallback(),), logger=logger)
    frame = mlflow_dynamics.load_metrics([logger.run_id])
    assert list(frame["epoch"][frame[names.STABILITY].notna()]) == list(range(EPOCHS))
    assert mlflow_dynamics.load_activations(logger.run_id).num_rows == EPOCHS * STEPS * 2
    run = mlflow.get_run(logger.run_id)
    assert run.info.status == "FINISHED"
    assert {"loss", "accuracy"} <= run.data.metrics.keys()

    plain = fit(own_mlflow)
    for one, other in zip(recorded.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


class Grouped(Classifier):
    """Logs under the names that `load_metrics` takes."""

    def log(self, name: str, value: object, **options: object) -> None:
        super().log(
            {"loss": "train/loss", "accuracy": "validation/accuracy"}.get(name, name), value, **options
        )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_lightning_logs_by_its_own_step_stands_at_its_epoch(own_mlflow: Path, accumulate: int) -> None:
    logger = MLFlowLogger(experiment_name="lightning", tracking_uri=mlflow.get_tracking_uri())
    torch.manual_seed(0)
    trainer = Trainer(
        max_epochs=EPOCHS,
        accumulate_grad_batches=accumulate,
        accelerator="cpu",
        callbacks=[DynamicsCallback()],
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=own_mlflow,
    )
    trainer.fit(Grouped(), loader(STEPS), loader(2))
    points = mlflow.MlflowClient().get_metric_history(logger.run_id, "validation/accuracy")
    by_step = {point.step: point.value for point in points}
    assert len(by_step) == EPOCHS
    assert max(by_step) > EPOCHS  # a global step
    frame = mlflow_dynamics.load_metrics([logger.run_id])
    assert frame["epoch"].tolist() == list(range(EPOCHS))
    assert frame["validation/accuracy"].tolist() == [by_step[step] for step in sorted(by_step)]
    assert frame["train/loss"].notna().all()


def test_stop_on_request_ends_the_fit(own_mlflow: Path) -> None:
    class Ask(DynamicsCallback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            run = mlflow.active_run()
            assert run is not None
            mlflow.MlflowClient().set_tag(run.info.run_id, names.TAG_STOP_REQUESTED, "0")

        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            super().on_train_epoch_end(trainer, pl_module)
            assert self._tracker is not None
            self._tracker.wait(trainer.current_epoch)

    with mlflow.start_run() as run:
        fit(own_mlflow, callbacks=(Ask(warning=WarningConfig(mode="stop")),))
    assert mlflow.get_run(run.info.run_id).data.tags[names.TAG_STOPPED_EARLY] == "true"


def test_an_error_of_the_users_passes_through_and_ends_our_run_as_failed(own_mlflow: Path) -> None:
    with pytest.raises(RuntimeError, match="the user's own"):
        fit(own_mlflow, callbacks=(DynamicsCallback(),), fail=True)
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.status == "FAILED"
    assert mlflow.active_run() is None


def test_autolog_without_a_callback_finds_epochs_and_steps_beside_mlflows_own(own_mlflow: Path) -> None:
    mlflow.pytorch.autolog(log_models=False)
    mlflow_dynamics.autolog()
    try:
        fit(own_mlflow)
    finally:
        mlflow_dynamics.autolog(disable=True)
        mlflow.pytorch.autolog(disable=True)
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert mlflow_dynamics.load_activations(run.info.run_id).num_rows == EPOCHS * STEPS * 2
    assert {"loss", names.STABILITY} <= run.data.metrics.keys()


class Scheduled(Classifier):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def configure_optimizers(self) -> object:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        if self.kind == "step":
            return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2, 4])]
        if self.kind == "two":
            schedulers = [torch.optim.lr_scheduler.StepLR(optimizer, 30) for _ in range(2)]
            return [optimizer], schedulers
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=8 * 35)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("step", ("step", "8", "2,4", 8)),
        ("onecycle", ("onecycle", "8", "none", 7)),
        ("onecycle, not waited for", ("onecycle", "8", "none", 5)),
        ("two", ("unknown", "8", "none", 5)),
    ],
)
def test_a_stop_waits_for_what_the_trainers_scheduler_says_and_leaves_the_best_checkpoint(
    own_mlflow: Path, monkeypatch: pytest.MonkeyPatch, kind: str, expected: tuple[str, str, str, int]
) -> None:
    monkeypatch.syspath_prepend(install(own_mlflow / "installed"))
    seed_everything(3, verbose=False)
    checkpoints = ModelCheckpoint(dirpath=own_mlflow / "best", monitor="accuracy", mode="max")
    module = Scheduled(kind)
    alerts: list[mlflow_dynamics.Event] = []
    ours = DynamicsCallback(
        on_event=alerts.append,
        measures=MeasureConfig(window=32),
        warning=WarningConfig(
            mode="stop", stop_before_last_phase=kind.endswith("not waited for"), detector="third"
        ),
    )
    trainer = Trainer(
        max_epochs=8,
        accumulate_grad_batches=2,
        accelerator="cpu",
        callbacks=[ours, checkpoints],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=own_mlflow,
    )
    trainer.fit(module, loader(STEPS), loader(2))
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    told = run.data.params
    name, planned, drops, trained = expected
    assert told["dynamics/warning/detector"] == "third"
    assert told["dynamics/warning/schedule"] == name
    assert told["dynamics/warning/planned_epochs"] == planned
    assert told["dynamics/warning/drop_epochs"] == drops
    epochs = set(mlflow_dynamics.load_activations(run.info.run_id)["epoch"].to_pylist())
    assert epochs == set(range(trained))
    converged = run.data.tags.get(names.TAG_CONVERGED_EPOCH)  # under a step schedule it is too early
    assert [str(alert.epoch) for alert in alerts[:1]] == ([] if converged is None else [converged])
    assert run.info.status == "FINISHED"
    assert (run.data.tags.get(names.TAG_STOPPED_EARLY) == "true") == (kind != "step")
    best = torch.load(checkpoints.best_model_path, weights_only=False)
    assert best["epoch"] in epochs
    assert checkpoints.best_model_score is not None


def test_a_fit_that_is_resumed_goes_on_at_its_epoch_in_the_same_run(own_mlflow: Path) -> None:
    seed_everything(3, verbose=False)

    def fit_until(epochs: int, checkpoint: str | None) -> ModelCheckpoint:
        checkpoints = ModelCheckpoint(dirpath=own_mlflow / "kept")
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=[DynamicsCallback(), checkpoints],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=own_mlflow,
        )
        trainer.fit(Classifier(), loader(STEPS), loader(2), ckpt_path=checkpoint)
        return checkpoints

    with mlflow.start_run() as run:
        checkpoints = fit_until(2, None)
        fit_until(5, checkpoints.best_model_path)
    table = mlflow_dynamics.load_activations(run.info.run_id, layers=[0]).to_pandas()
    assert table["epoch"].to_list() == [epoch for epoch in range(5) for _ in range(STEPS)]
    assert table["step"].to_list() == list(range(5 * STEPS))
    points = mlflow.MlflowClient().get_metric_history(run.info.run_id, names.STABILITY)
    assert [point.step for point in points] == list(range(5))


def test_two_fits_on_one_logger_are_two_trainings(own_mlflow: Path) -> None:
    logger = MLFlowLogger(experiment_name="lightning", tracking_uri=mlflow.get_tracking_uri())
    for _ in range(2):
        fit(own_mlflow, callbacks=(DynamicsCallback(),), logger=logger)
    (nested,) = mlflow.search_runs(
        experiment_names=["lightning"],
        filter_string=f"tags.`mlflow.parentRunId` = '{logger.run_id}'",
        output_format="list",
    )
    for run_id in (logger.run_id, nested.info.run_id):
        points = mlflow.MlflowClient().get_metric_history(run_id, names.STABILITY)
        assert [point.step for point in points] == list(range(EPOCHS))
        assert mlflow_dynamics.load_activations(run_id).num_rows == EPOCHS * STEPS * 2
    assert nested.info.status == "FINISHED"


def test_an_unknown_detector_is_refused_when_the_callback_is_made() -> None:
    with pytest.raises(ConfigError, match="detector='nope' is not known; accepted: volatility"):
        DynamicsCallback(warning=WarningConfig(detector="nope"))
