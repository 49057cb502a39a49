"""The networks and data sets that have a name here. The command line lists them, so nothing of torch is imported."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple


class Network(NamedTuple):
    """A network of this project.

    Attributes:
        builder: the name in `architectures` of what builds it from `num_classes`, `channels` and `image_size`.
        classifier: the name of the module that depends on the number of classes.
        arguments: what its builder is called with besides.
        weights: the torchvision model whose ImageNet weights fit the network; None if none do.
    """

    builder: str
    classifier: str
    arguments: Mapping[str, Any] = MappingProxyType({})
    weights: str | None = None


def _resnet(name: str) -> Network:
    return Network("torchvision_resnet", "fc", {"name": name}, name)


NETWORKS: Final = {
    "resnet20": Network("CifarResNet", "fc", {"blocks": 3}),
    "resnet20_plain": Network("CifarResNet", "fc", {"blocks": 3, "shortcuts": False}),
    "resnet56": Network("CifarResNet", "fc", {"blocks": 9}),
    "resnet18": _resnet("resnet18"),
    "resnet34": _resnet("resnet34"),
    "resnet50": _resnet("resnet50"),
    "densenet121": Network("densenet121", "classifier", weights="densenet121"),
    "mobilenet_v2": Network("mobilenet_v2", "classifier", weights="mobilenet_v2"),
    "vgg16": Network("CifarVGG", "classifier", weights="vgg16_bn"),
    "small_vgg": Network("SmallVGG", "classifier", {"batch_norm": True}),
    "small_vgg_plain": Network("SmallVGG", "classifier", {"batch_norm": False}),
    "small_vit": Network("small_vit", "head"),
}

MODELS: Final = (*NETWORKS, "vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224")
"""The names that this project lists. Every other name of timm works as well."""


class TorchvisionSet(NamedTuple):
    """A data set that torchvision downloads.

    Attributes:
        kind: its class in `torchvision.datasets`.
        flip: a mirrored image is as good as the original, which is not so for digits and letters.
        arguments: what its class is called with for either part, besides what names the part.
    """

    kind: str
    flip: bool
    arguments: Mapping[str, Any] = MappingProxyType({})


TORCHVISION_SETS: Final = {
    "cifar10": TorchvisionSet("CIFAR10", flip=True),
    "cifar100": TorchvisionSet("CIFAR100", flip=True),
    "mnist": TorchvisionSet("MNIST", flip=False),
    "fashionmnist": TorchvisionSet("FashionMNIST", flip=True),
    "kmnist": TorchvisionSet("KMNIST", flip=False),
    "emnist": TorchvisionSet("EMNIST", flip=False, arguments={"split": "balanced"}),
    "svhn": TorchvisionSet("SVHN", flip=False),
    "stl10": TorchvisionSet("STL10", flip=True),
}

DATASETS: Final = ("digits", *TORCHVISION_SETS, "parquet:PATH", "imagefolder:PATH")
