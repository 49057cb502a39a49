"""Functions of torch and MLflow replaced by ours and given back exactly as they were."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

Around = Callable[[Callable[..., Any]], Callable[..., Any]]


class Patch:
    """`owner.name` replaced by `around(original)` until `remove()`.

    Where somebody else has patched over us meanwhile, theirs stays and ours becomes a plain call of the
    original.
    """

    def __init__(self, owner: Any, name: str, around: Around) -> None:
        self._owner, self._name = owner, name
        self._original = original = vars(owner)[name]
        watching = around(original)

        @functools.wraps(original)
        def replaced(*args: Any, **kwargs: Any) -> Any:
            return (watching if self._active else original)(*args, **kwargs)

        self._active = True
        self._replaced = replaced
        setattr(owner, name, replaced)

    def remove(self) -> None:
        """Give the original back."""
        self._active = False
        if vars(self._owner).get(self._name) is self._replaced:
            setattr(self._owner, self._name, self._original)


def places_of(*functions: Callable[..., Any]) -> list[tuple[ModuleType, str, Callable[..., Any]]]:
    """Every module loaded that has one of them, its name there, and which: a script may have imported it before."""
    wanted = {id(function) for function in functions}
    modules = [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]
    return [
        (module, name, value)
        for module in modules
        if not wanted.isdisjoint(map(id, list(vars(module).values())))
        for name, value in list(vars(module).items())
        if id(value) in wanted
    ]
