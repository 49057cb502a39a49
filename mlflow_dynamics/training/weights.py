"""Loads the weights that a training starts from: a local checkpoint, or pretrained weights of torchvision or timm."""

from __future__ import annotations

import logging
import pickle
import struct
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import huggingface_hub
import safetensors
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn

from mlflow_dynamics.errors import ConfigError
from mlflow_dynamics.training.downloads import DOWNLOAD_TIMEOUT_SECONDS, download_timeout, last_line

logger = logging.getLogger(__name__)

UNREADABLE: Final = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    struct.error,
)
"""The errors that `torch.load(weights_only=True)` raises for a file that is no checkpoint, depending on its bytes."""

NESTED_UNDER: Final = ("state_dict", "model", "model_state_dict")
"""Keys under which training scripts (timm's, torchvision's, this project's) store the weights in a checkpoint."""

WRAPPER_PREFIXES: Final = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile put before each name."""

HUB_WEIGHTS: Final = ("model.safetensors", "pytorch_model.bin")


def load_checkpoint(model: nn.Module, path: Path, *, name: str, classifiers: Sequence[str]) -> None:
    """Load the weights in a file into a model.

    A classifier with another number of classes is not loaded, with a warning, so that the model can be fine-tuned.

    Args:
        model: the model.
        path: a state dict saved with torch.save, or a safetensors file.
        name: the model's name, for messages.
        classifiers: the names of the modules that depend on the number of classes.

    Raises:
        ConfigError: the file is missing, holds anything but weights, or belongs to another model.
    """
    state = _read(path)
    own = model.state_dict()
    stranger = [key for key in own if _within(key, classifiers) and not _same_shape(key, own, state)]
    if stranger:
        state = {key: value for key, value in state.items() if not _within(key, classifiers)}
        own = {key: value for key, value in own.items() if not _within(key, classifiers)}
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    other_shape = [key for key in own if key in state and own[key].shape != state[key].shape]
    problems = [
        f"{len(keys)} {what} (such as {keys[0]!r})"
        for keys, what in (
            (missing, "of its tensors are missing"),
            (unexpected, "are not its own"),
            (other_shape, "have another shape"),
        )
        if keys
    ]
    if problems:
        raise ConfigError(
            f"checkpoint={str(path)!r} does not fit model={name!r} at this image_size and number of channels: "
            f"{'; '.join(problems)}; give a checkpoint of this very model."
        )
    model.load_state_dict(state, strict=False)
    if stranger:
        logger.warning(
            "The classifier in %s has another number of classes and was not loaded; a new one is trained.",
            path,
        )


def _within(key: str, modules: Sequence[str]) -> bool:
    return any(key == module or key.startswith(f"{module}.") for module in modules)


def _same_shape(key: str, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> bool:
    return key in state and own[key].shape == state[key].shape


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ConfigError(f"checkpoint={str(path)!r} is not a file; give a local weights file.")
    try:
        if path.suffix == ".safetensors":
            state: Any = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (*UNREADABLE, safetensors.SafetensorError) as error:
        raise ConfigError(
            f"checkpoint={str(path)!r} cannot be read as weights ({type(error).__name__}); give a file that "
            f"holds weights alone: torch.save(model.state_dict(), file), or a .safetensors file."
        ) from error
    for key in NESTED_UNDER:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not (isinstance(state, dict) and state and all(isinstance(value, Tensor) for value in state.values())):
        raise ConfigError(
            f"checkpoint={str(path)!r} holds no state dict (names with tensors); give "
            f"torch.save(model.state_dict(), file), or a .safetensors file."
        )
    return {_unwrapped(key): value for key, value in state.items()}


def _unwrapped(key: str) -> str:
    for prefix in WRAPPER_PREFIXES:
        key = key.removeprefix(prefix)
    return key


def load_torchvision(model: nn.Module, weights: str, *, name: str) -> None:
    """Load torchvision's ImageNet weights into every tensor of `model` that has the same name and shape.

    The classifier keeps its fresh values, and so does the first convolution for small or gray images.

    Args:
        model: the model.
        weights: the name of the torchvision model.
        name: the model's name, for messages.

    Raises:
        ConfigError: the weights cannot be downloaded.
    """
    try:
        with download_timeout():
            state = torchvision.models.get_model_weights(weights).DEFAULT.get_state_dict(progress=False)
    except (OSError, RuntimeError) as error:
        raise unavailable(name, last_line(error)) from error
    own = model.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    model.load_state_dict(fitting, strict=False)
    fresh = [key for key in own if key not in fitting]
    logger.info("Pretrained weights of %s loaded; new: %s.", name, ", ".join(fresh) or "none")


def timm_model(name: str, **arguments: Any) -> nn.Module:
    """Build timm's model `name` with its pretrained weights; `arguments` go to `timm.create_model`.

    Raises:
        ConfigError: the model has no pretrained weights, or they cannot be downloaded.
    """
    hub_id = timm.models.get_pretrained_cfg_value(name, "hf_hub_id")
    if hub_id and (cached := _cached(hub_id)) is not None:
        # If it is given the file, timm does not ask the hub, so weights that were downloaded once also work offline.
        arguments["pretrained_cfg_overlay"] = {"file": cached}
    elif hub_id and (reason := _hub_unreachable()) is not None:
        # The hub's own client would retry for most of a minute before it reported the same.
        raise unavailable(name, reason)
    try:
        with download_timeout():
            model: nn.Module = timm.create_model(name, pretrained=True, **arguments)
    except OSError as error:
        raise unavailable(name, last_line(error)) from error
    except RuntimeError as error:
        if "No pretrained weights" not in str(error):
            raise
        raise no_weights(name) from error
    return model


def unavailable(name: str, reason: str) -> ConfigError:
    return ConfigError(
        f"pretrained=True: the weights of model={name!r} could not be downloaded ({reason}); connect to the "
        f"internet, or give checkpoint=FILE with weights that are on this machine."
    )


def no_weights(name: str) -> ConfigError:
    return ConfigError(
        f"pretrained=True: model={name!r} has no pretrained weights; leave pretrained out, or give "
        f"checkpoint=FILE."
    )


def _cached(hub_id: str) -> str | None:
    """Return the file of weights that an earlier download has left on this machine; None if there is none."""
    files = (huggingface_hub.try_to_load_from_cache(hub_id, file) for file in HUB_WEIGHTS)
    return next((file for file in files if isinstance(file, str)), None)


def _hub_unreachable() -> str | None:
    """Return why the hub does not answer; None if it answers, with whatever status."""
    request = urllib.request.Request(huggingface_hub.constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT_SECONDS):
            return None
    except urllib.error.HTTPError:
        return None
    except OSError as error:
        return last_line(error)
