"""Takes our hooks off a module while `torch.jit.script` compiles it: our hooks cannot be compiled with the module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from mlflow_dynamics.recording.hooks import is_ours
from mlflow_dynamics.recording.patching import Patch
from mlflow_dynamics.recording.torch_private import HOOKS, SCRIPT_COMPILER

_allowed: list[Scriptable] = []


class Scriptable:
    """Lets models with our hooks be scripted, from now until `remove()`. All instances share one patch of torch."""

    _patch: Patch | None = None

    def __init__(self) -> None:
        _allowed.append(self)
        if Scriptable._patch is None:
            Scriptable._patch = Patch(SCRIPT_COMPILER, "create_script_module", inside=_without_hooks)

    def remove(self) -> None:
        """Give torch its own function back, if this is the last instance."""
        if self in _allowed:
            _allowed.remove(self)
        if not _allowed and Scriptable._patch is not None:
            Scriptable._patch.remove()
            Scriptable._patch = None


@contextmanager
def _without_hooks(model: nn.Module, *_: Any, **__: Any) -> Iterator[None]:
    held: list[tuple[dict[int, Any], dict[int, Any]]] = []
    for module in model.modules():
        for name in HOOKS:
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
