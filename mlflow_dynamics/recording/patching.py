"""Replaces functions of torch and MLflow by ours, and gives them back exactly as they were."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any, Final

PASSED_OVER: Final = "<mlflow_dynamics, passed over like importlib._bootstrap>"
"""The file name of our frames that only stand between a script and torch or MLflow.

`warnings.warn(..., stacklevel=n)` counts no frame whose file has "importlib" and "_bootstrap" in its name (CPython's
`_is_internal_frame`, seen in 3.11 to 3.14). So torch's and MLflow's warnings name the script's line, not ours.
"""


class Patch:
    """Hears each call of `owner.name`, until `remove()`; the call itself goes to the original.

    If somebody else has patched over our function meanwhile, their patch stays, and ours becomes a plain call of the
    original.

    Args:
        owner: the module or class that has the function.
        name: the function's name there.
        before: called with the arguments before the original is called.
        after: called with the original's result and the arguments.
        inside: called with the arguments; returns the context in which the original is called and may fail.
    """

    def __init__(
        self,
        owner: Any,
        name: str,
        *,
        before: Callable[..., None] | None = None,
        after: Callable[..., None] | None = None,
        inside: Callable[..., AbstractContextManager[object]] | None = None,
    ) -> None:
        self._owner, self._name = owner, name
        self._original = original = vars(owner)[name]

        def heard(*args: Any, **kwargs: Any) -> Any:
            if not self._active:
                return original(*args, **kwargs)
            if before is not None:
                before(*args, **kwargs)
            if inside is None:
                result = original(*args, **kwargs)
            else:
                with inside(*args, **kwargs):
                    result = original(*args, **kwargs)
            if after is not None:
                after(result, *args, **kwargs)
            return result

        heard.__code__ = heard.__code__.replace(co_filename=PASSED_OVER)
        self._active = True
        self._replaced = functools.update_wrapper(heard, original)
        setattr(owner, name, heard)

    def remove(self) -> None:
        """Give the original back."""
        self._active = False
        if vars(self._owner).get(self._name) is self._replaced:
            setattr(self._owner, self._name, self._original)


def places_of(*functions: Callable[..., Any]) -> list[tuple[ModuleType, str, Callable[..., Any]]]:
    """All places (module, name, function) that hold one of them: a script may have imported it by name before."""
    wanted = {id(function) for function in functions}
    modules = [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]
    return [
        (module, name, value)
        for module in modules
        if not wanted.isdisjoint(map(id, list(vars(module).values())))
        for name, value in list(vars(module).items())
        if id(value) in wanted
    ]
