"""The old name of `mlflow_dynamics.recomputing`. The function is now `mlflow_dynamics.recompute`.

This module can be called, because importing it replaces the function of the same name in the package.
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
