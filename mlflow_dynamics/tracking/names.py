"""Every metric key, tag, environment variable and artifact path of this project, in one place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final

from mlflow_dynamics.errors import ConfigError, DataError
from mlflow_dynamics.records import Measures

SCHEMA_VERSION: Final = 1
"""Version of the formats of Parquet files and spool. A reader refuses files of a newer version than its own."""

MAX_KEY_LENGTH: Final = 250
"""MLflow's limit on metric, parameter and tag keys (mlflow.utils.validation.MAX_ENTITY_KEY_LENGTH)."""

OURS: Final = "dynamics/"
"""The beginning of the key of every metric of ours."""

TRAIN_LOSS: Final = "train/loss"
TRAIN_ACCURACY: Final = "train/accuracy"
LEARNING_RATE: Final = "train/learning_rate"
EPOCH_SECONDS: Final = "train/epoch_seconds"
IMAGES_PER_SECOND: Final = "train/images_per_second"
VALIDATION_LOSS: Final = "validation/loss"
VALIDATION_ACCURACY: Final = "validation/accuracy"

INTEGRATION: Final = "dynamics/integration"
GLOBAL_INTEGRATION: Final = "dynamics/global_integration"
METASTABILITY: Final = "dynamics/metastability"
SYNCHRONY: Final = "dynamics/synchrony"
METASTABILITY_RATIO: Final = "dynamics/metastability_ratio"
METASTABILITY_UNBIASED: Final = "dynamics/metastability_unbiased"
STABILITY: Final = "dynamics/stability"
INTEGRATION_LOW: Final = "dynamics/integration_low"
INTEGRATION_HIGH: Final = "dynamics/integration_high"
COUPLING_P: Final = "dynamics/coupling_p"
METASTABILITY_P: Final = "dynamics/metastability_p"
VOLATILITY: Final = "dynamics/volatility"

# MLflow shows the metrics of each group in a panel of its own. This group holds what is not looked at in each run, so
# that the panel of `dynamics/` begins with the measures.
LAYERS_DROPPED: Final = "dynamics/details/layers_dropped"
WINDOW: Final = "dynamics/details/window"
START_UP: Final = "dynamics/details/start_up"
"""1 if an epoch's window is not full or holds some of the training's first steps, otherwise 0."""
CONVERGENCE_SIGNAL: Final = "dynamics/details/convergence_signal"
CONVERGENCE_SCORE: Final = "dynamics/details/convergence_score"
GLOBAL_STEP: Final = "dynamics/details/global_step"
"""The framework's own count of steps, with which it logs, at the end of each epoch."""

EARLIER_KEYS: Final = {
    key: key.replace("/details", "")
    for key in (LAYERS_DROPPED, WINDOW, START_UP, CONVERGENCE_SIGNAL, CONVERGENCE_SCORE, GLOBAL_STEP)
}
"""Metric key -> its key in runs that were recorded before version 0.2."""

MACHINE_LOAD: Final = "system/"
"""How the metrics begin that MLflow logs of the machine's load."""

MEASURE_METRICS: Final = {
    INTEGRATION: "integration",
    GLOBAL_INTEGRATION: "global_integration",
    METASTABILITY: "metastability",
    SYNCHRONY: "synchrony",
    METASTABILITY_RATIO: "metastability_ratio",
    METASTABILITY_UNBIASED: "metastability_unbiased",
    STABILITY: "stability",
    LAYERS_DROPPED: "layers_dropped",
    WINDOW: "window",
    START_UP: "start_up",
}
"""Metric key -> field of `records.Measures`."""

UNCERTAINTY_METRICS: Final = {
    INTEGRATION_LOW: "integration_low",
    INTEGRATION_HIGH: "integration_high",
    COUPLING_P: "coupling_p",
    METASTABILITY_P: "metastability_p",
}
"""Metric key -> field of `records.Measures`, for the measures that are logged only on request."""

DYNAMICS_METRICS: Final = (*MEASURE_METRICS, VOLATILITY, CONVERGENCE_SIGNAL, CONVERGENCE_SCORE)

TAG_SCHEMA_VERSION: Final = "dynamics.schema_version"
TAG_CONVERGED_EPOCH: Final = "dynamics.converged_epoch"
TAG_UNSETTLED_EPOCH: Final = "dynamics.unsettled_epoch"
TAG_DIVERGING_EPOCH: Final = "dynamics.diverging_epoch"
STATE_TAGS: Final = {
    "converging": TAG_CONVERGED_EPOCH,
    "unsettled": TAG_UNSETTLED_EPOCH,
    "diverging": TAG_DIVERGING_EPOCH,
}
"""State of a verdict that is raised -> tag that holds the first epoch of the state."""
TAG_STOPPED_EARLY: Final = "dynamics.stopped_early"
TAG_STOP_REQUESTED: Final = "dynamics.stop_requested"
"""Tag that is set from outside (`mlflow-dynamics watch --stop`): a tracked run stops after its next epoch."""
TAG_LOCAL_ID: Final = "dynamics.local_id"
"""Tag of every run that we have created: the id in the run's local record, by which the run is found again."""

MODEL_TRAINING_KIND: Final = ("mlflow.experimentKind", "custom_model_development")
"""Tag that marks an experiment as one for training models. (The UI of MLflow 3.17 ignores this tag: it opens the view
that was used last, or the one that a link asks for with `workflowType=machine_learning`.)"""

TAG_DESCRIPTION: Final = "mlflow.note.content"
"""MLflow's own tag for the description of a run in its UI."""

DESCRIPTION: Final = "**Dynamics.** "
"""The beginning of a description of ours. A description that begins otherwise is the user's and is not changed."""

ARTIFACT_ROOT: Final = "dynamics"
ACTIVATIONS: Final = "dynamics/activations"
LAYER_MEASURES: Final = "dynamics/layer_measures.parquet"
LAYERS: Final = "dynamics/layers.parquet"
REPORT: Final = "dynamics/report.html"

FIGURES: Final = "dynamics/figures"
GLANCE: Final = "dynamics/figures/glance.png"
"""The small picture in a run's description."""

RUN_ID: Final = "[0-9a-zA-Z_-]{1,64}"
"""Pattern of the run ids that MLflow makes, and of local names."""

RUN_ID_WORDS: Final = "the id of an MLflow run: 1 to 64 letters, digits, '_' or '-'"

LOCAL_PREFIX: Final = "local-"
"""The beginning of the local name of a run that the server has not created yet."""

ENV_SPOOL: Final = "MLFLOW_DYNAMICS_SPOOL"
DEFAULT_SPOOL: Final = ".mlflow_dynamics"

_EPOCH_PATH = re.compile(r"(?:^|/)epoch=(\d{1,9})/part-0\.parquet$")
_KEY = re.compile(r"^[/\w.\- :]+$")


def is_run_id(text: object) -> bool:
    """Whether `text` has the form of MLflow's run ids or of a local name. No other text becomes a folder's name."""
    return isinstance(text, str) and re.fullmatch(RUN_ID, text) is not None


def check_run_id(run_id: str) -> str:
    """Return `run_id` unchanged; raise ConfigError if `is_run_id` is False for it."""
    if not is_run_id(run_id):
        raise ConfigError(f"run_id={run_id!r:.100} must be {RUN_ID_WORDS}.")
    return run_id


def activations_path(epoch: int) -> str:
    """Return the path `dynamics/activations/epoch=0/part-0.parquet`: one file of the Hive-partitioned data set."""
    return _partition(ACTIVATIONS, epoch)


def layer_measures_path(epoch: int) -> str:
    """Return the path `dynamics/layer_measures.parquet/epoch=0/part-0.parquet`.

    Each epoch has a file of its own, so that the next epoch can be written without the earlier ones. A resumed run and
    a run without a server then write the same files.
    """
    return _partition(LAYER_MEASURES, epoch)


def figure_path(name: str) -> str:
    """Return the path `dynamics/figures/NAME.png`."""
    return f"{FIGURES}/{name}.png"


def epoch_of(path: str) -> int:
    """Return the epoch in a partition's path; raise DataError if it names none."""
    match = _EPOCH_PATH.search(path)
    if match is None:
        raise DataError(f"{path!r} is no epoch's file; expected .../epoch=0/part-0.parquet.")
    return int(match[1])


def epoch_in(tags: Mapping[str, str], tag: str) -> int | None:
    """Return the epoch in a tag of `STATE_TAGS`; None if the run lacks the tag or the tag holds any other text."""
    value = tags.get(tag, "")
    return int(value) if re.fullmatch("[0-9]{1,9}", value) else None


def measure_metrics(measures: Measures) -> dict[str, float]:
    """Return an epoch's measures by metric key. Undefined measures are left out, never logged as 0."""
    values = {
        key: float(getattr(measures, field)) for key, field in (MEASURE_METRICS | UNCERTAINTY_METRICS).items()
    }
    if measures.reason is not None and not measures.layers_dropped:
        # Nothing was measured, so a count of 0 dropped layers would be misleading.
        del values[LAYERS_DROPPED]
    return {key: value for key, value in values.items() if value == value}


def is_key(key: object) -> bool:
    """Whether MLflow accepts `key` as the key of a metric, parameter or tag."""
    safe = isinstance(key, str) and _KEY.match(key) is not None and _is_normal_path(key)
    return safe and len(str(key)) <= MAX_KEY_LENGTH


def check_key(kind: str, key: str) -> str:
    """Return `key` unchanged; raise ConfigError if MLflow would refuse it as the key of a metric, parameter or tag."""
    if not is_key(key):
        raise ConfigError(
            f"{kind} key {key!r} is not one that MLflow takes: use at most {MAX_KEY_LENGTH} letters, digits, "
            "spaces and _ - . : / and no part that is empty, '.' or '..'."
        )
    return key


def check_keys(kind: str, values: Mapping[str, object]) -> None:
    """Raise ConfigError for the first key that MLflow would refuse."""
    for key in values:
        check_key(kind, key)


def check_artifact_path(path: str) -> str:
    """Return `path` unchanged; raise ConfigError unless it is relative, in POSIX form and stays in the run's folder."""
    if not path or "\\" in path or ":" in path or not path.isprintable() or not _is_normal_path(path):
        raise ConfigError(
            f"artifact path {path!r} must be a relative path with '/' between its parts that stays in the "
            "run's artifact folder: no '..', '.', '\\', ':', empty part or character that cannot be printed."
        )
    return path


def _partition(root: str, epoch: int) -> str:
    # The number has no leading zeros, which earlier versions wrote, because DuckDB reads `epoch=00008` as text.
    return f"{root}/epoch={epoch}/part-0.parquet"


def _is_normal_path(path: str) -> bool:
    # MLflow refuses a leading '..' even if it only begins a name, as in '...' or '..x'.
    pure = PurePosixPath(path)
    inside = not pure.is_absolute() and ".." not in pure.parts and not path.startswith("..")
    return str(pure) == path and inside and path != "."
