"""The arguments that `track`, `autolog` and the frameworks' callbacks share, checked before any work starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from torch import nn
from torch.optim import Optimizer

from mlflow_dynamics.alerts import check_on_event
from mlflow_dynamics.checks import check_flag, check_instance, check_whole, require
from mlflow_dynamics.config import MeasureConfig, RecordingConfig
from mlflow_dynamics.convergence import WarningConfig
from mlflow_dynamics.errors import ConfigError
from mlflow_dynamics.redaction import redact
from mlflow_dynamics.tracking.names import RUN_ID_WORDS, is_key, is_run_id
from mlflow_dynamics.tracking.store import HTTP


def check_arguments(**arguments: object) -> None:
    """Check each argument by its name, in the order of the call.

    Raises:
        ConfigError: an argument is not usable; the message names the first such argument.
    """
    for name, value in arguments.items():
        _CHECKS[name](name, value)
    warning = arguments.get("warning")
    if arguments.get("on_event") is not None and isinstance(warning, WarningConfig) and warning.mode == "off":
        raise ConfigError("on_event=... is told what the early warning finds, and WarningConfig(mode='off') turns "
                          "that off; leave one of the two out.")  # fmt: skip


def _check_run_id(name: str, value: object) -> None:
    require(value is None or is_run_id(value), name, value, f"{RUN_ID_WORDS}, or None")


def _check_tracking_uri(name: str, value: object) -> None:
    holds = value is None or (isinstance(value, str) and value.strip() != "")
    words = "a tracking URI as text, such as 'http://localhost:5000', or None"
    require(holds, name, value, words)
    require(value is None or _is_address(str(value)), name, redact(str(value)), words)


def _is_address(uri: str) -> bool:
    try:
        parts = urlsplit(uri)
        return parts.scheme not in HTTP or parts.port != 0
    except ValueError:  # the port is no number, or an IPv6 address is incomplete
        return False


def _check_on_sigterm(name: str, value: object) -> None:
    words = "None (signals are left alone) or 'end' (SIGTERM and SIGHUP end the run first)"
    require(value in (None, "end"), name, value, words)


def _check_loop_log(name: str, value: object) -> None:
    require(value is None or isinstance(value, str | Path), name, value, "the path of a file, or None")


def _check_tags(name: str, value: object) -> None:
    holds = value is None or (
        isinstance(value, Mapping)
        and all(is_key(key) and isinstance(text, str) for key, text in value.items())
    )
    require(holds, name, value, "a dictionary of tags, key -> text, with keys that MLflow takes, or None")


def _instance_check(kind: type, words: str) -> Callable[[str, object], None]:
    return partial(check_instance, kind=kind, words=words)


_CHECKS: Final[Mapping[str, Callable[[str, object], None]]] = {
    "model": _instance_check(nn.Module, "a torch.nn.Module"),
    "optimizer": _instance_check(Optimizer, "a torch.optim.Optimizer or None"),
    "recording": _instance_check(RecordingConfig, "a mlflow_dynamics.RecordingConfig or None"),
    "measures": _instance_check(MeasureConfig, "a mlflow_dynamics.MeasureConfig or None"),
    "warning": _instance_check(WarningConfig, "a mlflow_dynamics.WarningConfig or None"),
    "log_every_n_epoch": check_whole,
    "run_id": _check_run_id,
    "resume": _check_run_id,
    "tracking_uri": _check_tracking_uri,
    "on_sigterm": _check_on_sigterm,
    "on_event": check_on_event,
    "loop_log": _check_loop_log,
    "disable": check_flag,
    "exclusive": check_flag,
    "silent": check_flag,
    "extra_tags": _check_tags,
}
