"""On a GPU: right values, no wait of the host, the same training bit for bit, CUDA graphs kept, NCCL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from recording_reference import (
    Spy,
    batches,
    compiled_and_broken,
    counters,
    forget_compiled,
    sgd,
    small_cnn,
    statistics,
)
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader, TensorDataset

import mlflow_dynamics
from mlflow_dynamics.config import RecordingConfig
from mlflow_dynamics.epoch_metrics import read_metrics
from mlflow_dynamics.recording import Recorder

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

PRECISIONS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    """Two bare trainings are then equal bit for bit, so that a third can be compared with them."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    forget_compiled()
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = before
    forget_compiled()


def on_gpu(count: int, **options: Any) -> list[tuple[Tensor, Tensor]]:
    return [(images.cuda(), targets.cuda()) for images, targets in batches(count, **options)]


def wide_cnn() -> nn.Sequential:
    """Batch normalisation and dropout after convolutions, and outputs large enough for several blocks of a GPU."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.Conv2d(64, 32, 3, stride=2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(800, 5),
    ).cuda()


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    precision: torch.dtype,
    images: Tensor,
    targets: Tensor,
) -> Tensor:
    optimizer.zero_grad()
    with torch.autocast("cuda", dtype=precision, enabled=precision != torch.float32):
        loss = nn.functional.cross_entropy(model(images), targets)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    return loss.detach()


def scaler_of(precision: torch.dtype) -> torch.amp.GradScaler:
    """Of float16 so large a scale that the first step overflows and is skipped."""
    return torch.amp.GradScaler("cuda", init_scale=2.0**40, enabled=precision == torch.float16)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", [64, 1])
def test_values_are_those_of_an_independent_account(
    precision: torch.dtype, layout: torch.memory_format, size: int
) -> None:
    names = ["0", "3", "7"]
    model = wide_cnn().to(memory_format=layout)
    twin = wide_cnn().to(memory_format=layout)
    spy = Spy(twin, names)
    expected = []
    scalers = scaler_of(precision), scaler_of(precision)
    optimizers = sgd(model), sgd(twin)
    with Recorder(model, RecordingConfig()) as recorder:
        for index, (images, targets) in enumerate(on_gpu(40, size=size)):
            for network, optimizer, scaler in zip((model, twin), optimizers, scalers, strict=True):
                torch.manual_seed(index)
                before = scaler.get_scale()
                step(network, optimizer, scaler, precision, images.to(memory_format=layout), targets)
                if network is twin:
                    parts = [statistics(spy.take(name)) for name in names]
                    if scaler.get_scale() >= before:  # else the step was skipped
                        expected.append(parts)
        epoch = recorder.end_epoch(0).result()
    wanted = np.array(expected)
    assert len(wanted) == 40 if precision != torch.float16 else 0 < len(wanted) < 40
    np.testing.assert_allclose(epoch.mean, wanted[..., 0].T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(epoch.std, wanted[..., 1].T, rtol=1e-4, atol=1e-5)


def three_epochs(*, recorded: bool, precision: torch.dtype, way: str = "eager") -> tuple[Any, ...]:
    """Losses, weights, random state and dynamo's counts after three epochs."""
    forget_compiled()
    model = wide_cnn()
    torch.manual_seed(3)
    optimizer, scaler = sgd(model), scaler_of(precision)
    handle = Recorder(model, RecordingConfig()) if recorded else None
    call = model if way == "eager" else torch.compile(model, mode=way)
    losses = []
    for epoch in range(3):
        for images, targets in on_gpu(6, size=32, seed=epoch):
            losses.append(step(call, optimizer, scaler, precision, images, targets).item())
        if handle is not None:
            handle.end_epoch(epoch).result()
    if handle is not None:
        assert handle.failure is None
        handle.remove()
    counts = (*compiled_and_broken(), counters["inductor"]["cudagraph_skips"])
    return losses, list(model.state_dict().values()), torch.cuda.get_rng_state(), counts


EXACT = [("eager", precision) for precision in PRECISIONS] + [
    (way, torch.bfloat16) for way in ("default", "reduce-overhead")
]


@pytest.mark.parametrize(("way", "precision"), EXACT)
def test_three_epochs_are_bitwise_the_same(way: str, precision: torch.dtype) -> None:
    bare = three_epochs(recorded=False, precision=precision, way=way)
    again = three_epochs(recorded=False, precision=precision, way=way)
    recorded = three_epochs(recorded=True, precision=precision, way=way)
    assert bare[0] == again[0], "two bare trainings differ: nothing can be compared"
    assert bare[0] == recorded[0]
    assert all(torch.equal(a, b) for a, b in zip(bare[1], recorded[1], strict=True))
    assert torch.equal(bare[2], recorded[2])
    assert recorded[3] == bare[3]
    assert recorded[3][1:] == (0, 0)


@pytest.mark.parametrize("way", ["default", "reduce-overhead"])
def test_compiled_float32_is_the_same_to_rounding(way: str) -> None:
    """Inductor fuses our reduction with the model's own and may then add in another order."""
    bare = three_epochs(recorded=False, precision=torch.float32, way=way)
    recorded = three_epochs(recorded=True, precision=torch.float32, way=way)
    np.testing.assert_allclose(recorded[0], bare[0], rtol=1e-4)
    assert recorded[3] == bare[3]
    assert recorded[3][1:] == (0, 0)


@pytest.mark.parametrize("way", ["default", "reduce-overhead"])
def test_compiled_values_are_those_of_eager(way: str) -> None:
    """Without a weight that changes, so that rounding does not part the two."""
    found = []
    for compiled in (False, True):
        model = wide_cnn()
        model[6].p = 0.0
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        call = torch.compile(model, mode=way) if compiled else model
        with Recorder(model, RecordingConfig()) as recorder:
            for images, targets in on_gpu(9, size=32):
                step(call, optimizer, scaler_of(torch.bfloat16), torch.bfloat16, images, targets)
            found.append(recorder.end_epoch(0).result())
    assert found[0].step.tolist() == found[1].step.tolist() == list(range(9))
    np.testing.assert_allclose(found[1].mean, found[0].mean, rtol=2e-2, atol=2e-3)
    np.testing.assert_allclose(found[1].std, found[0].std, rtol=2e-2, atol=2e-3)
    assert (np.ptp(found[1].mean, axis=1) > 0).all()  # each step has its own values


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_host_never_waits_for_the_gpu(precision: torch.dtype) -> None:
    model = wide_cnn()
    optimizer = sgd(model)
    data = on_gpu(5)
    scaler = scaler_of(torch.float32)
    with Recorder(model, RecordingConfig()) as recorder:
        step(model, optimizer, scaler, precision, *data[0])
        recorder.end_epoch(0)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for images, targets in data:
                step(model, optimizer, scaler, precision, images, targets)
            pending = recorder.end_epoch(1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert recorder.failure is None
        assert np.isfinite(pending.result().mean).all()


def test_a_metric_on_the_gpu_is_taken_as_it_is_and_not_waited_for() -> None:
    total = torch.full((), 2.0, device="cuda")
    read_metrics({"warm": total}).numbers()
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(100_000_000)
            total += 1
            taken = read_metrics({"train/loss": total})
            busy = not stream.query()
            total.zero_()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert busy
    assert taken.numbers() == {"train/loss": 3.0}


def test_memory_is_constant_in_the_number_of_epochs() -> None:
    model = wide_cnn()
    optimizer = sgd(model)
    scaler = scaler_of(torch.float32)
    data = on_gpu(4)
    used = []
    with Recorder(model, RecordingConfig()) as recorder:
        for epoch in range(12):
            for images, targets in data:
                step(model, optimizer, scaler, torch.bfloat16, images, targets)
            recorder.end_epoch(epoch).result()
            optimizer.zero_grad()
            torch.cuda.synchronize()
            used.append(torch.cuda.memory_allocated())
    assert used[2] == used[-1]


def test_a_model_moved_to_the_gpu_after_recording_began() -> None:
    model = small_cnn()
    with Recorder(model, RecordingConfig()) as recorder:
        model.cuda()
        optimizer = sgd(model)
        for images, targets in on_gpu(3):
            step(model, optimizer, scaler_of(torch.float32), torch.float32, images, targets)
        epoch = recorder.end_epoch(0).result()
    assert epoch.mean.shape == (3, 3)
    assert np.isfinite(epoch.mean).all()


@pytest.fixture
def nccl() -> Iterator[None]:
    torch.cuda.set_device(0)
    distributed.init_process_group("nccl", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("wrapped", ["DistributedDataParallel", "compiled", "fully_shard"])
def test_nccl(wrapped: str, nccl: None) -> None:
    def trained(model: nn.Module, call: nn.Module) -> np.ndarray:
        optimizer = sgd(model)
        torch.manual_seed(0)
        with Recorder(call, RecordingConfig()) as recorder:
            for images, targets in on_gpu(4, size=32):
                step(call, optimizer, scaler_of(torch.float32), torch.float32, images, targets)
            epoch = recorder.end_epoch(0).result()
        assert recorder.failure is None
        return epoch.mean

    plain = wide_cnn()
    expected = trained(plain, plain)
    model = wide_cnn()
    if wrapped == "fully_shard":
        call: Any = distributed.fsdp.fully_shard(model)
    else:
        call = nn.parallel.DistributedDataParallel(model, device_ids=[0])
        call = torch.compile(call) if wrapped == "compiled" else call
    tolerance = 5e-2 if wrapped == "compiled" else 1e-4  # dropout of inductor draws other numbers
    np.testing.assert_allclose(trained(model, call), expected, rtol=tolerance, atol=tolerance)


def test_autolog_records_a_plain_loop_on_the_gpu(own_mlflow: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64 * 16, 3, 12, 12, generator=generator)
    data = TensorDataset(images, torch.randint(0, 5, (len(images),), generator=generator))
    mlflow_dynamics.autolog()
    try:
        model = wide_cnn()
        optimizer = sgd(model)
        scaler = torch.amp.GradScaler("cuda")
        criterion = nn.CrossEntropyLoss()
        loader = DataLoader(data, batch_size=16, shuffle=True, num_workers=2, pin_memory=True)
        for _ in range(2):
            for x, y in loader:
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast("cuda", dtype=torch.float16):
                    loss = criterion(model(x.cuda(non_blocking=True)), y.cuda(non_blocking=True))
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
    finally:
        mlflow_dynamics.autolog(disable=True)
    (run,) = mlflow.search_runs(output_format="list")
    assert run.info.status == "FINISHED"
    assert {"train/loss", "dynamics/integration", "dynamics/metastability", "dynamics/stability"} <= set(
        run.data.metrics
    )
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in history] == [0, 1]
