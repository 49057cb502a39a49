"""Names that have changed. The old names work for one more release, with a warning that gives the new name."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

from mlflow_dynamics.errors import ConfigError

GONE_IN: Final = "0.3.0"

P = ParamSpec("P")
R = TypeVar("R")


def warn_of_old_name(old: str, new: str, *, stacklevel: int) -> None:
    """Warn the caller who wrote `old`, `stacklevel` frames up, to write `new`.

    The warning is a FutureWarning, as MLflow's are, because Python shows these by default.
    """
    warnings.warn(
        f"{old} is deprecated and goes with mlflow_dynamics {GONE_IN}; write {new}.",
        FutureWarning,
        stacklevel=stacklevel + 1,
    )


def renamed(**new_names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator with which a function takes keyword arguments under their old names too.

    Type checkers and editors know only the new names.

    Args:
        new_names: old name -> new name.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def taking_old_names(*args: P.args, **kwargs: P.kwargs) -> R:
            for old, new in new_names.items():
                if old in kwargs:
                    if new in kwargs:
                        raise ConfigError(
                            f"{old}= and {new}= are two names of one argument; give {new}= alone."
                        )
                    warn_of_old_name(f"{function.__name__}({old}=...)", f"{new}=", stacklevel=2)
                    kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return taking_old_names

    return decorate
