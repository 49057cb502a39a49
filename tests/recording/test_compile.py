"""Compiled models: no graph break and no recompile of ours, and the right values, from dynamo's own counters."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from recording_reference import batches, compiled_and_broken, counters, forget_compiled, sgd, small_cnn, train
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mlflow_dynamics.config import RecordingConfig
from mlflow_dynamics.recording import Recorder

# torch's own, when it compiles a part of a model that is fed by another part
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

Call = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    forget_compiled()
    yield
    forget_compiled()


def whole(model: nn.Sequential, backend: str) -> Call:
    return torch.compile(model, backend=backend)


def in_place(model: nn.Sequential, backend: str) -> Call:
    model.compile(backend=backend)
    return model


def by_parts(model: nn.Sequential, backend: str) -> Call:
    model[3] = torch.compile(model[3], backend=backend)
    model[0].compile(backend=backend)
    return model


def as_function(model: nn.Sequential, backend: str) -> Call:
    return torch.compile(lambda images: model(images), backend=backend)


WAYS = {
    "torch.compile(model)": whole,
    "model.compile()": in_place,
    "by parts": by_parts,
    "function": as_function,
}


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(432, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.outlet = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.outlet(checkpoint(self.block, self.inlet(x.flatten(1)), use_reentrant=False))


def evaluate(call: Call, model: nn.Module) -> None:
    model.eval()
    with torch.no_grad():
        call(batches(1, seed=5)[0][0])
    model.train()


def session(call: Call, model: nn.Module, sizes: tuple[int, ...] = (12, 12, 12)) -> list[float]:
    """Two epochs with an evaluation after each and batches of these sizes."""
    optimizer = sgd(model)
    losses = []
    for epoch in range(2):
        data = [batches(1, size=size, seed=10 * epoch + k)[0] for k, size in enumerate(sizes)]
        losses += train(model, optimizer, data, call=call)
        evaluate(call, model)
    return losses


def bare(
    make: Callable[[], nn.Module], way: Callable[..., Call], sizes: tuple[int, ...]
) -> tuple[list[float], int]:
    model = make()
    losses = session(way(model, "aot_eager"), model, sizes)
    graphs, _ = compiled_and_broken()
    forget_compiled()
    return losses, graphs


def eager_record(make: Callable[[], nn.Module], sizes: tuple[int, ...]) -> np.ndarray:
    model = make()
    with Recorder(model, RecordingConfig()) as recorder:
        session(model, model, sizes)
        return recorder.end_epoch(0).result().mean


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("way", WAYS)
def test_no_break_no_recompile_right_values(way: str, when: str) -> None:
    sizes = (12, 12, 12)
    losses, graphs = bare(small_cnn, WAYS[way], sizes)
    expected = eager_record(small_cnn, sizes)
    model = small_cnn()
    if when == "before":  # the model is compiled before it is recorded
        call = WAYS[way](model, "aot_eager")
        recorder = Recorder(model, RecordingConfig())
    else:
        recorder = Recorder(model, RecordingConfig())
        call = WAYS[way](model, "aot_eager")
    with recorder:
        counters.clear()
        recorded_losses = session(call, model, sizes)
        assert compiled_and_broken() == (graphs, 0)
        epoch = recorder.end_epoch(0).result()
    assert recorded_losses == losses
    np.testing.assert_allclose(epoch.mean, expected, rtol=1e-5, atol=1e-6)
    assert [layer.name for layer in epoch.layers] == ["0", "3", "6"]
    assert [layer.output_shape for layer in epoch.layers] == [(6, 10, 10), (4, 4, 4), (5,)]


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_already_ran_compiled_is_recorded(way: str) -> None:
    model = small_cnn()
    call = WAYS[way](model, "aot_eager")
    optimizer = sgd(model)
    train(model, optimizer, batches(3), call=call)
    graphs, _ = compiled_and_broken()
    with Recorder(model, RecordingConfig()) as recorder:
        counters.clear()
        train(model, optimizer, batches(3), call=call)
        epoch = recorder.end_epoch(0).result()
        assert compiled_and_broken() == (graphs, 0)  # each graph once more, and never again
    assert epoch.step.tolist() == [0, 1, 2]
    assert np.isfinite(epoch.mean).all()


def test_a_second_recorder_on_a_compiled_model_records_too() -> None:
    model = small_cnn()
    call = torch.compile(model, backend="aot_eager")
    for _ in range(2):
        with Recorder(model, RecordingConfig()) as recorder:
            train(model, sgd(model), batches(2), call=call)
            assert np.isfinite(recorder.end_epoch(0).result().mean).all()


@pytest.mark.parametrize("sizes", [(12, 12, 5), (12, 9, 5, 10, 3, 12)])
def test_smaller_batches_cause_no_recompile_of_ours(sizes: tuple[int, ...]) -> None:
    losses, graphs = bare(small_cnn, whole, sizes)
    expected = eager_record(small_cnn, sizes)
    model = small_cnn()
    with Recorder(model, RecordingConfig()) as recorder:
        assert session(whole(model, "aot_eager"), model, sizes) == losses
        assert compiled_and_broken() == (graphs, 0)
        epoch = recorder.end_epoch(0).result()
    np.testing.assert_allclose(epoch.mean, expected, rtol=1e-5, atol=1e-6)


def test_checkpointing_inside_a_compiled_model_counts_once() -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return Checkpointed()

    sizes = (12, 12)
    losses, graphs = bare(make, whole, sizes)
    expected = eager_record(make, sizes)
    model = make()
    with Recorder(model, RecordingConfig()) as recorder:
        assert session(whole(model, "aot_eager"), model, sizes) == losses
        assert compiled_and_broken() == (graphs, 0)
        epoch = recorder.end_epoch(0).result()
    np.testing.assert_allclose(epoch.mean, expected, rtol=1e-5, atol=1e-6)
    assert (epoch.std > 0).all()


def test_record_every_needs_no_second_graph() -> None:
    model = small_cnn()
    call = torch.compile(model, backend="aot_eager")
    with Recorder(model, RecordingConfig(record_every=2)) as recorder:
        train(model, sgd(model), batches(5), call=call)
        assert compiled_and_broken() == (1, 0)
        assert recorder.end_epoch(0).result().step.tolist() == [0, 2, 4]


def test_fullgraph_is_kept() -> None:
    model = small_cnn()
    with Recorder(model, RecordingConfig()) as recorder:
        train(model, sgd(model), batches(2), call=torch.compile(model, backend="aot_eager", fullgraph=True))
        assert recorder.end_epoch(0).result().step.tolist() == [0, 1]


def test_a_compiled_optimizer_step_is_counted_and_not_compiled_anew() -> None:
    graphs = []
    for recorded in (False, True):
        forget_compiled()
        model = small_cnn()
        optimizer = sgd(model)
        step = torch.compile(optimizer.step, backend="eager")
        recorder = Recorder(model, RecordingConfig()) if recorded else None
        for images, targets in batches(12):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), targets).backward()
            step()
        graphs.append(counters["stats"]["unique_graphs"])
        if recorder is not None:
            assert recorder.end_epoch(0).result().step.tolist() == list(range(12))
            recorder.remove()
    assert graphs[0] == graphs[1] > 0


@pytest.mark.slow
def test_inductor_losses_and_weights_are_those_of_the_bare_model() -> None:
    data = batches(6)
    results = []
    for recorded in (False, True):
        forget_compiled()
        model = small_cnn()
        call = torch.compile(model)
        recorder = Recorder(model, RecordingConfig()) if recorded else None
        losses = train(model, sgd(model), data, call=call)
        results.append((losses, [p.detach().clone() for p in model.parameters()], compiled_and_broken()))
        if recorder is not None:
            epoch = recorder.end_epoch(0).result()
            recorder.remove()
    assert results[0][0] == results[1][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))
    assert results[0][2] == results[1][2] == (1, 0)
    model = small_cnn()
    with Recorder(model, RecordingConfig()) as recorder:
        train(model, sgd(model), data)
        eager = recorder.end_epoch(0).result()
    np.testing.assert_allclose(epoch.mean, eager.mean, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(epoch.std, eager.std, rtol=1e-3, atol=1e-5)
