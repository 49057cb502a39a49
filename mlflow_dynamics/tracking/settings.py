"""Writes how a run is recorded, measured and judged as the run's parameters, and reads it back from them."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any, Final, TypeVar

from mlflow.entities import Run

from mlflow_dynamics.config import AUTO, MeasureConfig, RecordingConfig
from mlflow_dynamics.convergence import WarningConfig
from mlflow_dynamics.convergence.schedule import schedule_of
from mlflow_dynamics.errors import ConfigError, TrackingError

PREFIX: Final = "dynamics/"
"""The beginning of the parameters that say how a run was recorded, measured and judged."""

PROJECT_PARAMETERS: Final = {
    "dynamics/record_every": "record_every",
    "dynamics/batch_samples": "batch_samples",
    "dynamics/signal": "signal",
    "dynamics/protocol": "protocol",
    "dynamics/window": "window",
    "dynamics/estimator": "estimator",
    "dynamics/uncertainty": "uncertainty",
    "dynamics/warning/detector": "detector",
    "dynamics/warning/mode": "early_stopping",
    "dynamics/warning/stop_before_last_phase": "stop_before_last_phase",
    "dynamics/warning/schedule": "schedule",
    "dynamics/warning/planned_epochs": "epochs",
}
"""Parameter of ours -> the name under which a run of the MLproject holds the same setting. `mlflow run` itself logs all
parameters of the entry point."""

WARNING_PREFIX: Final = "dynamics/warning/"

UNKNOWN: Final = "not logged"

MEANING: Final = (*(field.name for field in fields(RecordingConfig)), "signal", "protocol", "estimator")
"""Settings that change what integration and metastability mean. The window changes it too, but a window that follows
the training has no fixed length; the length that it has in each epoch is a metric."""

_TEXT: Final = ("signal", "protocol", "estimator")

_WORDS: Final = {"true": True, "false": False, "none": None, "all": None, AUTO: None}

Config = TypeVar("Config", RecordingConfig, MeasureConfig)


def settings_in(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the settings among a run's parameters, under their names below dynamics/.

    A setting that a run of the MLproject holds as "auto" is left out.
    """
    settings = {key: value for key, value in parameters.items() if key.startswith(PREFIX)}
    if settings and "dynamics/signal" not in settings:  # only runs of the MLproject lack this parameter
        elsewhere = {key: parameters[name] for key, name in PROJECT_PARAMETERS.items() if name in parameters}
        settings |= {key: value for key, value in elsewhere.items() if value != "auto"}
    return settings


def recorded_parameters(recording: RecordingConfig, measures: MeasureConfig) -> dict[str, object]:
    """Return the settings that the recorded numbers depend on, as parameters of the run."""
    values: dict[str, object] = asdict(recording) | asdict(measures)
    values["estimator"] = measures.resolved_estimator
    values["window"] = measures.window or AUTO
    return {f"{PREFIX}{key}": value for key, value in values.items()}


def warning_parameters(values: Mapping[str, object]) -> dict[str, object]:
    """Return the settings that the warning depends on, as parameters of the run."""
    return {f"{WARNING_PREFIX}{key}": value for key, value in values.items()}


def measures_in(run_id: str, parameters: Mapping[str, str]) -> MeasureConfig:
    """Read how a run was measured. A setting that the parameters lack has its default.

    Raises:
        TrackingError: the parameters were not written by mlflow_dynamics.
    """
    return _read(MeasureConfig, run_id, parameters)


def recording_in(run_id: str, parameters: Mapping[str, str]) -> RecordingConfig:
    """Read how a run was recorded, as `measures_in` does."""
    return _read(RecordingConfig, run_id, parameters)


def meaning_in(run_id: str, parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the value of each setting of `MEANING` in a run, with defaults resolved.

    All values are "not logged" if the run has no parameters of ours.

    Raises:
        TrackingError: the parameters were not written by mlflow_dynamics.
    """
    if not settings_in(parameters):
        return dict.fromkeys(MEANING, UNKNOWN)
    resolved = recorded_parameters(recording_in(run_id, parameters), measures_in(run_id, parameters))
    return {key: str(resolved[f"{PREFIX}{key}"]) for key in MEANING}


def warning_in(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that a run's warning depends on, name -> value."""
    return {
        key.removeprefix(WARNING_PREFIX): value
        for key, value in settings_in(parameters).items()
        if key.startswith(WARNING_PREFIX)
    }


def require_same(run_id: str, parameters: Mapping[str, str], wanted: Mapping[str, object]) -> None:
    """Refuse to carry a run on with other settings than its own, because its epochs would not be comparable.

    Raises:
        ConfigError: a parameter of the run has another value than the wanted one.
    """
    settings = settings_in(parameters)
    for key, value in wanted.items():
        if settings.get(key, str(value)) != str(value):
            raise ConfigError(
                f"resume={run_id!r} holds epochs recorded with {key.removeprefix(PREFIX)}={settings[key]}, not "
                f"{value}; leave the setting as it was, or train in a run of its own, without resume."
            )


def settings_to_carry_on(
    run: Run, recording: RecordingConfig | None, measures: MeasureConfig | None, warning: WarningConfig
) -> tuple[RecordingConfig, MeasureConfig, WarningConfig]:
    """Return the settings of a run that is carried on.

    Args:
        run: the run.
        recording, measures: the settings that the caller has given; None takes the run's own.
        warning: the settings of the warning; the schedule is taken from the run, if the run has one.

    Raises:
        ConfigError: a given setting differs from the run's own.
        TrackingError: the run's parameters were not written by mlflow_dynamics.
    """
    run_id, parameters = run.info.run_id, run.data.params
    recording = recording or recording_in(run_id, parameters)
    measures = measures or measures_in(run_id, parameters)
    wanted = recorded_parameters(recording, measures) | warning_parameters({"detector": warning.detector})
    require_same(run_id, parameters, wanted)
    known = warning_in(parameters)
    if "schedule" in known:
        warning = replace(warning, schedule=schedule_of(known))
    return recording, measures, warning


def _value(text: str) -> Any:
    """Read the value of a parameter, in the form that Python writes or that `mlflow run` accepts."""
    return _WORDS[text] if text in _WORDS else ast.literal_eval(text)


def _read(config: Callable[..., Config], run_id: str, parameters: Mapping[str, str]) -> Config:
    settings = settings_in(parameters)
    values: dict[str, Any] = {}
    for field in fields(config):  # type: ignore[arg-type]
        text = settings.get(f"{PREFIX}{field.name}")
        if text is None:
            continue
        try:
            values[field.name] = text if field.name in _TEXT else _value(text)
        except (ValueError, SyntaxError) as error:
            raise TrackingError(
                f"Run {run_id!r} says {PREFIX}{field.name}={text!r}, which mlflow_dynamics does not write."
            ) from error
    try:
        return config(**values)
    except (ConfigError, TypeError) as error:
        raise TrackingError(
            f"Run {run_id!r} has settings that mlflow_dynamics does not write: {error}"
        ) from error
