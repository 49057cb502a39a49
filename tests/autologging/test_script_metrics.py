"""Where the script logs a key of ours itself, its values stand alone."""

from __future__ import annotations

import logging
from collections.abc import Callable

import mlflow
import pytest
import torch
from loops import evaluate, train_batch
from mlflow import MlflowClient
from mlflow.entities import Metric
from recorded import records
from witness import Witness, loader, net, sgd

import mlflow_dynamics

EPOCHS = 4


def by_name(key: str, value: float, epoch: int) -> None:
    mlflow.log_metric(key, value, step=epoch)


def by_dictionary(key: str, value: float, epoch: int) -> None:
    mlflow.log_metrics({key: value, "other": 1.0}, step=epoch)


def by_client(key: str, value: float, epoch: int) -> None:
    run_id = mlflow.active_run().info.run_id
    MlflowClient().log_batch(run_id=run_id, metrics=[Metric(key, value, 0, epoch)])


def by_keywords(key: str, value: float, epoch: int) -> None:
    MlflowClient().log_metric(key=key, value=value, step=epoch, run_id=mlflow.active_run().info.run_id)


@pytest.mark.parametrize(
    ("log", "own_run"),
    [(by_name, False), (by_name, True), (by_dictionary, True), (by_client, True), (by_keywords, True)],
)
def test_keys_that_the_script_logs_are_its_own(
    log: Callable[[str, float, int], None], own_run: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mlflow_dynamics")
    mlflow_dynamics.autolog()
    w, batches, validation = Witness(net()), loader(), loader(10, seed=2)
    optimizer = sgd(w.model)
    if own_run:
        mlflow.start_run()
    for epoch in range(EPOCHS):
        for x, y in batches:
            train_batch(w, optimizer, x, y, epoch)
        evaluate(w, validation, epoch)
        log("train/loss", 100.0 + epoch, epoch)
    mlflow_dynamics.autolog(disable=True)
    (record,) = records()
    assert record.metric("train/loss") == {epoch: 100.0 + epoch for epoch in range(EPOCHS)}
    points = MlflowClient().get_metric_history(record.run.info.run_id, "train/loss")
    assert len(points) == EPOCHS
    assert record.metric("validation/loss") == pytest.approx(
        {epoch: loss for epoch, (loss, _) in w.validation.items()}, rel=1e-5
    )
    told = [line for line in caplog.messages if "itself" in line]
    assert told == ["The script logs train/loss itself: ours is left out of its run."]


def test_what_is_logged_to_another_run_changes_nothing() -> None:
    mlflow_dynamics.autolog()
    other = MlflowClient().create_run("0").info.run_id
    w, batches = Witness(net()), loader()
    optimizer = sgd(w.model)
    with mlflow.start_run():
        for epoch in range(EPOCHS):
            for x, y in batches:
                train_batch(w, optimizer, x, y, epoch)
            MlflowClient().log_metric(other, "train/loss", 1.0)
        mlflow_dynamics.autolog(disable=True)
    (record,) = records()
    assert record.metric("train/loss") == pytest.approx(
        {epoch: w.train_loss(epoch) for epoch in range(EPOCHS)}, rel=1e-5
    )


def test_an_iterator_of_metrics_and_an_error_reach_mlflow_as_they_are() -> None:
    mlflow_dynamics.autolog()
    client = MlflowClient()
    run_id = client.create_run("0").info.run_id
    client.log_batch(run_id, tuple(Metric(f"m{n}", 1.0, 0, 0) for n in range(2)))
    assert set(client.get_run(run_id).data.metrics) == {"m0", "m1"}
    with pytest.raises(TypeError):
        client.log_metric()
    with pytest.raises(mlflow.MlflowException):
        client.log_metric(run_id, "train/loss", "no number")
    watched = MlflowClient.log_metric
    mlflow_dynamics.autolog(disable=True)
    assert MlflowClient.log_metric is not watched
    assert torch.is_grad_enabled()
