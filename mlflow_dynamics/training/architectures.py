"""The project's own networks: small ones, and torchvision's with a stem for small images.

`catalogue` names them. Every builder takes `num_classes` and the images' `channels` and `image_size` (side in pixels),
whether its network depends on them or not.
"""

from __future__ import annotations

from typing import Final

import timm
import torchvision
from torch import Tensor, nn
from torch.nn import functional

SMALL_IMAGE: Final = 64
"""A network for images with a smaller side than this, in pixels, gets the small-image stem. The usual stem, made for
224 pixels, would leave only 8 of 32 rows to the first block."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters, subsampled and zero-padded if the shapes differ."""

    def __init__(self, channels_in: int, channels: int, *, stride: int, shortcut: bool) -> None:
        super().__init__()
        self.stride = stride
        self.shortcut = shortcut
        self.new_channels = channels - channels_in
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if not self.shortcut:
            return functional.relu(out)
        shortcut = x[:, :, :: self.stride, :: self.stride]
        shortcut = functional.pad(shortcut, (0, 0, 0, 0, 0, self.new_channels))
        return functional.relu(out + shortcut)


class CifarResNet(nn.Module):
    """The ResNet of 6 n + 2 layers for small images, with 16, 32 and 64 channels.

    He et al. 2016, section 4.2 (arXiv 1512.03385), shortcut option A. ResNet-20 has n = 3 and 0.27 million parameters
    at 10 classes. Without `shortcuts` it is the plain network of the same section, with the same parameters.
    """

    def __init__(
        self, *, blocks: int, num_classes: int, channels: int, image_size: int, shortcuts: bool = True
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(blocks, 16, 16, stride=1, shortcut=shortcuts)
        self.layer2 = self._stage(blocks, 16, 32, stride=2, shortcut=shortcuts)
        self.layer3 = self._stage(blocks, 32, 64, stride=2, shortcut=shortcuts)
        self.fc = nn.Linear(64, num_classes)
        _initialise_convolutions(self)

    @staticmethod
    def _stage(blocks: int, channels_in: int, channels: int, *, stride: int, shortcut: bool) -> nn.Sequential:
        first = BasicBlock(channels_in, channels, stride=stride, shortcut=shortcut)
        others = (BasicBlock(channels, channels, stride=1, shortcut=shortcut) for _ in range(blocks - 1))
        return nn.Sequential(first, *others)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


class CifarVGG(nn.Module):
    """VGG-16's convolutions, batch-normalised, with a head for small images: an average and one linear layer.

    Simonyan, Zisserman 2015, configuration D (arXiv 1409.1556). VGG's own head (two layers of 4,096) holds 120 of 138
    million parameters and needs 7x7 positions. Without batch normalisation, 13 convolutions hardly train from scratch
    at the learning rates of the other networks. The five poolings need images of at least 32 pixels.
    """

    def __init__(self, *, num_classes: int, channels: int, image_size: int) -> None:
        super().__init__()
        vgg = torchvision.models.vgg
        self.features = vgg.make_layers(vgg.cfgs["D"], batch_norm=True)
        self.features[0] = _convolution(self.features[0], channels=channels)
        self.classifier = nn.Linear(512, num_classes)
        _initialise_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class SmallVGG(nn.Module):
    """Six 3x3 convolutions in three blocks of 16, 32 and 64 channels, a quarter of VGG's, and one linear layer.

    Weights begin as PyTorch draws them. The three poolings need images of at least 8 pixels.
    """

    def __init__(self, *, num_classes: int, channels: int, image_size: int, batch_norm: bool) -> None:
        super().__init__()
        if image_size < 8:
            raise ValueError(f"image_size={image_size} is less than the 8 pixels that three poolings need.")
        layers: list[nn.Module] = []
        for width in (16, 32, 64):
            for _ in range(2):
                layers.append(nn.Conv2d(channels, width, 3, padding=1))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU())
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * (image_size // 8) ** 2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def _initialise_convolutions(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _convolution(like: nn.Module, *, channels: int, image_size: int = SMALL_IMAGE) -> nn.Conv2d:
    """Return a first convolution for `channels` input channels; 3x3 with stride 1 for small images."""
    assert isinstance(like, nn.Conv2d)
    bias = like.bias is not None
    # Every first convolution here is square.
    kernel, stride = (3, 1) if image_size < SMALL_IMAGE else (like.kernel_size[0], like.stride[0])
    new = nn.Conv2d(channels, like.out_channels, kernel, stride=stride, padding=kernel // 2, bias=bias)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    return new


def torchvision_resnet(*, name: str, num_classes: int, channels: int, image_size: int) -> nn.Module:
    model = torchvision.models.get_model(name, num_classes=num_classes)
    model.conv1 = _convolution(model.conv1, channels=channels, image_size=image_size)
    if image_size < SMALL_IMAGE:
        model.maxpool = nn.Identity()
    return model


def densenet121(*, num_classes: int, channels: int, image_size: int) -> nn.Module:
    model = torchvision.models.densenet121(num_classes=num_classes)
    model.features.conv0 = _convolution(model.features.conv0, channels=channels, image_size=image_size)
    if image_size < SMALL_IMAGE:
        model.features.pool0 = nn.Identity()
    return model


MOBILENET_V2_SMALL: Final = (
    # expansion, channels, blocks, stride: Sandler et al. 2018 (arXiv 1801.04381), table 2, except that the stride of
    # the second row is 1 instead of 2, so that 32 pixels become 4 in the end, as in the ResNets.
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(*, num_classes: int, channels: int, image_size: int) -> nn.Module:
    setting = [list(row) for row in MOBILENET_V2_SMALL] if image_size < SMALL_IMAGE else None
    model = torchvision.models.mobilenet_v2(num_classes=num_classes, inverted_residual_setting=setting)
    model.features[0][0] = _convolution(model.features[0][0], channels=channels, image_size=image_size)
    return model


def small_vit(*, num_classes: int, channels: int, image_size: int) -> nn.Module:
    """A ViT of four blocks of width 64 on patches of 8 x 8 pixels."""
    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=image_size,
        patch_size=8,
        embed_dim=64,
        depth=4,
        num_heads=2,
        num_classes=num_classes,
        in_chans=channels,
    )
    return model
