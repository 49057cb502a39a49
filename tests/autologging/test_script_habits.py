"""What scripts do beside their loop: runs of their own, many optimizers, copies, TorchScript, another default type."""

from __future__ import annotations

import copy
import gc
import logging
import sys
import time
import weakref
from collections.abc import Iterator
from types import ModuleType

import mlflow
import pytest
import torch
from mlflow.entities import Run
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mlflow_dynamics
from mlflow_dynamics.autologging import trainings
from mlflow_dynamics.recording.hooks import is_ours
from mlflow_dynamics.tracking import load_activations, names

STEPS = 10


@pytest.fixture(autouse=True)
def _recorded() -> Iterator[None]:
    mlflow_dynamics.autolog()
    yield
    mlflow_dynamics.autolog(disable=True)
    while mlflow.active_run() is not None:
        mlflow.end_run()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def loader(seed: int = 0) -> DataLoader:
    numbers = torch.Generator().manual_seed(seed)
    images = torch.randn(4 * STEPS, 6, generator=numbers)
    return DataLoader(
        TensorDataset(images, torch.randint(0, 3, (4 * STEPS,), generator=numbers)), batch_size=4
    )


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01)


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, targets: torch.Tensor
) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), targets).backward()
    optimizer.step()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, batches: DataLoader, epochs: int) -> None:
    for _ in range(epochs):
        for images, targets in batches:
            step(model, optimizer, images, targets)


def epochs_of(run: Run) -> int:
    return len(mlflow.MlflowClient().get_metric_history(run.info.run_id, names.LEARNING_RATE))


def runs() -> dict[str, Run]:
    found = mlflow.search_runs(search_all_experiments=True, output_format="list")
    return {run.info.run_name if run.info.run_name == "mine" else "ours": run for run in found}


@pytest.mark.parametrize("active", [False, True], ids=["created soon", "active meanwhile"])
def test_a_run_that_the_script_starts_after_its_training_is_its_own(active: bool) -> None:
    model, batches = network(), loader()
    optimizer = sgd(model)
    train(model, optimizer, batches, 2)
    deadline = time.monotonic() + 30
    while active and mlflow.active_run() is None and time.monotonic() < deadline:
        train(model, optimizer, batches, 1)
        time.sleep(0.05)
    assert mlflow.active_run() is not None or not active
    with mlflow.start_run(run_name="mine"):
        mlflow.log_metric("final", 1.0)
    found = runs()
    assert set(found) == {"mine", "ours"}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert epochs_of(found["ours"]) >= 2
    assert found["mine"].data.metrics == {"final": 1.0}


def test_a_training_that_goes_on_in_a_run_of_the_script_is_recorded_there() -> None:
    model, batches = network(), loader()
    optimizer = sgd(model)
    train(model, optimizer, batches, 2)
    with mlflow.start_run(run_name="mine"):
        train(model, optimizer, batches, 3)
        mlflow_dynamics.autolog(disable=True)
    assert {name: epochs_of(run) for name, run in runs().items()} == {"ours": 2, "mine": 3}


def test_a_model_trained_in_two_runs_of_the_script_is_recorded_in_both() -> None:
    model = network()
    for seed, epochs in enumerate((2, 3)):
        with mlflow.start_run():
            train(model, sgd(model), loader(seed), epochs)
    mlflow_dynamics.autolog(disable=True)
    found = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert [epochs_of(run) for run in found] == [3, 2]


def test_a_run_that_the_script_takes_up_again_is_recorded_on() -> None:
    model, batches = network(), loader()
    optimizer = sgd(model)
    with mlflow.start_run() as run:
        train(model, optimizer, batches, 2)
    for _ in range(2):
        with mlflow.start_run(run_id=run.info.run_id):
            train(model, optimizer, batches, 1)
    mlflow_dynamics.autolog(disable=True)
    (found,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert epochs_of(found) == 4


def test_a_nested_run_leaves_ours_open() -> None:
    model, batches = network(), loader()
    optimizer = sgd(model)
    train(model, optimizer, batches, 2)
    with mlflow.start_run(run_name="mine", nested=True):
        pass
    train(model, optimizer, batches, 2)
    mlflow_dynamics.autolog(disable=True)
    assert epochs_of(runs()["ours"]) == 4


def test_of_several_losses_that_are_differentiated_together_none_is_logged() -> None:
    model = network()
    optimizer = sgd(model)
    for _ in range(2):
        for images, targets in loader():
            optimizer.zero_grad()
            output = model(images)
            torch.autograd.backward([nn.functional.cross_entropy(output, targets), output.square().mean()])
            optimizer.step()
    mlflow_dynamics.autolog(disable=True)
    found = runs()["ours"]
    assert epochs_of(found) == 2
    assert names.TRAIN_LOSS not in found.data.metrics


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_model_is_scripted_while_it_is_recorded_and_so_is_its_copy() -> None:
    model, batches = network(), loader()
    original = torch.jit._recursive.create_script_module
    optimizer = sgd(model)
    assert torch.jit._recursive.create_script_module is not original
    train(model, optimizer, batches, 1)
    images, _ = next(iter(batches))
    for module in (model, copy.deepcopy(model)):
        hooks = [dict(part._forward_hooks) for part in module.modules()]
        assert any(hooks)
        assert torch.equal(torch.jit.script(module)(images), model(images))
        assert [dict(part._forward_hooks) for part in module.modules()] == hooks
    train(model, optimizer, batches, 1)
    mlflow_dynamics.autolog(disable=True)
    assert epochs_of(runs()["ours"]) == 2
    assert torch.jit._recursive.create_script_module is original


def test_a_training_in_another_default_type_is_recorded_in_float32() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = network()
        optimizer = sgd(model)
        for _ in range(2):
            for images, targets in loader():
                step(model, optimizer, images.bfloat16(), targets)
        mlflow_dynamics.autolog(disable=True)
    finally:
        torch.set_default_dtype(torch.float32)
    means = load_activations(runs()["ours"].info.run_id, layers=[0])["mean"].to_pylist()
    assert len(means) == 2 * STEPS
    assert any(torch.tensor(mean).bfloat16().item() != mean for mean in means)


def test_an_optimizer_for_a_known_model_costs_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    searches: list[object] = []
    search = trainings.models_of
    monkeypatch.setattr(trainings, "models_of", lambda one: searches.append(one) or search(one))
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


@pytest.mark.parametrize("optimizer_outlives", [False, True])
def test_trainings_of_one_epoch_each_have_their_own_runs(optimizer_outlives: bool) -> None:
    kept = []
    for seed in range(3):
        model = network()
        optimizer = sgd(model)
        train(model, optimizer, loader(seed), 1)
        if optimizer_outlives and seed == 0:
            kept.append(optimizer)
            train(model, optimizer, loader(seed), 1)
            kept.clear()
    mlflow_dynamics.autolog(disable=True)
    found = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert sorted(epochs_of(run) for run in found) == [1, 1, 2 if optimizer_outlives else 1]
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
    assert run.data.metrics[names.TRAIN_LOSS] == pytest.approx(sum(losses[-STEPS:]) / STEPS)
    assert names.VALIDATION_LOSS in run.data.metrics


def test_start_run_that_was_imported_before_autolog_is_known_too() -> None:
    mlflow_dynamics.autolog(disable=True)
    module = ModuleType("imported_before")
    exec("from mlflow import start_run as begin", vars(module))
    sys.modules["imported_before"] = module
    try:
        mlflow_dynamics.autolog()
        model, batches = network(), loader()
        optimizer = sgd(model)
        train(model, optimizer, batches, 2)
        with module.begin(run_name="mine"):
            train(model, optimizer, batches, 3)
            mlflow_dynamics.autolog(disable=True)
        assert module.begin is mlflow.start_run
    finally:
        del sys.modules["imported_before"]
    assert {name: epochs_of(run) for name, run in runs().items()} == {"ours": 2, "mine": 3}


@pytest.mark.parametrize(
    "habit", ["in eval mode", "by hand", "from a function of its own", "not at all", "as always"]
)
def test_where_nothing_can_be_recorded_one_line_says_why(
    habit: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, batches = network(), loader()
    weights = [p.detach().clone().requires_grad_() for p in model.parameters()]
    optimizer = torch.optim.SGD(weights, lr=0.1) if "function" in habit else sgd(model)
    model.train(habit != "in eval mode")
    with caplog.at_level(logging.INFO, "mlflow_dynamics"):
        for images, targets in batches:
            if habit == "not at all":
                model(images)
            elif habit == "by hand":
                nn.functional.cross_entropy(model(images), targets).backward()
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter -= 0.01 * parameter.grad
            elif "function" in habit:
                optimizer.zero_grad()
                nn.functional.cross_entropy(images @ weights[0].T @ weights[2].T, targets).backward()
                optimizer.step()
            else:
                step(model, optimizer, images, targets)
        mlflow_dynamics.autolog(disable=True)
    said = [line.message for line in caplog.records if line.message.startswith("Nothing was recorded")]
    assert len(said) == (habit not in ("not at all", "as always"))
    assert bool(runs()) == (habit == "as always")


def test_a_line_is_shown_once_where_the_script_sets_up_logging_later(
    capfd: pytest.CaptureFixture[str],
) -> None:
    package, root = logging.getLogger("mlflow_dynamics"), logging.getLogger()
    captured, root.handlers = root.handlers, []
    try:
        mlflow_dynamics.autolog()
        package.info("before")
        logging.basicConfig(level=logging.INFO)
        package.info("after")
        mlflow_dynamics.autolog(disable=True)
    finally:
        root.handlers = captured
    shown = capfd.readouterr().err
    assert (shown.count("before"), shown.count("after")) == (1, 1)
