"""Networks by name: each one trains, has the published shape, and refuses images that it cannot take."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from mlflow_dynamics.errors import ConfigError
from mlflow_dynamics.training.architectures import BasicBlock
from mlflow_dynamics.training.catalogue import MODELS, NETWORKS
from mlflow_dynamics.training.data import load_dataset
from mlflow_dynamics.training.models import build_model, input_size

REAL = Path(__file__).parents[2] / "../shared/data"
needs_real_images = pytest.mark.skipif(not REAL.is_dir(), reason=f"no image sets in {REAL}")

THE_SEVEN = (
    "resnet18",
    "resnet34",
    "resnet50",
    "densenet121",
    "mobilenet_v2",
    "vgg16",
    "vit_base_patch16_224",
)


def batch(dataset: str, *, count: int, image_size: int | None) -> tuple[Tensor, Tensor]:
    data = load_dataset(
        dataset,
        data_dir=Path("absent"),
        limit_train=count,
        limit_test=1,
        image_size=image_size,
        augment=True,
        seed=0,
    )
    samples = data.train.__getitems__(list(range(count)))
    return torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])


def train_one_step(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """One step of SGD; every weight must have moved."""
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    for name, weight in model.named_parameters():
        assert torch.isfinite(weight).all(), name
        assert not torch.equal(weight, before[name]), f"{name} did not change"
    return loss.item()


# --- training -----------------------------------------------------------------------------------------------


def test_the_papers_models_are_listed() -> None:
    assert set(THE_SEVEN) | {"resnet20"} <= set(MODELS)
    assert len(MODELS) == len(set(MODELS))


@needs_real_images
@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_a_training_step_on_real_images(name: str) -> None:
    count = 4 if name in NETWORKS else 2  # a ViT at 224 pixels is slow
    images, labels = batch(f"parquet:{REAL / 'cifar10'}", count=count, image_size=input_size(name))
    torch.manual_seed(0)
    model = build_model(name, num_classes=10, image_size=images.shape[-1])
    assert model.training
    train_one_step(model, images, labels)


@pytest.mark.parametrize("name", [*NETWORKS, "vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_gray_digits_train_too(name: str) -> None:
    images, labels = batch("digits", count=8, image_size=32)
    torch.manual_seed(0)
    model = build_model(name, num_classes=10, image_size=32, channels=1)
    train_one_step(model, images, labels)


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"vgg16"}))
def test_digits_at_their_own_eight_pixels(name: str) -> None:
    images, labels = batch("digits", count=8, image_size=None)
    torch.manual_seed(0)
    train_one_step(build_model(name, num_classes=10, image_size=8, channels=1), images, labels)


def test_a_seed_fixes_the_weights_and_the_losses() -> None:
    images, labels = batch("digits", count=16, image_size=None)
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model = build_model("resnet20", num_classes=10, image_size=8, channels=1)
        losses.append([train_one_step(model, images, labels) for _ in range(3)])
    assert losses[0] == losses[1] != losses[2]


# --- shapes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # 0.27 and 0.85 million: He et al. 2016, table 6.
        ("resnet20", 269_722),
        ("resnet56", 853_018),
        # ResNet-18 of CIFAR work (11.17 million): torchvision's 11,181,642 less 7x7 for 3x3 in the first convolution.
        ("resnet18", 11_181_642 - 64 * 3 * (49 - 9)),
        ("vgg16", 14_728_266),
        # Shortcut option A has no parameters.
        ("resnet20_plain", 269_722),
        # 3x3 convolutions with bias 3-16-16-32-32-64-64 (72,080) and 1,024 to 10 classes (10,250); weight and bias of
        # 2 (16 + 32 + 64) normalised channels.
        ("small_vgg_plain", 72_080 + 10_250),
        ("small_vgg", 72_080 + 10_250 + 448),
        # Width 64: patches of 8x8x3, 17 positions, class token, 4 blocks of 49,984, last norm, classifier.
        ("small_vit", 12_352 + 1_088 + 64 + 4 * 49_984 + 128 + 650),
    ],
)
def test_parameter_counts(name: str, parameters: int) -> None:
    model = build_model(name, num_classes=10, image_size=32)
    assert sum(weight.numel() for weight in model.parameters()) == parameters


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "densenet121", "mobilenet_v2"])
def test_large_images_get_torchvisions_own_network(name: str) -> None:
    ours = build_model(name, num_classes=1000, image_size=64)
    theirs = torchvision.models.get_model(name)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize(
    ("name", "last", "side"),
    [
        ("resnet18", "layer4", 4),
        ("resnet50", "layer4", 4),
        ("densenet121", "features", 4),
        ("mobilenet_v2", "features", 4),
        ("resnet20", "layer3", 8),
        ("vgg16", "features", 1),
    ],
)
def test_small_images_are_not_shrunk_by_the_stem(name: str, last: str, side: int) -> None:
    model = build_model(name, num_classes=10, image_size=32)
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert (first.kernel_size, first.stride) == ((3, 3), (1, 1))
    shapes: list[torch.Size] = []
    model.get_submodule(last).register_forward_hook(lambda _m, _i, output: shapes.append(output.shape))
    with torch.no_grad():
        model(torch.zeros(2, 3, 32, 32))
    assert shapes[0][-2:] == (side, side)


def test_a_plain_resnet_is_the_resnet_without_its_shortcuts() -> None:
    plain, whole = (
        build_model(name, num_classes=10, image_size=32) for name in ("resnet20_plain", "resnet20")
    )
    plain.load_state_dict(whole.state_dict())
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.equal(plain.eval()(images), whole.eval()(images))
        for (
            module
        ) in whole.modules():  # a second normalisation that gives 0 leaves a block nothing but its shortcut
            if isinstance(module, BasicBlock):
                module.bn2.weight.zero_()
        stem = functional.relu(whole.bn1(whole.conv1(images)))
        assert torch.equal(whole.layer1(stem), stem)
        plain.load_state_dict(whole.state_dict())
        assert torch.equal(plain.layer1(stem), torch.zeros_like(stem))


def test_a_plain_small_vgg_is_the_small_vgg_without_its_normalisations() -> None:
    plain, whole = (
        [type(module) for module in build_model(name, num_classes=10, image_size=32).features]
        for name in ("small_vgg_plain", "small_vgg")
    )
    assert whole.count(nn.BatchNorm2d) == whole.count(nn.Conv2d) == 6
    assert plain == [kind for kind in whole if kind is not nn.BatchNorm2d]


def test_input_size_is_that_of_fixed_models_alone() -> None:
    assert input_size("vit_base_patch16_224") == 224
    assert input_size("vit_base_patch16_384") == 384
    assert input_size("resnet18") is None
    assert input_size("convnext_tiny") is None


def test_a_vit_can_be_built_for_another_size() -> None:
    model = build_model("vit_tiny_patch16_224", num_classes=7, image_size=32)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


def test_the_dry_pass_leaves_no_trace() -> None:
    model = build_model("resnet20", num_classes=10, image_size=32)
    assert model.training
    assert torch.equal(model.bn1.running_mean, torch.zeros(16))
    assert all(weight.grad is None for weight in model.parameters())


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("resnet81", "resnet18"), ("resnet-20", "resnet20"), ("convnext_tny", "convnext_tiny"), ("VGG16", None)],
)
@pytest.mark.parametrize("call", [input_size, lambda name: build_model(name, num_classes=10, image_size=32)])
def test_an_unknown_model_is_refused(call: Callable[[str], Any], name: str, nearest: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        call(name)
    message = str(caught.value)
    assert message.startswith(f"model={name!r} is not known; accepted: resnet20, ")
    assert "any other timm model" in message
    assert len(message) < 400, "timm's 1,300 names should not be listed"
    assert nearest is None or message.endswith(f"Did you mean {nearest!r}?")


@pytest.mark.parametrize(
    ("name", "size", "least"),
    [
        ("vgg16", 16, 32),
        ("vgg16", 31, 32),
        ("small_vgg", 7, 8),
        ("small_vit", 7, 8),
        ("vit_tiny_patch16_224", 8, 16),
        ("densenet121", 4, 8),
    ],
)
def test_too_small_an_image_is_refused_with_the_least_size(name: str, size: int, least: int) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(name, num_classes=10, image_size=size)
    assert str(caught.value) == (
        f"image_size={size} does not suit model={name!r}, which needs at least {least} pixels."
    )
    build_model(name, num_classes=10, image_size=least)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image_size": 0}, "image_size=0 must be at least 1"),
        ({"image_size": -32}, "image_size=-32 must be at least 1"),
        ({"num_classes": 1}, "num_classes=1 must be at least 2"),
        ({"channels": 0}, "channels=0 must be at least 1"),
        ({"pretrained": True}, "model='resnet20' has no pretrained weights"),
        (
            {"pretrained": True, "checkpoint": Path("w.pt")},
            "pretrained=True and checkpoint exclude each other",
        ),
    ],
)
def test_impossible_arguments_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build_model("resnet20", **({"num_classes": 10, "image_size": 32} | changes))


# --- checkpoints --------------------------------------------------------------------------------------------


def resnet20(*, num_classes: int = 10, checkpoint: Path | None = None) -> nn.Module:
    return build_model("resnet20", num_classes=num_classes, image_size=32, checkpoint=checkpoint)


@pytest.mark.parametrize(
    "save",
    [
        lambda state, path: torch.save(state, path),
        lambda state, path: torch.save({"model": state, "next_epoch": 3}, path),
        lambda state, path: torch.save({"state_dict": state, "optimizer": {"lr": 0.1}}, path),
        lambda state, path: torch.save({f"module.{key}": value for key, value in state.items()}, path),
        lambda state, path: torch.save({f"_orig_mod.{key}": value for key, value in state.items()}, path),
        lambda state, path: safetensors.torch.save_file(state, path),
    ],
    ids=["plain", "under model", "under state_dict", "distributed", "compiled", "safetensors"],
)
def test_a_checkpoint_comes_back(
    tmp_path: Path, request: pytest.FixtureRequest, save: Callable[[dict[str, Tensor], Path], None]
) -> None:
    path = tmp_path / ("weights.safetensors" if "safetensors" in request.node.name else "weights.pt")
    trained = resnet20()
    save(trained.state_dict(), path)
    loaded = resnet20(checkpoint=path)
    for key, value in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_another_number_of_classes_gets_a_new_classifier_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = resnet20(num_classes=100)
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    with caplog.at_level(logging.WARNING, "mlflow_dynamics"):
        loaded = resnet20(num_classes=10, checkpoint=tmp_path / "weights.pt")
    assert "another number of classes" in caplog.text
    assert loaded.fc.weight.shape == (10, 64)
    for key, value in trained.state_dict().items():
        assert key.startswith("fc.") or torch.equal(loaded.state_dict()[key], value), key


def test_a_timm_checkpoint_is_fine_tuned(tmp_path: Path) -> None:
    trained = timm.create_model("vit_tiny_patch16_224", num_classes=1000)
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "vit.safetensors")
    loaded = build_model(
        "vit_tiny_patch16_224", num_classes=10, image_size=224, checkpoint=tmp_path / "vit.safetensors"
    )
    assert torch.equal(loaded.blocks[5].attn.qkv.weight, trained.blocks[5].attn.qkv.weight)
    assert loaded.head.weight.shape[0] == 10


def other_model(path: Path) -> None:
    torch.save(build_model("resnet56", num_classes=10, image_size=32).state_dict(), path)


def gray_model(path: Path) -> None:
    torch.save(build_model("resnet20", num_classes=10, image_size=32, channels=1).state_dict(), path)


def whole_model(path: Path) -> None:
    torch.save(nn.Linear(2, 2), path)


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (other_model, r"does not fit model='resnet20' .*: \d+ are not its own \(such as 'layer1\.3\.conv1"),
        (gray_model, r"does not fit model='resnet20' .*: 1 have another shape \(such as 'conv1\.weight'\)"),
        (whole_model, r"cannot be read as weights \(UnpicklingError\); .*state_dict\(\), file\)"),
        (lambda path: path.write_bytes(b"no weights"), r"cannot be read as weights \("),
        (lambda path: path.write_bytes(b""), r"cannot be read as weights \("),
        (lambda path: torch.save({"epoch": 3}, path), r"holds no state dict"),
        (lambda path: torch.save([1, 2], path), r"holds no state dict"),
        (lambda path: path.mkdir(), r"is not a file"),
        (lambda path: None, r"is not a file"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_sentence(
    tmp_path: Path, write: Callable[[Path], object], sentence: str
) -> None:
    path = tmp_path / "weights.pt"
    write(path)
    with pytest.raises(ConfigError, match=sentence) as caught:
        resnet20(checkpoint=path)
    assert str(caught.value).startswith(f"checkpoint={str(path)!r}")
    assert "\n" not in str(caught.value)


def test_a_damaged_safetensors_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match="cannot be read as weights"):
        resnet20(checkpoint=tmp_path / "weights.safetensors")


# --- pretrained weights -------------------------------------------------------------------------------------


@pytest.fixture
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing was ever downloaded, and every request goes to a port at which nobody listens."""
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    # urllib reads the environment when it makes its opener.
    urllib.request.install_opener(urllib.request.build_opener())
    yield tmp_path
    urllib.request.install_opener(None)  # type: ignore[arg-type]


@pytest.mark.usefixtures("empty_caches")
@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_weights_that_cannot_be_downloaded_point_to_a_checkpoint(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(name, num_classes=10, image_size=input_size(name) or 32, pretrained=True)
    message = str(caught.value)
    assert message.startswith(f"pretrained=True: the weights of model={name!r} could not be downloaded (")
    assert "Connection refused" in message
    assert "checkpoint=FILE" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121"])
def test_torchvisions_weights_go_into_the_small_network(empty_caches: Path, name: str) -> None:
    # torchvision takes a file that is in its cache as it is.
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    source = torchvision.models.get_model(name).state_dict()
    cache = empty_caches / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(source, cache / Path(url).name)
    loaded = build_model(name, num_classes=10, image_size=32, pretrained=True).state_dict()
    fresh = [key for key, value in loaded.items() if not torch.equal(value, source[key])]
    stem = [] if name == "mobilenet_v2" else [next(iter(loaded))]
    classifier = [key for key in loaded if key.startswith(("fc.", "classifier."))]
    assert fresh == stem + classifier


def test_vgg16_takes_the_batch_normalised_weights() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.vgg16_bn().features.state_dict()
        ours = build_model("vgg16", num_classes=10, image_size=32).features.state_dict()
    assert NETWORKS["vgg16"].weights == "vgg16_bn"
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.items()
    }


def test_timms_cached_weights_are_used_offline(empty_caches: Path) -> None:
    source = timm.create_model("test_vit")
    snapshot = empty_caches / "hub" / "models--timm--test_vit.r160_in1k" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    safetensors.torch.save_file(source.state_dict(), snapshot / "model.safetensors")
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("0")
    loaded = build_model("test_vit", num_classes=10, image_size=160, pretrained=True)
    assert torch.equal(loaded.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)
    assert loaded.head.weight.shape[0] == 10


def test_a_timm_model_without_weights_says_so(empty_caches: Path) -> None:
    name = next(
        name
        for name in timm.list_models("resnet*")
        if name not in NETWORKS and not timm.is_model_pretrained(name)
    )
    with pytest.raises(ConfigError, match=f"model='{name}' has no pretrained weights"):
        build_model(name, num_classes=10, image_size=64, pretrained=True)
