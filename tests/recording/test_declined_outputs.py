"""A layer whose output has no mean and variance here is left out by its reason; the others go on."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mlflow_dynamics.config import RecordingConfig
from mlflow_dynamics.recording import Recorder

STEPS = 5


class Odd(nn.Module):
    """Makes its input's first two samples a tensor of another kind."""

    def __init__(self, make: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.make = make

    def forward(self, inputs: Tensor) -> object:
        return self.make(inputs)


class Model(nn.Module):
    def __init__(self, make: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.first, self.odd, self.last = nn.Linear(4, 4), Odd(make), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        self.odd(hidden)
        return self.last(hidden)


def nested(layout: torch.layout) -> Callable[[Tensor], Tensor]:
    return lambda hidden: torch.nested.nested_tensor(
        [hidden[0].detach(), hidden[1, :2].detach()], layout=layout
    )


KINDS: dict[str, Callable[[Tensor], object]] = {
    "nested": nested(torch.jagged),
    "sparse": lambda hidden: hidden.to_sparse(),
    "complex": lambda hidden: hidden.to(torch.complex64),
    "quantized": lambda hidden: torch.quantize_per_tensor(hidden.detach(), 0.1, 0, torch.qint8),
    "of type int64": lambda hidden: hidden.argmax(dim=1),
    "of type bool": lambda hidden: hidden > 0,
    "of type float8_e4m3fn": lambda hidden: hidden.detach().to(torch.float8_e4m3fn),
    "of type NoneType, which holds no tensor": lambda hidden: None,
    "of type str, which holds no tensor": lambda hidden: "x",
    "of type tuple, which holds no tensor": lambda hidden: (),
    "of type generator, which holds no tensor": lambda hidden: (one for one in [hidden]),
}


def recorded(model: nn.Module) -> tuple[list[str], list[int], int]:
    """The layers, those of them with values, and the steps of two epochs."""
    recorder = Recorder(model, RecordingConfig(include=("first", "odd", "last")))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recorder:
        for epoch in range(2):
            for _ in range(STEPS):
                optimizer.zero_grad()
                model(torch.randn(8, 4)).square().mean().backward()
                optimizer.step()
            activations = recorder.end_epoch(epoch).result()
    assert recorder.failure is None
    there = [i for i, series in enumerate(activations.mean) if torch.tensor(series).isfinite().all()]
    return [layer.name for layer in activations.layers], there, len(activations.step)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of prototypes
def test_a_layer_of_another_kind_is_left_out_by_its_reason_once(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    names, there, steps = recorded(Model(KINDS[kind]))
    assert [names[i] for i in there] == ["first", "last"]
    assert steps == STEPS
    (said,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert said.getMessage().startswith(f"The layer odd is not recorded: its output is {kind},")
    assert said.exc_info is None


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_recorded_model_in_training_mode_can_be_traced() -> None:
    model = Model(lambda hidden: hidden)
    with Recorder(model, RecordingConfig()):
        traced = torch.jit.trace(model, torch.randn(3, 4))
        assert "aten::numel" not in str(traced.inlined_graph)
    inputs = torch.randn(3, 4)
    assert torch.equal(traced(inputs), model(inputs))
