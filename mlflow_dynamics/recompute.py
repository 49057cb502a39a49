"""The old name of `mlflow_dynamics.recomputing`, whose `recompute` is `mlflow_dynamics.recompute` now.

A module takes the place of the function of its name in the package as soon as it is imported: so this one can be
called.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from mlflow_dynamics.deprecation import warn_of_old_name
from mlflow_dynamics.recomputing import log_recomputed, recompute, settings_of

__all__ = ["log_recomputed", "recompute", "settings_of"]


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return recompute(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
warn_of_old_name(
    "The module mlflow_dynamics.recompute", "mlflow_dynamics.recompute(run_id, config)", stacklevel=2
)
