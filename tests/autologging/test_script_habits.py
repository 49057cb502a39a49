"""What scripts do beside their loop: runs of their own, copies, TorchScript, another default type, logging."""

from __future__ import annotations

import contextlib
import copy
import logging
import sys
import time
from collections.abc import Iterator
from types import ModuleType

import mlflow
import pytest
import torch
from small_training import STEPS, epochs_of, loader, network, runs, sgd, step, train
from torch import nn
from torch.utils.data import DataLoader

import mlflow_dynamics
from mlflow_dynamics.tracking import load_activations, names

pytestmark = pytest.mark.usefixtures("autologged")


def train_until_the_run_is_active(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: DataLoader
) -> mlflow.ActiveRun:
    """MLflow creates a run in the background, and a step makes it the active one."""
    deadline = time.monotonic() + 30
    while mlflow.active_run() is None and time.monotonic() < deadline:
        train(model, optimizer, batches, 1)
        time.sleep(0.05)
    run = mlflow.active_run()
    assert run is not None
    return run


@pytest.mark.parametrize("active", [False, True], ids=["created soon", "active meanwhile"])
def test_a_run_that_the_script_starts_after_its_training_is_its_own(active: bool) -> None:
    model, batches = network(), loader()
    optimizer = sgd(model)
    train(model, optimizer, batches, 2)
    if active:
        train_until_the_run_is_active(model, optimizer, batches)
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


@pytest.fixture
def script() -> Iterator[ModuleType]:
    """A script's module, with what it has imported before `autolog()`."""
    mlflow_dynamics.autolog(disable=True)
    module = ModuleType("imported_before")
    exec("from mlflow import start_run as begin", vars(module))
    exec("from torch.nn.functional import cross_entropy as criterion", vars(module))
    sys.modules["imported_before"] = module
    mlflow_dynamics.autolog()
    yield module
    mlflow_dynamics.autolog(disable=True)
    del sys.modules["imported_before"]
    assert module.begin is mlflow.start_run
    assert module.criterion is nn.functional.cross_entropy


def test_start_run_that_was_imported_before_autolog_is_known_too(script: ModuleType) -> None:
    model, batches = network(), loader()
    optimizer = sgd(model)
    train(model, optimizer, batches, 2)
    with script.begin(run_name="mine"):
        train(model, optimizer, batches, 3)
        mlflow_dynamics.autolog(disable=True)
    assert {name: epochs_of(run) for name, run in runs().items()} == {"ours": 2, "mine": 3}


def test_a_criterion_that_was_imported_before_autolog_is_known_too(script: ModuleType) -> None:
    model = network()
    optimizer = sgd(model)
    losses = []
    for _ in range(2):
        for images, targets in loader():
            optimizer.zero_grad()
            loss = script.criterion(model(images), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    mlflow_dynamics.autolog(disable=True)
    assert runs()["ours"].data.metrics[names.TRAIN_LOSS] == pytest.approx(sum(losses[-STEPS:]) / STEPS)


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


def test_steps_in_evaluation_mode_are_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mlflow_dynamics")
    model = network()
    optimizer = sgd(model)
    train(model, optimizer, loader(), epochs=1)
    model.eval()
    train(model, optimizer, loader(), epochs=2)
    mlflow_dynamics.autolog(disable=True)
    assert epochs_of(runs()["ours"]) == 1
    assert [line for line in caplog.messages if "evaluation mode" in line] == [
        "Steps of Sequential are made in evaluation mode and are not recorded: call model.train() before each epoch."
    ]


def test_a_compiled_optimizer_step_is_recorded_and_its_training_the_same() -> None:
    def trained(*, recorded: bool) -> tuple[list[float], torch.Tensor, int]:
        torch._dynamo.reset()
        if recorded:
            mlflow_dynamics.autolog()
        model, batches = network(), loader()
        optimizer = torch.optim.Adam(model.parameters())
        compiled = torch.compile(lambda: optimizer.step(), backend="eager")
        torch._dynamo.utils.counters.clear()
        losses = []
        for images, targets in [*batches, *batches]:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), targets)
            loss.backward()
            compiled()
            losses.append(loss.item())
        mlflow_dynamics.autolog(disable=True)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        return losses, torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), graphs

    mlflow_dynamics.autolog(disable=True)
    bare, weights, graphs = trained(recorded=False)
    losses, others, graphs_recorded = trained(recorded=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert losses == bare
    assert torch.equal(weights, others)
    assert graphs_recorded == graphs


def test_a_run_of_ours_that_the_script_ends_is_over_and_what_follows_has_its_own() -> None:
    model, batches = network(), loader()
    optimizer = sgd(model)
    train(model, optimizer, batches, 2)
    ours = train_until_the_run_is_active(model, optimizer, batches)
    mlflow.end_run()
    assert mlflow.active_run() is None
    ended = mlflow.get_run(ours.info.run_id)
    assert ended.info.status == "FINISHED"
    train(model, optimizer, batches, 2)
    mlflow_dynamics.autolog(disable=True)
    again = mlflow.get_run(ours.info.run_id)
    assert (again.info.end_time, epochs_of(again)) == (ended.info.end_time, epochs_of(ended))
    (other,) = [
        run
        for run in mlflow.search_runs(search_all_experiments=True, output_format="list")
        if run.info.run_id != ours.info.run_id
    ]
    assert epochs_of(other) == 2


def test_nested_runs_of_one_model_hold_each_their_own_epochs() -> None:
    model, batches = network(), loader()
    with mlflow.start_run():
        for name in ("first", "second"):
            optimizer = sgd(model)
            with mlflow.start_run(run_name=name, nested=True):
                train(model, optimizer, batches, 2)
    mlflow_dynamics.autolog(disable=True)
    found = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert {run.info.run_name: epochs_of(run) for run in found if "mlflow.parentRunId" in run.data.tags} == {
        "first": 2,
        "second": 2,
    }


def test_a_run_that_fails_in_an_epoch_does_not_hold_a_part_of_it() -> None:
    model, batches = network(), loader()
    optimizer = sgd(model)
    with contextlib.suppress(ValueError), mlflow.start_run(run_name="mine"):
        train(model, optimizer, batches, 2)
        for index, (images, targets) in enumerate(batches):
            step(model, optimizer, images, targets)
            if index == 2:
                raise ValueError("in the middle")
    mlflow_dynamics.autolog(disable=True)
    assert epochs_of(runs()["mine"]) == 2


def test_extra_tags_are_on_the_runs_that_are_made_and_on_none_of_the_script() -> None:
    for own in (False, True):
        mlflow_dynamics.autolog(extra_tags={"team": "vision"})
        model, batches = network(), loader()
        with mlflow.start_run(run_name="mine") if own else contextlib.nullcontext():
            train(model, sgd(model), batches, 2)
        mlflow_dynamics.autolog(disable=True)
    found = runs()
    assert epochs_of(found["mine"]) == epochs_of(found["ours"]) == 2
    assert found["ours"].data.tags["team"] == "vision"
    assert "team" not in found["mine"].data.tags
