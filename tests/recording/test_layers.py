"""Which modules are chosen, and what a user is told when none can be."""

from __future__ import annotations

import logging

import pytest
import torch
from recording_reference import batches, sgd, small_cnn, train
from torch import nn

from mlflow_dynamics.config import RecordingConfig
from mlflow_dynamics.errors import ConfigError, RecordingError
from mlflow_dynamics.recording import Recorder
from mlflow_dynamics.recording.layers import choose_layers, unwrap


def chosen(model: nn.Module, **options: object) -> list[str]:
    return [name for name, _ in choose_layers(model, RecordingConfig(**options))]  # type: ignore[arg-type]


def test_default_is_every_weight_layer_and_nothing_else() -> None:
    assert chosen(small_cnn()) == ["0", "3", "6"]


def test_resnet18_has_its_21_weight_layers() -> None:
    import torchvision

    names = chosen(torchvision.models.resnet18())
    assert len(names) == 21
    assert names[0] == "conv1"
    assert names[-1] == "fc"
    assert "layer2.0.downsample.0" in names


def test_vit_records_attention_and_no_inner_projection() -> None:
    import torchvision

    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64)
    names = chosen(model)
    assert "encoder.layers.encoder_layer_0.self_attention" in names
    assert not [name for name in names if name.endswith("out_proj")]
    assert "heads.head" in names


def test_timm_vit_records_qkv_and_projections() -> None:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2)
    names = chosen(model)
    assert {"patch_embed.proj", "blocks.0.attn.qkv", "blocks.1.mlp.fc2", "head"} <= set(names)
    assert len(names) == 2 + 2 * 4


def test_a_layer_written_by_hand_counts_as_weight_layer_norms_and_embeddings_do_not() -> None:
    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3, 3))

    model = nn.ModuleDict(
        {"hand": Custom(), "norm": nn.LayerNorm((3, 3)), "table": nn.Embedding(3, 3), "act": nn.PReLU()}
    )
    assert chosen(model) == ["hand"]


def test_shared_module_appears_once() -> None:
    layer = nn.Linear(3, 3)
    assert chosen(nn.Sequential(layer, nn.ReLU(), layer)) == ["0"]


def test_include_and_exclude_by_name_and_by_type() -> None:
    model = small_cnn()
    assert chosen(model, include=("ReLU",)) == ["2", "4"]
    assert chosen(model, include=("ReLU", "6")) == ["2", "4", "6"]
    assert chosen(model, exclude=("Linear",)) == ["0", "3"]
    assert chosen(model, include=("*",), exclude=("ReLU", "Batch*", "Flatten", "0")) == ["3", "6"]


def test_thinning_is_even_and_keeps_both_ends(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(101)])
    with caplog.at_level(logging.INFO, "mlflow_dynamics"):
        assert chosen(model, max_layers=5) == ["0", "25", "50", "75", "100"]
    assert "5 of 101 layers" in caplog.text
    assert chosen(model, max_layers=1) == ["50"]
    assert chosen(model, max_layers=101) == [str(k) for k in range(101)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"include": ("convv*",)}, "'convv*' matches no module name or type of Sequential"),
        ({"exclude": ("nothing",)}, "'nothing' matches no module"),
        ({"exclude": ("*",)}, "leaves no layer"),
    ],
)
def test_patterns_that_choose_nothing_are_errors(options: dict[str, tuple[str, ...]], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        Recorder(small_cnn(), RecordingConfig(**options))  # type: ignore[arg-type]
    assert words in str(error.value)


def test_a_model_without_layers_is_an_error_that_says_what_to_do() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Flatten())
    with pytest.raises(RecordingError, match="include="):
        Recorder(model, RecordingConfig())
    assert not model._forward_pre_hooks


class Layer(nn.Linear):
    """A layer that holds another module, as in the forward-forward algorithm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.activation = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.activation(super().forward(x))
        return y


@pytest.mark.parametrize("kind", [nn.Linear, Layer])
def test_a_bare_layer_is_a_model(kind: type[nn.Linear]) -> None:
    model = kind(3, 2)
    optimizer = sgd(model)
    with Recorder(model, RecordingConfig()) as recorder:
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        epoch = recorder.end_epoch(0).result()
    assert [layer.name for layer in epoch.layers] == [kind.__name__]
    assert epoch.mean.shape == (1, 1)


def test_names_are_the_same_through_wrappers() -> None:
    model = small_cnn()
    assert unwrap(nn.DataParallel(torch.compile(model))) is model
    whole = small_cnn()
    whole[3] = torch.compile(whole[3])  # type: ignore[assignment]
    assert chosen(whole) == ["0", "3", "6"]


def test_recorded_names_follow_the_choice() -> None:
    model = small_cnn()
    with Recorder(model, RecordingConfig(include=("ReLU",))) as recorder:
        train(model, sgd(model), batches(1))
        layers = recorder.end_epoch(0).result().layers
    assert [(layer.name, layer.type) for layer in layers] == [("2", "ReLU"), ("4", "ReLU")]
