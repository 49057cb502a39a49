"""With recording on, training is bit for bit what it is without; and no failure of ours reaches it."""

from __future__ import annotations

import copy
import io
import logging
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from recording_reference import batches, sgd, small_cnn, train
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mlflow_dynamics.config import RecordingConfig
from mlflow_dynamics.recording import Recorder, hooks, normalisation
from mlflow_dynamics.recording.boundary import ENV_TESTING
from mlflow_dynamics.recording.device_memory import StepHistory


class Augmented(Dataset[tuple[Tensor, int]]):
    """Random images, flipped and shifted at random by the worker's own generator."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(index))
        if torch.rand(()) < 0.5:
            image = image.flip(-1)
        return image + 0.1 * torch.randn(()), index % 5


def with_dropout() -> nn.Sequential:
    model = small_cnn()
    model.insert(5, nn.Dropout(0.4))
    return model


def three_epochs(
    make: Callable[[], nn.Module], *, recorded: bool, workers: int = 0, precision: torch.dtype = torch.float32
) -> tuple[list[float], dict[str, Tensor], Tensor]:
    """Losses, state dict and the random state after three epochs."""
    torch.manual_seed(3)
    model = make().to(precision)
    optimizer = sgd(model)
    handle = Recorder(model, RecordingConfig()) if recorded else None
    loader = DataLoader(Augmented(), batch_size=12, shuffle=True, num_workers=workers)
    losses = []
    for epoch in range(3):
        for images, targets in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images.to(precision)), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if handle is not None:
            handle.end_epoch(epoch).result()
    if handle is not None:
        assert handle.step == 12
        assert handle.failure is None
        handle.remove()
    return losses, model.state_dict(), torch.get_rng_state()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("workers", [0, 2])
def test_three_epochs_are_bitwise_the_same(workers: int, precision: torch.dtype) -> None:
    bare = three_epochs(with_dropout, recorded=False, workers=workers, precision=precision)
    recorded = three_epochs(with_dropout, recorded=True, workers=workers, precision=precision)
    assert bare[0] == recorded[0]
    assert bare[1].keys() == recorded[1].keys()
    assert all(torch.equal(bare[1][name], recorded[1][name]) for name in bare[1])
    assert torch.equal(bare[2], recorded[2])


def test_the_comparison_can_fail() -> None:
    bare = three_epochs(with_dropout, recorded=False)
    other = three_epochs(small_cnn, recorded=False)
    assert bare[0] != other[0]


FAULTS: list[tuple[str, Any, str]] = [
    ("looking at the output", hooks, "first_tensor"),
    ("meeting a layer", hooks.LayerHook, "_meet"),
    ("the reduction", normalisation, "host_moments"),
    ("beginning a forward", hooks.ForwardPass, "_begin"),
    ("whose optimizer it is", Recorder, "_owns"),
    ("storing a step", StepHistory, "append"),
    ("handing over the epoch", StepHistory, "take"),
]


@pytest.mark.parametrize(("where", "owner", "name"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_fault_of_ours_stops_recording_and_not_training(
    where: str, owner: Any, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bare = small_cnn()
    losses = train(bare, sgd(bare), batches(4))
    model = small_cnn()
    handle = Recorder(model, RecordingConfig())

    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError(f"injected: {where}")

    monkeypatch.delenv(ENV_TESTING)

    monkeypatch.setattr(owner, name, broken)
    with caplog.at_level(logging.ERROR, "mlflow_dynamics"):
        assert train(model, sgd(model), batches(4)) == losses
        pending = handle.end_epoch(0)
        handle.end_epoch(1)
    assert [record.getMessage() for record in caplog.records] == [
        "Recording stopped after an internal error; training goes on unrecorded."
    ]
    assert "injected" in str(handle.failure)
    assert pending.steps == []
    assert not model._forward_pre_hooks
    assert not any(module._forward_hooks for module in model.modules())


def test_a_fault_of_ours_is_raised_where_we_test(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("injected")

    _, owner, name = FAULTS[0]
    model = small_cnn()
    handle = Recorder(model, RecordingConfig())
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(RuntimeError, match="injected"):
        train(model, sgd(model), batches(1))
    assert "injected" in str(handle.failure)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_fault_while_compiling_stops_recording_and_not_training(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bare = small_cnn()
    losses = train(bare, sgd(bare), batches(3))
    model = small_cnn()
    handle = Recorder(model, RecordingConfig())

    monkeypatch.delenv(ENV_TESTING)

    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("injected")

    # Dynamo gives up on what raises, and runs it as it is.
    monkeypatch.setattr(hooks, "moments", broken)
    monkeypatch.setattr(normalisation, "host_moments", broken)
    torch._dynamo.reset()
    with caplog.at_level(logging.ERROR, "mlflow_dynamics"):
        assert train(model, sgd(model), batches(3), call=torch.compile(model, backend="eager")) == losses
    torch._dynamo.reset()
    assert handle.failure is not None
    assert len([record for record in caplog.records if record.name.startswith("mlflow_dynamics")]) == 1


def test_data_parallel_on_several_devices_is_declined_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Replicas are torch's own; only the sending to GPUs, which are not here, is left out of making them."""
    monkeypatch.setattr(
        sys.modules["torch.nn.parallel.replicate"],
        "_broadcast_coalesced_reshape",
        lambda tensors, devices, detach=False: [list(tensors) for _ in devices],
    )

    def training(recorded: bool) -> tuple[list[float], Recorder | None]:
        model = small_cnn()
        handle = Recorder(model, RecordingConfig()) if recorded else None

        def scattered(images: Tensor) -> Tensor:
            replicas = torch.nn.parallel.replicate(model, [0, 1])
            parts = images.chunk(2)
            return torch.cat([replica(part) for replica, part in zip(replicas, parts, strict=True)])

        return train(model, sgd(model), batches(3), call=scattered), handle

    losses, _ = training(recorded=False)
    with caplog.at_level(logging.ERROR, "mlflow_dynamics"):
        assert training(recorded=True)[0] == losses
    (line,) = caplog.records
    assert line.exc_info is not None
    assert "DataParallel on several GPUs" in str(line.exc_info[1])


def test_a_users_own_error_passes_through_unchanged() -> None:
    model = small_cnn()
    with Recorder(model, RecordingConfig()) as handle:
        with pytest.raises(RuntimeError, match=r"shape|channels"):
            model(torch.ones(2, 5, 12, 12))
        train(model, sgd(model), batches(2))
        assert handle.end_epoch(0).result().step.tolist() == [0, 1]
        assert handle.failure is None


def test_copies_made_while_recording_are_silent_and_know_nothing_of_us() -> None:
    model = small_cnn()
    optimizer = sgd(model)
    with Recorder(model, RecordingConfig()) as handle:
        train(model, optimizer, batches(1))
        copied = copy.deepcopy(model)
        averaged = torch.optim.swa_utils.AveragedModel(model)
        pickled = pickle.dumps(model)
        assert b"mlflow_dynamics" not in pickled
        loaded = pickle.loads(pickled)
        images, _ = batches(1)[0]
        loss = nn.functional.cross_entropy(model(images), batches(1)[0][1])
        for other in (copied, averaged, loaded):
            other.train()
            other(images * 100)  # a forward of a copy between ours and the step
        loss.backward()
        optimizer.step()
        averaged.update_parameters(model)
        epoch = handle.end_epoch(0).result()
    expected = small_cnn()
    with Recorder(expected, RecordingConfig()) as plain:
        train(expected, sgd(expected), [batches(1)[0], batches(1)[0]])
        assert (plain.end_epoch(0).result().mean == epoch.mean).all()


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_after_training_there_is_no_trace() -> None:
    model = small_cnn()
    keys = list(model.state_dict())
    with Recorder(model, RecordingConfig()):
        train(model, sgd(model), batches(2))
        assert list(model.state_dict()) == keys
    stored = io.BytesIO()
    torch.save(model, stored)
    assert b"mlflow_dynamics" not in stored.getvalue()
    model.eval()
    images, _ = batches(1)[0]
    expected = model(images)
    scripted = torch.jit.script(model)
    assert torch.equal(scripted(images), expected)
    exported = torch.export.export(model, (images,))
    assert "moments" not in exported.graph_module.code
    assert torch.allclose(exported.module()(images), expected)
    assert vars(copy.deepcopy(model)).keys() == vars(model).keys()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit")
def test_examining_the_model_while_recording_is_neither_disturbed_nor_recorded() -> None:
    model = small_cnn()
    optimizer = sgd(model)
    images, _ = batches(1)[0]
    with Recorder(model, RecordingConfig()) as handle:
        traced = torch.jit.trace(model, (images,), check_trace=False)
        assert "var_mean" not in str(traced.graph)
        linear = model[6]
        rows = torch.vmap(lambda row: linear(row))(torch.ones(4, 64))
        assert rows.shape == (4, 5)
        with torch._subclasses.fake_tensor.FakeTensorMode(allow_non_fake_inputs=True) as fake:
            model(fake.from_tensor(images))
        assert handle.failure is None
        assert handle.end_epoch(0).result().step.size == 0
        train(model, optimizer, batches(1))
        assert handle.end_epoch(1).result().step.tolist() == [0]


def test_selective_checkpointing_sees_none_of_our_operations() -> None:
    from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

    seen: list[str] = []

    def policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        seen.append(str(operation))
        return CheckpointPolicy.MUST_SAVE

    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(600, 5))
    optimizer = sgd(model)
    with Recorder(model, RecordingConfig()) as handle:
        images, targets = batches(1)[0]
        output = checkpoint(
            model,
            images,
            use_reentrant=False,
            context_fn=lambda: create_selective_checkpoint_contexts(policy),
        )
        nn.functional.cross_entropy(output, targets).backward()
        optimizer.step()
        epoch = handle.end_epoch(0).result()
    assert handle.failure is None
    assert epoch.mean.shape == (2, 1)
    assert seen
    assert not [name for name in seen if "var_mean" in name or "foreach" in name]
