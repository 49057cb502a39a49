"""Moments taken from a norm beside the same outputs read and computed in double precision: one record, one training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recording_reference import batches, sgd, statistics, train
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from mlflow_dynamics.config import RecordingConfig
from mlflow_dynamics.recording import Recorder, normalisation

pytestmark = pytest.mark.skipif(
    not normalisation.NORMS_TELL, reason="this torch does not tell what it takes to get moments from norms"
)

STEPS = 5
LAST_DIGIT = 2.0**-22
"""Of float32, relative."""


class Net(nn.Module):
    """A convolution, what is done with its output up to the norm, and a head."""

    def __init__(
        self,
        between: Callable[[Tensor, int], Tensor] = lambda y, step: y,
        norm: nn.Module | None = None,
        call: Callable[[nn.Module, Tensor, int], Tensor] = lambda norm, y, step: norm(y),
    ) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6) if norm is None else norm
        self.head = nn.LazyLinear(5)
        self.between, self.call, self.step = between, call, 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.between(self.layer(x), self.step)
        y = torch.relu_(self.call(self.norm, y, self.step))
        self.step += 1
        return self.head(y.flatten(1))


def writes(how: str) -> Callable[[Tensor, int], Tensor]:
    """Something that writes to the output, from the third step on."""

    def write(y: Tensor, step: int) -> Tensor:
        if step < 2:
            return y
        if how == "in place":
            return y.mul_(3)
        if how == "a part":
            y[:, :2] += 3
        elif how == "data":
            y.data.mul_(3)
        else:
            y.detach().numpy()[...] *= 3
        return y

    return write


def freed(y: Tensor, step: int) -> Tensor:
    """From the third step on the output is gone, and its memory may be another's, when the norm is called."""
    if step < 2:
        return y
    y = y.mean((2, 3), keepdim=True).expand(y.shape)
    return torch.empty_like(y).copy_(y)


def frozen_from(first: int) -> Callable[[nn.Module, Tensor, int], Tensor]:
    def call(norm: nn.Module, y: Tensor, step: int) -> Tensor:
        return norm.train(step < first)(y)

    return call


def unit(size: float) -> Callable[[], nn.Module]:
    """A layer whose output is of this size."""

    def make() -> nn.Module:
        model = Net()
        model.layer.weight.data *= size
        model.layer.bias.data *= size
        return model

    return make


class Shrinking(Net):
    """From the third step on the layer's output is so small that a norm's eps hides its variance."""

    def forward(self, x: Tensor) -> Tensor:
        if self.step == 2:
            for parameter in self.layer.parameters():
                parameter.data *= 1e-5
        return super().forward(x)


def constant_channel() -> nn.Module:
    model = Net()
    model.layer.weight.data[:2] = 0
    return model


def offset(size: float) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = Net()
        model.layer.bias.data += size
        return model

    return make


class Shared(nn.Module):
    """One layer and one norm, called twice, and the layer once more without a norm."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(432, 5)
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = torch.relu(self.norm(self.layer(x)))
        return self.head((self.layer(x) if self.again else x).flatten(1))


class Compressing(nn.BatchNorm2d):
    """Keeps what the backward pass needs in half precision."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(Tensor.bfloat16, Tensor.float):
            return super().forward(x)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.inlet = nn.Conv2d(3, 3, 1)
        self.block = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.head = nn.Linear(600, 5)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.block, self.inlet(x), use_reentrant=self.reentrant).flatten(1))


class WithoutGradients(nn.Module):
    """From the third step on the first part is run without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
        self.head = nn.Linear(600, 5)
        self.step = 0

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.step < 2):
            y = self.part(x)
        self.step += 1
        return self.head(y.flatten(1))


class Flat(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.layer = nn.Linear(432, 20)
        self.norm = norm
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layer(x.flatten(1))))


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv3d(1, 4, 3)
        self.norm = nn.BatchNorm3d(4)
        self.head = nn.LazyLinear(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layer(x[:, None])).flatten(1))


class Last(nn.Module):
    """The layer is the last one, and its norm is left out later."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(432, 5)
        self.norm = nn.BatchNorm1d(5)
        self.step = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x.flatten(1))
        self.step += 1
        return self.norm(y) if self.step < 3 else y


class Beside(nn.Module):
    """Two layers with their norms: one after the other at first, later first both layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(432, 5), nn.Linear(432, 5)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(5), nn.BatchNorm1d(5)])
        self.step = 0

    def forward(self, x: Tensor) -> Tensor:
        self.step += 1
        pairs = zip(self.layers, self.norms, strict=True)
        if self.step < 3:
            first, second = (norm(layer(x.flatten(1))) for layer, norm in pairs)
        else:
            outputs = [layer(x.flatten(1)) for layer in self.layers]
            first, second = (norm(y) for norm, y in zip(self.norms, outputs, strict=True))
        return first + second


def replaced(model: Net) -> Net:
    """A hook of the user's puts another norm's output in place of the norm's."""
    model.norm.register_forward_hook(
        lambda module, args, output: nn.functional.batch_norm(output * 2, None, None, training=True)
    )
    return model


def rewritten(model: Net) -> Net:
    """A hook of the user's changes what the norm is given."""
    model.norm.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    return model


def doubled(y: Tensor, step: int) -> Tensor:
    return torch.cat((y[:, :3], 2 * y[:, 3:]), 1)


def elsewhere(norm: nn.Module, y: Tensor, step: int) -> Tensor:
    return norm(y) + torch.sigmoid(y)


def channels_last() -> nn.Module:
    model = Net()
    model.layer.to(memory_format=torch.channels_last)
    return model


def frozen_layer() -> nn.Module:
    model = Net()
    model.layer.requires_grad_(False)
    return model


def frozen_weights() -> nn.Module:
    model = Net(norm=nn.BatchNorm2d(6, affine=False))
    model.layer.requires_grad_(False)
    return model


FROM_NORM, READ, EITHER = True, False, None

NETWORKS: dict[str, tuple[Callable[[], nn.Module], bool | None]] = {
    "batch norm": (Net, FROM_NORM),
    "in place after the norm, momentum None": (lambda: Net(norm=nn.BatchNorm2d(6, momentum=None)), FROM_NORM),
    "no running statistics": (lambda: Net(norm=nn.BatchNorm2d(6, track_running_stats=False)), FROM_NORM),
    "without running statistics, in evaluation mode": (
        lambda: Net(norm=nn.BatchNorm2d(6, track_running_stats=False), call=frozen_from(0)),
        FROM_NORM,
    ),
    "in place before the norm": (lambda: Net(lambda y, step: y.relu_()), READ),
    "written to in place later": (lambda: Net(writes("in place")), READ),
    "a part written to later": (lambda: Net(writes("a part")), READ),
    "written through data later": (lambda: Net(writes("data")), READ),
    "written through numpy later": (lambda: Net(writes("numpy")), READ),
    "replaced and freed later": (lambda: Net(freed), READ),
    "another way every other step": (lambda: Net(lambda y, step: y.relu_() if step % 2 else y), READ),
    "norm left out every other step": (
        lambda: Net(call=lambda norm, y, step: y if step % 2 else norm(y)),
        READ,
    ),
    "another norm every other step": (
        lambda: Net(
            call=lambda norm, y, step: (
                nn.functional.batch_norm(y, None, None, training=True) if step % 2 else norm(y)
            )
        ),
        READ,
    ),
    "given by name": (lambda: Net(call=lambda norm, y, step: norm(input=y)), READ),
    "also elsewhere": (lambda: Net(call=elsewhere), FROM_NORM),
    "evaluation mode": (lambda: Net(call=frozen_from(0)), READ),
    "evaluation mode later": (lambda: Net(call=frozen_from(2)), READ),
    "evaluation mode first": (
        lambda: Net(call=lambda norm, y, step: norm.train(step > 2)(y)),
        FROM_NORM,
    ),
    "a view": (lambda: Net(lambda y, step: y.view(y.shape)), FROM_NORM),
    "a part": (lambda: Net(lambda y, step: y[:, :4], norm=nn.BatchNorm2d(4)), READ),
    "a part of the batch": (
        lambda: Net(call=lambda norm, y, step: torch.cat((norm(y[1:]), y[:1]))),
        READ,
    ),
    "expanded": (lambda: Net(lambda y, step: y[:, :1].expand(y.shape)), READ),
    "a concatenation": (lambda: Net(doubled), READ),
    "channels last in the norm": (
        lambda: Net(norm=nn.LayerNorm(6), call=lambda norm, y, step: norm(y.permute(0, 2, 3, 1))),
        FROM_NORM,
    ),
    "channels_last": (channels_last, FROM_NORM),
    "layer norm": (lambda: Net(norm=nn.LayerNorm(10)), FROM_NORM),
    "layer norm of all": (lambda: Net(norm=nn.LayerNorm((6, 10, 10))), FROM_NORM),
    "group norm": (lambda: Net(norm=nn.GroupNorm(3, 6)), FROM_NORM),
    "instance norm": (lambda: Net(norm=nn.InstanceNorm2d(6)), READ),
    "forward of its own": (lambda: Net(norm=Compressing(6)), READ),
    "lazy": (lambda: Net(norm=nn.LazyBatchNorm2d()), FROM_NORM),
    "rows": (lambda: Flat(nn.BatchNorm1d(20)), FROM_NORM),
    "rows, layer norm": (lambda: Flat(nn.LayerNorm(20)), FROM_NORM),
    "volumes": (Volume, FROM_NORM),
    "shared": (lambda: Shared(again=False), FROM_NORM),
    "shared, and again": (lambda: Shared(again=True), READ),
    "last, and without a norm later": (Last, READ),
    "layers beside each other later": (Beside, READ),
    "checkpoint": (lambda: Checkpointed(reentrant=False), READ),
    "reentrant checkpoint": (lambda: Checkpointed(reentrant=True), READ),
    "without gradients later": (WithoutGradients, FROM_NORM),
    "nothing trained before": (frozen_weights, READ),
    "frozen layer": (frozen_layer, FROM_NORM),
    "user's hook before": (lambda: rewritten(Net()), READ),
    "user's hook after": (lambda: replaced(Net()), READ),
    "variance near eps": (unit(1e-2), EITHER),
    "variance far below eps": (unit(1e-5), EITHER),
    "variance below a large eps": (lambda: Net(norm=nn.BatchNorm2d(6, eps=100.0)), READ),
    "variance far below eps later": (Shrinking, READ),
    "constant channel": (constant_channel, FROM_NORM),
    "all constant": (unit(0.0), READ),
    "far from zero": (offset(5.0), FROM_NORM),
    "very far from zero": (offset(1e4), READ),
}


@dataclass(frozen=True)
class Training:
    losses: list[float]
    weights: dict[str, Tensor]
    mean: np.ndarray
    std: np.ndarray
    waits: dict[int, bool]


def trained(
    make: Callable[[], nn.Module],
    data: list[tuple[Tensor, Tensor]],
    *,
    account: bool = False,
    step_around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    accumulate: int = 1,
    precision: torch.dtype = torch.float32,
    **options: Any,
) -> Training:
    """A recorded training; or a bare one, whose outputs are written down in double precision."""
    torch.manual_seed(0)
    model = make().to(precision)
    with torch.no_grad():
        model.eval()(data[0][0].to(precision))  # lazy layers come to be
    for module in model.modules():
        vars(module).update(step=0)
    optimizer = sgd(model.train())
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear)]
    calls: dict[nn.Module, list[np.ndarray]] = defaultdict(list)

    def write_down(module: nn.Module, args: Any, output: Tensor) -> None:
        calls[module].append(output.detach().to(torch.float64, copy=True).numpy())

    recorder = None if account else Recorder(model, RecordingConfig(**options))
    if account:
        for layer in layers:
            layer.register_forward_hook(write_down)
    losses, accounts = [], []
    for step, (images, targets) in enumerate(data):
        calls.clear()
        with step_around():
            loss = cross_entropy(model(images.to(precision)), targets)
        accounts.append([statistics(calls[layer]) for layer in layers if calls[layer]])
        loss.backward()
        losses.append(loss.item())
        if (step + 1) % accumulate:
            accounts.pop()
            continue
        optimizer.step()
        optimizer.zero_grad()
    if recorder is None:
        mean, std = np.array(accounts[:: options.get("record_every", 1)]).transpose(2, 1, 0)
        return Training(losses, model.state_dict(), mean, std, {})
    epoch = recorder.end_epoch(0).result()
    recorder.remove()
    assert recorder.failure is None
    return Training(losses, model.state_dict(), epoch.mean, epoch.std, recorder._forward.readings._waits)


def assert_as_read(
    make: Callable[[], nn.Module],
    data: list[tuple[Tensor, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    **options: Any,
) -> dict[int, bool]:
    """Of each layer that a norm was given, whether its moments were taken from there in the end."""
    ours = trained(make, data, **options)
    with monkeypatch.context() as patch:
        patch.setattr(normalisation, "NORMS_TELL", False)
        read = trained(make, data, **options)
    assert read.waits == {}
    account = trained(make, data, account=True, **options)
    rms = np.hypot(account.mean, account.std)
    for moment, room in (("mean", LAST_DIGIT * rms), ("std", LAST_DIGIT * account.std)):
        found, reading = getattr(ours, moment), getattr(read, moment)
        exact = np.abs(found - getattr(account, moment)) <= room
        assert (exact | (found == reading) | (np.isnan(found) & np.isnan(reading))).all()
    assert np.array_equal(ours.losses, account.losses, equal_nan=True)
    for name, weight in ours.weights.items():
        torch.testing.assert_close(weight, account.weights[name], rtol=0, atol=0, equal_nan=True)
    return ours.waits


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_the_record_is_that_of_a_reading_and_the_training_that_of_a_bare_one(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, from_norm = NETWORKS[kind]
    waits = assert_as_read(make, batches(STEPS), monkeypatch)
    if from_norm is not EITHER:
        assert any(waits.values()) is from_norm


OPTIONS: dict[str, tuple[dict[str, Any], bool | None]] = {
    "accumulated": ({"accumulate": 3}, FROM_NORM),
    "every second step": ({"record_every": 2}, FROM_NORM),
    "a part of each batch": ({"batch_samples": 5}, READ),
    "more than each batch": ({"batch_samples": 50}, FROM_NORM),
    "double precision": ({"precision": torch.float64}, FROM_NORM),
    "half precision": ({"precision": torch.bfloat16}, READ),
    "autocast to bfloat16": ({"step_around": partial(torch.autocast, "cpu", torch.bfloat16)}, FROM_NORM),
    "autocast to float16": ({"step_around": partial(torch.autocast, "cpu", torch.float16)}, FROM_NORM),
    "what is kept is moved away": ({"step_around": torch.autograd.graph.save_on_cpu}, READ),
    "anomalies looked for": ({"step_around": torch.autograd.detect_anomaly}, FROM_NORM),
    "operations counted": ({"step_around": partial(FlopCounterMode, display=False)}, FROM_NORM),
}


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_the_record_is_that_of_a_reading_however_a_network_is_trained(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, from_norm = OPTIONS[kind]
    waits = assert_as_read(Net, batches(6), monkeypatch, **options)
    assert any(waits.values()) is from_norm


@pytest.mark.parametrize(
    ("given", "norm", "kept"),
    [
        (torch.randn(8, 4, 32, 32), nn.BatchNorm2d(4), True),
        (torch.randn(8, 4, 32, 32).to(memory_format=torch.channels_last), nn.BatchNorm2d(4), False),
        (torch.randn(8, 4, 32, 32).bfloat16(), nn.BatchNorm2d(4), False),
        (torch.randn(8, 4, 32, 32).bfloat16(), nn.GroupNorm(2, 4), True),
        (torch.randn(9000, 4), nn.BatchNorm1d(4), False),
        (torch.randn(9000, 4), nn.LayerNorm(4), True),
    ],
    ids=["", "channels_last", "half", "half, groups", "rows", "rows, layer norm"],
)
def test_sums_of_too_many_values_in_single_precision_are_not_taken(
    given: Tensor, norm: nn.Module, kept: bool
) -> None:
    values = (given + 1).requires_grad_() * 1
    found = normalisation.kept_moments(norm, values, norm(values))
    assert (found is not None) is kept
    if found is not None:
        exact = values.detach().double()
        assert found[0] == pytest.approx(exact.mean().item(), rel=LAST_DIGIT)
        assert found[1] == pytest.approx(exact.var(correction=0).item(), rel=2 * LAST_DIGIT)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_an_infinite_output_is_that_of_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    data = batches(STEPS)
    data[2][0][0, 0, 0, 0] = float("inf")

    def make() -> nn.Module:
        model = Random(["batch norm"])
        model.inlet.requires_grad_(False)  # else all would be lost from then on
        return model

    assert_as_read(make, data, monkeypatch)


PIECES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor, int], Tensor]]] = {
    "convolution": (lambda: nn.Conv2d(4, 4, 3, padding=1), lambda conv, y, step: conv(y)),
    "batch norm": (lambda: nn.BatchNorm2d(4), lambda norm, y, step: norm(y)),
    "group norm": (lambda: nn.GroupNorm(2, 4), lambda norm, y, step: norm(y)),
    "layer norm": (lambda: nn.LayerNorm(12), lambda norm, y, step: norm(y)),
    "frozen later": (lambda: nn.BatchNorm2d(4), lambda norm, y, step: norm.train(step < 3)(y)),
    "now and then": (lambda: nn.BatchNorm2d(4), lambda norm, y, step: norm(y) if step % 3 else y),
    "activation": (nn.Identity, lambda _, y, step: nn.functional.leaky_relu(y)),
    "view": (nn.Identity, lambda _, y, step: y.view(y.shape)),
    "concatenation": (nn.Identity, lambda _, y, step: torch.cat((y[:, :2], 2 * y[:, 2:]), 1)),
    "residual": (nn.Identity, lambda _, y, step: y + torch.sigmoid(y)),
    "written to": (nn.Identity, lambda _, y, step: y.mul_(2) if step % 2 else y),
    "written through data": (nn.Identity, lambda _, y, step: written_through_data(y) if step > 2 else y),
}


def written_through_data(y: Tensor) -> Tensor:
    y.data.mul_(2)
    return y


class Random(nn.Module):
    def __init__(self, pieces: list[str]) -> None:
        super().__init__()
        self.inlet = nn.Conv2d(3, 4, 1)
        self.pieces = nn.ModuleList([PIECES[piece][0]() for piece in pieces])
        self.head = nn.Linear(576, 5)
        self.calls = [PIECES[piece][1] for piece in pieces]
        self.step = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.inlet(x)
        for module, call in zip(self.pieces, self.calls, strict=True):
            y = call(module, y, self.step)
        self.step += 1
        return self.head(y.flatten(1))


@settings(max_examples=40, deadline=None)
@given(pieces=st.lists(st.sampled_from(sorted(PIECES)), min_size=1, max_size=7))
@example(
    ["residual", "activation", "batch norm"]
)  # the norm may be given what lies where the layer's output lay
def test_the_record_of_random_networks_is_that_of_a_reading(pieces: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        assert_as_read(lambda: Random(pieces), batches(STEPS, size=6), patch)


@pytest.mark.filterwarnings("ignore:.*barrier:UserWarning")
def test_the_record_under_distributed_data_parallel_is_that_of_a_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        waits = assert_as_read(
            lambda: nn.parallel.DistributedDataParallel(Random(["batch norm", "convolution", "batch norm"])),
            batches(STEPS),
            monkeypatch,
        )
    finally:
        distributed.destroy_process_group()
    assert waits == {0: True, 1: True}


def peak_memory(run: Callable[[], object]) -> int:
    """The most bytes that torch held at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(np.cumsum(sizes))


def deep() -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)) for _ in range(4)]
    return nn.Sequential(
        nn.Conv2d(3, 8, 1),
        *(module for block in blocks for module in block),
        nn.Flatten(),
        nn.Linear(1152, 5),
    )


@pytest.mark.parametrize("steps", [1, 4], ids=["while they are read", "while they wait for norms"])
def test_at_its_peak_memory_is_that_of_the_bare_training(steps: int) -> None:
    peaks = []
    for recorded in (False, True):
        model = deep()
        optimizer = sgd(model)
        recorder = Recorder(model, RecordingConfig()) if recorded else None
        train(model, optimizer, batches(steps - 1))
        peaks.append(peak_memory(partial(train, model, optimizer, batches(1, size=64))))
        if recorder is not None:
            assert sum(recorder._forward.readings._waits.values()) == 4
            recorder.remove()
    bare, with_us = peaks
    one_output = 64 * 8 * 144 * 4
    assert bare > 8 * one_output
    assert with_us - bare < one_output / 100


class Discarding(nn.Module):
    """Looks at several outputs in turn, and keeps one value of each."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.head = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Linear(432, 5)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4):
            x = x + self.norm(self.layer(x)).mean().item()
        return self.head(x.flatten(1))


def test_an_output_that_the_model_lets_go_is_not_kept_for_the_end_of_the_forward_pass() -> None:
    peaks = []
    for recorded in (False, True):
        torch.manual_seed(0)
        model = Discarding()
        optimizer = sgd(model)
        recorder = Recorder(model, RecordingConfig()) if recorded else None
        train(model, optimizer, batches(2))
        peaks.append(peak_memory(partial(train, model, optimizer, batches(1, size=64))))
        if recorder is not None:
            assert recorder._forward.readings._waits[0]
            recorder.remove()
    assert peaks[1] - peaks[0] < 64 * 8 * 144 * 4 / 100
