"""Which of several models and optimizers is recorded, for how long, and what is let go of."""

from __future__ import annotations

import copy
import gc
import logging
import multiprocessing
import threading
import time
import weakref

import mlflow
import pytest
import torch
from small_training import STEPS, epochs_of, loader, network, runs, sgd, step, train
from torch import nn

import mlflow_dynamics
from mlflow_dynamics.autologging import trainings as heard
from mlflow_dynamics.loop import trainings
from mlflow_dynamics.recording.discovery import SearchTime
from mlflow_dynamics.recording.hooks import is_ours
from mlflow_dynamics.tracking import load_activations, load_layers, names

pytestmark = pytest.mark.usefixtures("autologged")


def test_an_optimizer_for_a_known_model_costs_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    searches: list[object] = []
    search = heard.models_of
    monkeypatch.setattr(heard, "models_of", lambda one: searches.append(one) or search(one))
    model, batches = network(), loader()
    for _ in range(2):
        for images, targets in batches:
            step(model, sgd(model), images, targets)
    each = [torch.optim.SGD([parameter], lr=0.1) for parameter in model.parameters()]
    mlflow_dynamics.autolog(disable=True)
    assert len(searches) == 1
    assert len(each) == 4
    assert epochs_of(runs()["ours"]) == 2


def test_when_the_search_takes_too_long_it_is_given_up_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mlflow_dynamics.recording.discovery.SEARCH_S", -1.0)
    with caplog.at_level(logging.WARNING, "mlflow_dynamics"):
        for _ in range(3):
            sgd(network())
    assert [line.message.partition(",")[0] for line in caplog.records] == [
        "The script makes optimizers for new models all the time"
    ]


def test_the_run_of_an_open_tracker_is_not_joined() -> None:
    tracker = mlflow_dynamics.track(network())
    model = network()
    train(model, sgd(model), loader(), epochs=2)
    mlflow_dynamics.autolog(disable=True)
    assert mlflow.active_run().info.run_id == tracker.run_id
    tracker.close()
    found = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert {run.info.run_id == tracker.run_id: epochs_of(run) for run in found} == {True: 0, False: 2}


def test_waiting_for_the_processor_is_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlflow_dynamics.recording.discovery.SEARCH_S", 0.05)
    monkeypatch.setattr("mlflow_dynamics.recording.discovery.SEARCH_SHARE", 0.0)
    search = SearchTime()
    with search:
        time.sleep(0.2)
    assert search.allowed()
    with search:
        until = time.thread_time() + 0.1
        while time.thread_time() < until:
            pass
    assert not search.allowed()


def test_models_that_are_trained_for_a_moment_are_not_kept_alive_and_their_copies_carry_nothing() -> None:
    model, batches = network(), loader()
    optimizer = sgd(model)
    train(model, optimizer, batches, 2)
    images, targets = next(iter(batches))
    clones = []
    clone = model
    for _ in range(10):
        clone = copy.deepcopy(clone)
        clones.append(weakref.ref(clone))
        own = sgd(clone)
        step(clone, own, images, targets)
    assert sum(is_ours(hook) for hook in clone[0]._forward_hooks.values()) <= 1
    del own, clone
    sgd(model)
    gc.collect()
    assert sum(reference() is not None for reference in clones) <= 1


def test_a_training_that_is_lost_ends_its_run_and_the_next_has_its_own() -> None:
    first, second, batches = network(), network(), loader()
    one, other = sgd(first), sgd(second)
    train(first, one, batches, 3)
    images, targets = next(iter(batches))
    held = [(images, targets)] * 4 * STEPS
    for batch in held:
        step(first, one, *batch)
    train(second, other, batches, 4)
    mlflow_dynamics.autolog(disable=True)
    found = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert sorted(epochs_of(run) for run in found)[-1] == 4
    assert [run.info.status for run in found] == ["FINISHED"] * 2


@pytest.mark.parametrize("kept", [False, True], ids=["optimizers let go", "optimizers kept"])
def test_trainings_of_one_epoch_each_have_their_own_runs(kept: bool) -> None:
    optimizers = []
    for seed in range(3):
        model = network()
        optimizer = sgd(model)
        train(model, optimizer, loader(seed), 1)
        if kept:
            optimizers.append(optimizer)
    mlflow_dynamics.autolog(disable=True)
    found = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert [epochs_of(run) for run in found] == [1, 1, 1]
    assert {run.info.status for run in found} == {"FINISHED"}


def test_a_second_optimizer_for_the_model_keeps_its_run_where_the_first_is_gone() -> None:
    model, batches = network(), loader()
    for _ in range(2):
        optimizer = sgd(model)
        train(model, optimizer, batches, 2)
        del optimizer
    mlflow_dynamics.autolog(disable=True)
    assert epochs_of(runs()["ours"]) == 4


def test_a_model_whose_training_is_over_is_gone_when_the_next_begins() -> None:
    def train_one() -> weakref.ref[nn.Module]:
        model = network()
        train(model, sgd(model), loader(), 2)
        return weakref.ref(model)

    first = train_one()
    second = network()
    optimizer = sgd(second)
    gc.collect()
    assert first() is None
    assert optimizer is not None


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_what_a_forked_process_trains_has_a_run_of_its_own_and_the_parents_goes_on() -> None:
    def train_another(epochs: int) -> None:
        other = network()
        train(other, sgd(other), loader(1), epochs)

    model, batches = network(), loader()
    optimizer = sgd(model)
    train(model, optimizer, batches, 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    try:
        child = multiprocessing.get_context("fork").Process(target=train_another, args=(3,))
        child.start()
        child.join(100)
    finally:
        torch.set_num_threads(threads)
    assert child.exitcode == 0
    train(model, optimizer, batches, 1)
    mlflow_dynamics.autolog(disable=True)
    found = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert sorted(epochs_of(run) for run in found) == [2, 3]
    assert {run.info.status for run in found} == {"FINISHED"}


class Layers(nn.Module):
    """Made of another model's layers."""

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        self.layers = nn.ModuleList(model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("old", [True, False], ids=["the first made", "the last made"])
def test_of_two_modules_with_the_same_layers_the_one_that_is_called_is_recorded(
    old: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """`nn.Sequential(*resnet.children())`, while the name still holds the other."""
    with caplog.at_level(logging.INFO, "mlflow_dynamics"):
        first = network()
        second = Layers(first)
        called = first if old else second
        train(called, sgd(called), loader(), 3)
        mlflow_dynamics.autolog(disable=True)
    run = runs()["ours"]
    assert [layer.name for layer in load_layers(run.info.run_id)] == (
        ["0", "2"] if old else ["layers.0", "layers.2"]
    )
    assert epochs_of(run) == 3
    assert len(mlflow.MlflowClient().get_metric_history(run.info.run_id, names.TRAIN_LOSS)) >= 2
    assert "One optimizer trains" not in caplog.text


def test_a_first_epoch_without_an_end_is_mentioned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trainings, "LONG_EPOCH", STEPS)
    with caplog.at_level(logging.INFO, "mlflow_dynamics"):
        train(model := network(), sgd(model), loader(), 1)
    assert f"Sequential has made {STEPS} steps, and its first epoch is not over" in caplog.text
    assert "tracker.epoch(n)" in caplog.text


def test_of_two_models_in_one_optimizer_the_larger_is_recorded_and_the_line_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "mlflow_dynamics"):
        body, head = network(), nn.Linear(3, 3)
        optimizer = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.01)
        for _ in range(2):
            for images, targets in loader():
                optimizer.zero_grad()
                nn.functional.cross_entropy(head(body(images)), targets).backward()
                optimizer.step()
        mlflow_dynamics.autolog(disable=True)
    said = [line.message for line in caplog.records]
    assert "One optimizer trains Sequential and Linear: only Sequential can be recorded." in said
    assert epochs_of(runs()["ours"]) == 2


class Averaged(nn.Module):
    """As ema_pytorch's: holds the model that is trained, and its average, and is called in validation at most."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.online = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.average(images)
        return output


def test_a_model_inside_a_module_that_is_never_called_is_recorded_itself() -> None:
    model = network()
    averaged = Averaged(model)
    optimizer = sgd(model)
    losses = []
    for _ in range(3):
        model.train()
        for images, targets in loader():
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            for images, targets in loader(1):
                nn.functional.cross_entropy(model(images), targets)
                averaged(images)
    mlflow_dynamics.autolog(disable=True)
    run = runs()["ours"]
    activations = load_activations(run.info.run_id).to_pandas()
    assert activations.groupby(["epoch", "layer"]).size().tolist() == [STEPS - 1] * 2 + [STEPS] * 4
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, names.TRAIN_LOSS)
    expected = {epoch: sum(losses[epoch * STEPS : (epoch + 1) * STEPS]) / STEPS for epoch in (1, 2)}
    assert {point.step: point.value for point in history} == pytest.approx(expected)
    assert names.VALIDATION_LOSS in run.data.metrics


def test_trainings_in_two_threads_do_not_hear_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainings, "RIVAL_STEPS", 1000)
    together = threading.Barrier(2, timeout=60)
    losses: dict[int, list[float]] = {}

    def training(seed: int) -> None:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        optimizer, batches = sgd(model), loader(seed)
        losses[seed] = []
        for _ in range(3):
            total = 0.0
            for images, targets in batches:
                together.wait()
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(images), targets)
                loss.backward()
                optimizer.step()
                total += loss.item() * len(targets)
            losses[seed].append(total / (4 * STEPS))

    threads = [threading.Thread(target=training, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    mlflow_dynamics.autolog(disable=True)
    run = runs()["ours"]
    points = mlflow.MlflowClient().get_metric_history(run.info.run_id, names.TRAIN_LOSS)
    logged = [point.value for point in sorted(points, key=lambda point: point.step)]
    assert any(logged == pytest.approx(own, rel=1e-6) for own in losses.values())
    assert load_activations(run.info.run_id).num_rows == 3 * STEPS * 2


def test_a_training_may_go_from_thread_to_thread() -> None:
    model, batches = network(), loader()
    optimizer = sgd(model)
    for _ in range(2):
        thread = threading.Thread(target=train, args=(model, optimizer, batches, 1))
        thread.start()
        thread.join()
        train(model, optimizer, batches, 1)
    mlflow_dynamics.autolog(disable=True)
    (run,) = runs().values()
    found = load_activations(run.info.run_id).to_pandas()
    assert found.groupby("epoch")["step"].nunique().tolist() == [STEPS] * 4
    assert len(mlflow.MlflowClient().get_metric_history(run.info.run_id, names.TRAIN_LOSS)) == 4
