"""Everything that this package uses of MLflow and requests beyond their public interfaces, and everything that differs
between versions of MLflow.

The names were seen in MLflow 3.17.2 and requests 2.34.2; MLflow 2.22 and 3.1 were tried too. If an MLflow lacks a name,
this module raises ImportError, and `mlflow_dynamics.autolog` declines to record.
"""

from __future__ import annotations

import inspect
from typing import Any, Final
from urllib.parse import urlsplit

import requests
from mlflow import ActiveRun
from mlflow.data.dataset import Dataset
from mlflow.entities import Metric, Run
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.store.tracking import rest_store
from mlflow.store.tracking.rest_store import RestStore
from mlflow.tracking import fluent
from mlflow.tracking._tracking_service.utils import _get_store
from mlflow.utils.mime_type_utils import _guess_mime_type
from mlflow.utils.name_utils import _GENERATOR_NOUNS, _GENERATOR_PREDICATES

try:
    from mlflow.utils.workspace_context import get_request_workspace
except ImportError:  # workspaces came with MLflow 3.6

    def get_request_workspace() -> str | None:
        """Return None: this MLflow has no workspaces."""
        return None


get_store: Final = _get_store
"""Returns the store of a tracking URI."""

guess_mime_type: Final = _guess_mime_type
"""Returns the MIME type that MLflow gives to a file of this path."""

NOUNS: Final = _GENERATOR_NOUNS
PREDICATES: Final = _GENERATOR_PREDICATES
"""MLflow makes up the name of a run of a predicate, a noun and a number."""

_TAKES_TRACKING_URI: Final = "tracking_uri" in inspect.signature(get_artifact_repository).parameters
"""True from MLflow 3 on. Earlier versions look for artifacts that a server keeps only at MLflow's own tracking URI."""

monitors: Final[dict[str | None, Any]] = fluent.run_id_to_system_metrics_monitor
"""Run id -> the monitor that logs the machine's load into the run."""


def run_stack() -> list[ActiveRun]:
    """Return MLflow's own list of the calling thread's active runs, each nested in the one before it.

    A change of the list changes MLflow's active runs.
    """
    stack: list[ActiveRun] = fluent._active_run_stack.get()
    return stack


def run_stacks() -> list[list[ActiveRun]]:
    """Return the list of active runs of every thread, the calling thread's first."""
    return [run_stack(), *fluent._active_run_stack.get_all_thread_values().values()]


def set_last_active_run(run_id: str | None) -> None:
    """Set the run that `mlflow.last_active_run()` returns in this thread."""
    fluent._last_active_run_id.set(run_id)


def chosen_experiment_id() -> str | None:
    """Return the experiment that the script has set with `mlflow.set_experiment`; None if it has set none."""
    return fluent._active_experiment_id


def experiment_id() -> str:
    """Return the experiment in which MLflow would begin a new run."""
    return str(fluent._get_experiment_id())


def start_monitor(run_id: str, *, goes_on: bool) -> None:
    """Begin to log the machine's load into a run, after what the run holds of it already if this `goes_on`.

    Raises:
        ImportError: psutil is missing, which MLflow does not install.
    """
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitors[run_id] = SystemMetricsMonitor(run_id, resume_logging=goes_on)
    monitors[run_id].start()


def stop_without_waiting(monitor: Any) -> None:
    """End a monitor. Its own method for this would wait for the server."""
    monitor._shutdown_event.set()


def latest_metrics(run: Run) -> list[Metric]:
    """Return the last value of each metric of a run, with step and time."""
    found: list[Metric] = run.data._metric_objs
    return found


def dataset_fields(dataset: Dataset) -> dict[str, Any]:
    """Return the fields of a data set as MLflow stores them."""
    return dict(dataset._to_mlflow_entity())


def repository_of(uri: str, tracking_uri: str) -> ArtifactRepository:
    """Return the repository of the artifacts at a URI that a run of this tracking store names."""
    if _TAKES_TRACKING_URI:
        return get_artifact_repository(uri, tracking_uri=tracking_uri)
    if urlsplit(uri).scheme == "mlflow-artifacts":
        uri = MlflowArtifactsRepository.resolve_uri(uri, tracking_uri)
    return get_artifact_repository(uri)


def endpoint_of(store: RestStore, api: Any) -> tuple[str, str]:
    """Return the path and the HTTP method of a call to a tracking server."""
    endpoints = getattr(store, "_METHOD_TO_INFO", None) or vars(rest_store)["_METHOD_TO_INFO"]
    path, method = endpoints[api]
    return path, method


def set_content(response: requests.Response, content: bytes) -> None:
    """Store in a streamed response the content that was read from it."""
    response._content = content
