"""Builds networks by name: this project's own and all of timm's."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

import timm
import torch
from torch import nn

from mlflow_dynamics.errors import ConfigError, unknown_choice
from mlflow_dynamics.training import architectures
from mlflow_dynamics.training.catalogue import MODELS, NETWORKS
from mlflow_dynamics.training.weights import load_checkpoint, load_torchvision, no_weights, timm_model

logger = logging.getLogger(__name__)

SIZES_TRIED: Final = 64
"""If an image size does not suit a model, this many larger sizes are tried, to name one that does."""


def input_size(name: str) -> int | None:
    """Return the only image size, in pixels, that the model `name` is made for; None if it takes any size.

    Raises:
        ConfigError: there is no such model.
    """
    _check_name(name)
    if name in NETWORKS:
        return None
    made_for = timm.get_pretrained_cfg(name)
    return made_for.input_size[-1] if made_for is not None and made_for.fixed_input_size else None


def build_model(
    name: str,
    *,
    num_classes: int,
    image_size: int,
    channels: int = 3,
    pretrained: bool = False,
    checkpoint: Path | None = None,
) -> nn.Module:
    """Build the network `name` for images (batch, channels, image_size, image_size), giving (batch, num_classes).

    For images below `architectures.SMALL_IMAGE` pixels, torchvision's networks get a first convolution of 3x3 with
    stride 1 and no early pooling. A model of fixed input size (a ViT) is built for `image_size`, including its position
    embedding.

    Args:
        name: a name of this project or of timm.
        num_classes: the number of classes, at least 2.
        image_size: the side of the images in pixels.
        channels: the number of channels of the images.
        pretrained: start from the library's weights (downloaded once, then cached).
        checkpoint: start from this local file of weights; excludes `pretrained`.

    Raises:
        ConfigError: the name is unknown, a number is out of range, the image size does not suit the model, or the
            weights cannot be obtained or read, or do not fit.
    """
    _check_name(name)
    for parameter, value, least in (
        ("num_classes", num_classes, 2),
        ("image_size", image_size, 1),
        ("channels", channels, 1),
    ):
        if value < least:
            raise ConfigError(f"{parameter}={value} must be at least {least}.")
    if pretrained and checkpoint is not None:
        raise ConfigError("pretrained=True and checkpoint exclude each other; give one of them.")
    shape: dict[str, int] = {"num_classes": num_classes, "image_size": image_size, "channels": channels}
    model = _fresh(name, **shape)
    if model is None:
        raise _unsuitable(name, **shape)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint, name=name, classifiers=_classifiers(name))
    elif pretrained and name not in NETWORKS:
        model = timm_model(name, **_timm_arguments(name, **shape))
    elif pretrained:
        weights = NETWORKS[name].weights
        if weights is None:
            raise no_weights(name)
        load_torchvision(model, weights, name=name)
    return model


def _check_name(name: str) -> None:
    if name not in NETWORKS and not timm.is_model(name):
        raise unknown_choice("model", name, (*MODELS, "any other timm model"), unlisted=timm.list_models())


def _fresh(name: str, *, num_classes: int, image_size: int, channels: int) -> nn.Module | None:
    """Return the untrained network; None if it cannot take images of this size."""
    try:
        if name in NETWORKS:
            network = NETWORKS[name]
            build = getattr(architectures, network.builder)
            model = build(
                **network.arguments, num_classes=num_classes, channels=channels, image_size=image_size
            )
        else:
            model = timm.create_model(
                name,
                **_timm_arguments(name, num_classes=num_classes, image_size=image_size, channels=channels),
            )
        # Running the network once is more certain than any rule about strides and patches.
        device = next(model.parameters()).device
        with torch.no_grad():
            model.eval()(torch.zeros(2, channels, image_size, image_size, device=device))
    except (RuntimeError, AssertionError, ValueError, TypeError, ZeroDivisionError):
        logger.debug("%s cannot take %d pixels", name, image_size, exc_info=True)
        return None
    return model.train()


def _timm_arguments(name: str, *, num_classes: int, image_size: int, channels: int) -> dict[str, Any]:
    arguments: dict[str, Any] = {"num_classes": num_classes, "in_chans": channels}
    # Only models of fixed size accept the argument img_size.
    if (own := input_size(name)) is not None and own != image_size:
        arguments["img_size"] = image_size
    return arguments


def _unsuitable(name: str, *, num_classes: int, image_size: int, channels: int) -> ConfigError:
    # On the meta device, a network has shapes but no numbers, so trying many sizes costs little.
    with torch.device("meta"):
        larger = next(
            (
                size
                for size in range(image_size + 1, image_size + 1 + SIZES_TRIED)
                if _fresh(name, num_classes=num_classes, image_size=size, channels=channels) is not None
            ),
            input_size(name),
        )
    need = f"which needs at least {larger} pixels" if larger is not None else "which needs more"
    return ConfigError(f"image_size={image_size} does not suit model={name!r}, {need}.")


def _classifiers(name: str) -> tuple[str, ...]:
    if name in NETWORKS:
        return (NETWORKS[name].classifier,)
    found: str | tuple[str, ...] = timm.models.get_pretrained_cfg_value(name, "classifier") or ()
    return (found,) if isinstance(found, str) else tuple(found)
