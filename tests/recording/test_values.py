"""Recorded values against values computed independently, for every kind of module that has a trap in it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from recording_reference import Spy, batches, sgd, small_cnn, statistics
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mlflow_dynamics.config import RecordingConfig
from mlflow_dynamics.recording import Recorder
from mlflow_dynamics.recording.pending_epoch import pooled
from mlflow_dynamics.recording.reduction import host_moments, moments

STEPS = 4


class CalledTwice(nn.Module):
    """A shared layer: called twice in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(432, 16)
        self.shared = nn.Linear(16, 16)
        self.outlet = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.outlet(self.shared(torch.relu(self.shared(self.inlet(x.flatten(1)))) + 3.0))


class Tuples(nn.Module):
    """Modules that return tuples: attention and a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(36, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.recurrent = nn.GRU(16, 8, batch_first=True)
        self.outlet = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.flatten(2).reshape(len(x), 12, 36))
        tokens, _ = self.attention(tokens, tokens, tokens)
        sequence, _ = self.recurrent(tokens)
        return self.outlet(sequence[:, -1])


class Checkpointed(nn.Module):
    """Activation checkpointing runs the block a second time inside backward."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.use_reentrant = use_reentrant
        self.inlet = nn.Conv2d(3, 4, 3)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True), nn.Dropout(0.3))
        self.outlet = nn.Linear(256, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.block, self.inlet(x), use_reentrant=self.use_reentrant)
        return self.outlet(x.flatten(1))


class FrozenBackbone(nn.Module):
    """A frozen part in eval mode and without gradients inside a training forward."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
        self.backbone.requires_grad_(False)
        self.head = nn.Linear(400, 5)

    def forward(self, x: Tensor) -> Tensor:
        self.backbone.eval()
        with torch.no_grad():
            features = self.backbone(x)
        return self.head(features)


def frozen_first() -> nn.Module:
    model = small_cnn()
    model[0].requires_grad_(False)
    return model


def parametrized() -> nn.Module:
    model = small_cnn()
    torch.nn.utils.parametrizations.weight_norm(model[3])
    torch.nn.utils.parametrizations.spectral_norm(model[6])
    return model


def channels_last() -> nn.Module:
    return small_cnn().to(memory_format=torch.channels_last)


MODELS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "in-place activations": (small_cnn, ["0", "3", "6"]),
    "called twice": (CalledTwice, ["inlet", "shared", "outlet"]),
    "tuples": (Tuples, ["embed", "attention", "recurrent", "outlet"]),
    "checkpoint": (lambda: Checkpointed(False), ["inlet", "block.0", "outlet"]),
    "reentrant checkpoint": (lambda: Checkpointed(True), ["inlet", "block.0", "outlet"]),
    "frozen backbone, no grad": (FrozenBackbone, ["backbone.0", "head"]),
    "frozen layer": (frozen_first, ["0", "3", "6"]),
    "parametrizations": (parametrized, ["0", "3", "6"]),
    "channels_last": (channels_last, ["0", "3", "6"]),
    "data parallel": (lambda: nn.DataParallel(small_cnn()), ["0", "3", "6"]),
}


def lockstep(
    make: Callable[[], nn.Module],
    names: list[str],
    data: list[tuple[Tensor, Tensor]],
    forwards: Callable[[nn.Module, Tensor], Tensor] = lambda model, images: model(images),
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Train a recorded model and its spied twin; recorded and expected (layers, steps) mean and std, and names."""
    torch.manual_seed(0)
    model = make()
    torch.manual_seed(0)
    twin = make()
    spy = Spy(twin.module if isinstance(twin, nn.DataParallel) else twin, names)
    optimizers = sgd(model), sgd(twin)
    expected = []
    with Recorder(model, RecordingConfig()) as recorder:
        for step, (images, targets) in enumerate(data):
            for network, optimizer in zip((model, twin), optimizers, strict=True):
                torch.manual_seed(step)
                optimizer.zero_grad()
                output = forwards(network, images)
                if network is twin:  # before backward, where checkpointing calls forwards again
                    expected.append([statistics(spy.take(name)) for name in names])
                nn.functional.cross_entropy(output, targets).backward()
                spy.outputs.clear()
                optimizer.step()
        epoch = recorder.end_epoch(0).result()
    wanted = np.array(expected)  # steps, layers, 2
    return epoch.mean, epoch.std, wanted[..., 0].T, wanted[..., 1].T, [layer.name for layer in epoch.layers]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_values_are_those_of_an_independent_account(kind: str) -> None:
    make, names = MODELS[kind]
    mean, std, wanted_mean, wanted_std, found = lockstep(make, names, batches(STEPS))
    assert found == names
    assert mean.shape == (len(names), STEPS)
    np.testing.assert_allclose(mean, wanted_mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(std, wanted_std, rtol=1e-4, atol=1e-5)


def test_smaller_and_single_sample_batches() -> None:
    data = [batches(1, size=size, seed=size)[0] for size in (12, 5, 2, 12)]
    mean, std, wanted_mean, wanted_std, _ = lockstep(small_cnn, ["0", "3", "6"], data)
    np.testing.assert_allclose(mean, wanted_mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(std, wanted_std, rtol=1e-4, atol=1e-5)


def test_one_single_value_has_no_deviation() -> None:
    model = nn.Sequential(nn.Linear(1, 1))
    optimizer = sgd(model)
    with Recorder(model, RecordingConfig()) as recorder:
        model(torch.ones(1, 1)).sum().backward()
        expected = model[0].weight.item() + model[0].bias.item()
        optimizer.step()
        epoch = recorder.end_epoch(0).result()
    assert epoch.std.item() == 0.0
    assert epoch.mean.item() == pytest.approx(expected)


def test_empty_batch_records_nothing_and_raises_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    optimizer = sgd(model)
    with Recorder(model, RecordingConfig()) as recorder:
        for rows in (4, 0, 4):
            model(torch.ones(rows, 3)).sum().backward()
            optimizer.step()
        epoch = recorder.end_epoch(0).result()
    assert list(epoch.step) == [0, 1]  # an empty forward is no training forward
    assert np.isfinite(epoch.mean).all()


def test_gradient_accumulation_records_the_last_micro_batch() -> None:
    data = batches(7)
    model, twin = small_cnn(), small_cnn()
    spy = Spy(twin, ["6"])
    expected = []
    for network in (model, twin):
        optimizer = sgd(network)
        recorder = Recorder(model, RecordingConfig()) if network is model else None
        for index, (images, targets) in enumerate(data):
            nn.functional.cross_entropy(network(images), targets).backward()
            if index % 3 == 2 or index == len(data) - 1:  # groups of 3, 3 and 1
                optimizer.step()
                optimizer.zero_grad()
                if network is twin:
                    expected.append(statistics(spy.take("6")[-1:]))
        if recorder is not None:
            epoch = recorder.end_epoch(0).result()
            recorder.remove()
    assert list(epoch.step) == [0, 1, 2]
    np.testing.assert_allclose(epoch.mean[2], [mean for mean, _ in expected], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(epoch.std[2], [std for _, std in expected], rtol=1e-4, atol=1e-5)


def test_bfloat16_is_accumulated_in_float32() -> None:
    # In bfloat16 itself the mean of 1000 + small noise would be rounded to a multiple of 4.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64).bfloat16())
    with torch.no_grad():
        model[0].bias.fill_(1001.0)
    optimizer = sgd(model)
    x = torch.randn(8, 4).bfloat16()
    with Recorder(model, RecordingConfig()) as recorder:
        output = model(x)
        output.float().mean().backward()
        optimizer.step()
        epoch = recorder.end_epoch(0).result()
    exact = output.detach().double()
    assert epoch.mean.item() == pytest.approx(exact.mean().item(), rel=1e-6)
    assert epoch.std.item() == pytest.approx(exact.std(correction=0).item(), rel=1e-3)
    assert epoch.mean.item() != float(torch.tensor(epoch.mean.item()).bfloat16())


def test_autocast_output_is_recorded_as_the_layer_gives_it() -> None:
    model = small_cnn()
    optimizer = sgd(model)
    images, targets = batches(1)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model[0](images).double()
        with Recorder(model, RecordingConfig()) as recorder:
            nn.functional.cross_entropy(model(images), targets).backward()
            optimizer.step()
            epoch = recorder.end_epoch(0).result()
    assert epoch.mean[0, 0] == pytest.approx(expected.mean().item(), abs=1e-6)
    assert epoch.std[0, 0] == pytest.approx(expected.std(correction=0).item(), rel=1e-5)


def test_batch_samples_bounds_what_enters() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    optimizer = sgd(model)
    x = torch.arange(12.0).reshape(6, 2)
    with Recorder(model, RecordingConfig(batch_samples=2)) as recorder:
        output = model(x)
        output.sum().backward()
        optimizer.step()
        epoch = recorder.end_epoch(0).result()
    assert epoch.mean.item() == pytest.approx(output[:2].mean().item())
    assert epoch.mean.item() != pytest.approx(output.mean().item())


@pytest.mark.parametrize("offset", [0.0, 10.0, 1e4])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_moments_are_those_of_the_whole_output(offset: float, layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    output = (torch.randn(32, 8, 24, 24, generator=generator) + offset).to(memory_format=layout)
    expected = output.double()
    _, *on_device, squared = moments(output, torch.ones(()), None).tolist()
    assert squared == pytest.approx(on_device[0] ** 2, rel=1e-6, abs=1e-9)
    for mean, variance in (on_device, host_moments(output)):
        assert mean == pytest.approx(expected.mean().item(), rel=1e-6, abs=1e-6)
        assert variance == pytest.approx(expected.var(correction=0).item(), rel=1e-4)


def test_a_layer_that_skips_a_step_is_nan_there_and_does_not_keep_an_old_value() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3)
            self.b = nn.Linear(3, 3)

        def forward(self, x: Tensor, both: bool) -> Tensor:
            return self.b(self.a(x)) if both else self.a(x)

    model = Sometimes()
    optimizer = sgd(model)
    with Recorder(model, RecordingConfig()) as recorder:
        for both in (True, False, True):
            model(torch.ones(2, 3), both).sum().backward()
            optimizer.step()
        epoch = recorder.end_epoch(0).result()
    assert np.isnan(epoch.mean[1]).tolist() == [False, True, False]
    assert np.isfinite(epoch.mean[0]).all()


def test_infinite_activations_stay_in_their_own_step() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    optimizer = sgd(model)
    with Recorder(model, RecordingConfig()) as recorder:
        for value in (1.0, float("inf"), 1.0):
            model(torch.full((2, 2), value))
            optimizer.step()  # no gradients: the weights stay
        epoch = recorder.end_epoch(0).result()
    assert np.isfinite(epoch.mean[0]).tolist() == [True, False, True]


def test_pooling_is_the_variance_of_the_union() -> None:
    generator = np.random.default_rng(0)
    parts = generator.normal(loc=[[0.0], [5.0], [-2.0]], scale=[[1.0], [2.0], [0.1]], size=(3, 1000))
    sums = np.sum([[1, p.mean(), p.var(), p.mean() ** 2] for p in parts], axis=0)
    mean, std = pooled(sums[None])
    assert mean[0] == pytest.approx(parts.mean())
    assert std[0] == pytest.approx(parts.std())
    assert np.isnan(pooled(np.zeros((1, 4)))[0][0])
