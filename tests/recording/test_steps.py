"""What counts as a training step, and how epochs are handed over."""

from __future__ import annotations

import gc
import logging

import numpy as np
import pytest
import torch
from recording_reference import batches, sgd, small_cnn, train
from torch import nn

from mlflow_dynamics.config import RecordingConfig
from mlflow_dynamics.recording import Recorder, device_memory


def steps_of(recorder: Recorder) -> list[int]:
    return recorder.end_epoch(0).result().step.tolist()


def test_evaluation_does_not_count_and_does_not_overwrite() -> None:
    model, twin = small_cnn(), small_cnn()
    optimizer = sgd(model)
    data = batches(3)
    with Recorder(twin, RecordingConfig()) as plain:
        train(twin, sgd(twin), data)
        expected = plain.end_epoch(0).result()
    with Recorder(model, RecordingConfig()) as recorder:
        for images, targets in data:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), targets).backward()
            model.eval()
            with torch.no_grad():
                model(images * 100)
            model(images * 100)  # evaluation that forgot no_grad
            model.train()
            with torch.no_grad():
                saved = {k: v.clone() for k, v in model.state_dict().items()}
                model(images * 100)  # recalibration of batch norm
                model.load_state_dict(saved)
            optimizer.step()
        epoch = recorder.end_epoch(0).result()
    np.testing.assert_array_equal(epoch.mean, expected.mean)
    np.testing.assert_array_equal(epoch.step, [0, 1, 2])


def test_step_skipped_by_grad_scaler_is_no_step() -> None:
    model = small_cnn()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with Recorder(model, RecordingConfig()) as recorder:
        for index, (images, targets) in enumerate(batches(4)):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), targets)
            scaler.scale(loss * (float("inf") if index == 1 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
        assert steps_of(recorder) == [0, 1, 2]
        assert recorder.step == 3


def test_steps_of_an_unrelated_optimizer_do_not_count() -> None:
    generator, discriminator = nn.Linear(4, 8), nn.Linear(8, 1)
    optimizers = sgd(generator), sgd(discriminator)
    with Recorder(discriminator, RecordingConfig()) as recorder:
        for _ in range(3):
            discriminator(generator(torch.randn(2, 4)).detach()).sum().backward()
            optimizers[1].step()
            discriminator(generator(torch.randn(2, 4))).sum().backward()
            optimizers[0].step()
        assert steps_of(recorder) == [0, 1, 2]


def test_two_optimizers_that_share_a_backward_pass_make_one_step() -> None:
    model = small_cnn()
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    second = torch.optim.AdamW(model[3:].parameters())
    with Recorder(model, RecordingConfig()) as recorder:
        for images, targets in batches(3):
            nn.functional.cross_entropy(model(images), targets).backward()
            first.step()
            second.step()
        assert steps_of(recorder) == [0, 1, 2]


def test_a_new_optimizer_in_the_second_phase_is_noticed() -> None:
    model = small_cnn()
    with Recorder(model, RecordingConfig()) as recorder:
        train(model, sgd(model), batches(2))
        train(model, torch.optim.AdamW(model.parameters()), batches(3))
        assert steps_of(recorder) == [0, 1, 2, 3, 4]


def test_a_chosen_optimizer_counts_alone() -> None:
    model = small_cnn()
    chosen, other = sgd(model), sgd(model)
    with Recorder(model, RecordingConfig(), optimizer=chosen) as recorder:
        train(model, other, batches(2))
        train(model, chosen, batches(3))
        assert steps_of(recorder) == [0, 1, 2]


def test_lbfgs_closure_is_one_step() -> None:
    model = small_cnn()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    (images, targets) = batches(1)[0]

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), targets)
        loss.backward()
        return loss

    with Recorder(model, RecordingConfig()) as recorder:
        optimizer.step(closure)
        optimizer.step(closure)
        assert steps_of(recorder) == [0, 1]


def test_step_numbers_continue_over_epochs_and_from_a_resumed_start() -> None:
    model = small_cnn()
    optimizer = sgd(model)
    with Recorder(model, RecordingConfig(), start_step=100) as recorder:
        train(model, optimizer, batches(3))
        first = recorder.end_epoch(7)
        train(model, optimizer, batches(2))
        second = recorder.end_epoch(8)
    assert first.result().step.tolist() == [100, 101, 102]
    assert (second.result().epoch, second.result().step.tolist()) == (8, [103, 104])


def test_discard_forgets_the_steps_and_their_numbers() -> None:
    model = small_cnn()
    optimizer = sgd(model)
    with Recorder(model, RecordingConfig()) as recorder:
        train(model, optimizer, batches(2))
        recorder.end_epoch(0)
        train(model, optimizer, batches(4))
        recorder.discard()
        train(model, optimizer, batches(3))
        assert steps_of(recorder) == [2, 3, 4]


def test_record_every_keeps_the_global_numbers() -> None:
    data = batches(7)
    model, twin = small_cnn(), small_cnn()
    with Recorder(twin, RecordingConfig()) as every:
        train(twin, sgd(twin), data)
        full = every.end_epoch(0).result()
    with Recorder(model, RecordingConfig(record_every=3)) as recorder:
        train(model, sgd(model), data)
        epoch = recorder.end_epoch(0).result()
    assert epoch.step.tolist() == [0, 3, 6]
    np.testing.assert_array_equal(epoch.mean, full.mean[:, ::3])


def test_an_epoch_longer_than_the_device_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    data = batches(8)
    model, twin = small_cnn(), small_cnn()
    with Recorder(twin, RecordingConfig()) as plain:
        train(twin, sgd(twin), data)
        whole = plain.end_epoch(0).result()
    monkeypatch.setattr(device_memory, "CHUNK_STEPS", 3)
    with Recorder(model, RecordingConfig()) as recorder:
        train(model, sgd(model), data)
        epoch = recorder.end_epoch(0).result()
    np.testing.assert_array_equal(epoch.mean, whole.mean)
    np.testing.assert_array_equal(epoch.step, whole.step)


def test_an_epoch_without_steps_is_empty() -> None:
    with Recorder(small_cnn(), RecordingConfig()) as recorder:
        epoch = recorder.end_epoch(0).result()
    assert epoch.mean.shape == (3, 0)
    assert len(epoch.layers) == 3


def test_a_pending_epoch_is_not_changed_by_later_training() -> None:
    model = small_cnn()
    optimizer = sgd(model)
    with Recorder(model, RecordingConfig()) as recorder:
        train(model, optimizer, batches(3))
        pending = recorder.end_epoch(0)
        before = pending.result().mean.copy()
        train(model, optimizer, batches(3, seed=9))
        np.testing.assert_array_equal(pending.result().mean, before)


def test_memory_does_not_grow_with_epochs() -> None:
    model = small_cnn()
    optimizer = sgd(model)
    data = batches(3)

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    with Recorder(model, RecordingConfig()) as recorder:
        counts = []
        for epoch in range(6):
            train(model, optimizer, data)
            recorder.end_epoch(epoch).result()
            counts.append(tensors())
    assert counts[1] == counts[-1]


def test_layers_are_in_forward_order_with_shapes_and_sizes() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(8, 2)
            self.first = nn.Linear(4, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x))

    model = Backwards()
    optimizer = sgd(model)
    with Recorder(model, RecordingConfig()) as recorder:
        model(torch.ones(3, 4)).sum().backward()
        optimizer.step()
        layers = recorder.end_epoch(0).result().layers
    assert [(layer.index, layer.name, layer.output_shape, layer.parameters) for layer in layers] == [
        (0, "first", (8,), 40),
        (1, "last", (2,), 18),
    ]


def test_a_dead_layer_is_reported_by_name_once(caplog: pytest.LogCaptureFixture) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(4, 4)
            self.forgotten = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    model = Half()
    optimizer = sgd(model)
    with Recorder(model, RecordingConfig()) as recorder, caplog.at_level(logging.WARNING, "mlflow_dynamics"):
        for number in range(2):
            model(torch.ones(3, 4)).sum().backward()
            optimizer.step()
            epoch = recorder.end_epoch(number).result()
    assert np.isnan(epoch.mean[1]).all()
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert "1 of 2 layers recorded nothing" in messages[0]
    assert "forgotten" in messages[0]


def test_remove_leaves_nothing_attached() -> None:
    from torch.optim import optimizer as torch_optimizer

    model = small_cnn()
    before = len(torch_optimizer._global_optimizer_post_hooks)
    recorder = Recorder(model, RecordingConfig())
    assert len(torch_optimizer._global_optimizer_post_hooks) == before + 1
    recorder.remove()
    recorder.remove()
    assert len(torch_optimizer._global_optimizer_post_hooks) == before
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    train(model, sgd(model), batches(2))
    assert recorder.step == 0
