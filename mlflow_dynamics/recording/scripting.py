"""`torch.jit.script` compiles a module's hooks with it: ours, which cannot be, are set aside meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mlflow_dynamics.recording.hooks import is_ours
from mlflow_dynamics.recording.patching import Patch

_allowed: list[Scriptable] = []


class Scriptable:
    """Lets models with our hooks be scripted, from now until `remove()`; one patch of torch serves all."""

    _patch: Patch | None = None

    def __init__(self) -> None:
        _allowed.append(self)
        if Scriptable._patch is None:
            Scriptable._patch = Patch(torch.jit._recursive, "create_script_module", _around)

    def remove(self) -> None:
        """Give torch its own function back, if this is the last."""
        if self in _allowed:
            _allowed.remove(self)
        if not _allowed and Scriptable._patch is not None:
            Scriptable._patch.remove()
            Scriptable._patch = None


def _around(original: Callable[..., Any]) -> Callable[..., Any]:
    def create(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _without_hooks(module):
            return original(module, *args, **kwargs)

    return create


@contextmanager
def _without_hooks(model: nn.Module) -> Iterator[None]:
    held: list[tuple[dict[int, Any], dict[int, Any]]] = []
    for module in model.modules():
        for name in ("_forward_pre_hooks", "_forward_hooks"):
            hooks = vars(module).get(name, {})
            ours = [key for key, hook in hooks.items() if is_ours(hook)]
            if ours:
                held.append((hooks, dict(hooks)))
                for key in ours:
                    del hooks[key]
    try:
        yield
    finally:
        for hooks, before in held:
            hooks.clear()
            hooks.update(before)
