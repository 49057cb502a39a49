"""All that is used of MLflow and requests beyond their public interfaces, and all in which MLflow's versions differ.

Seen in MLflow 3.17.2 and requests 2.34.2; MLflow 2.22 and 3.1 were tried too. A name that an MLflow has no more is an
ImportError here, with which recording is declined (`mlflow_dynamics.autolog`).
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
        """There is none."""
        return None


get_store: Final = _get_store
"""The store of a tracking URI."""

guess_mime_type: Final = _guess_mime_type
"""The type that MLflow gives a file of this path."""

NOUNS: Final = _GENERATOR_NOUNS
PREDICATES: Final = _GENERATOR_PREDICATES
"""Of such words, with a number, MLflow makes up a run's name."""

_TAKES_TRACKING_URI: Final = "tracking_uri" in inspect.signature(get_artifact_repository).parameters
"""From MLflow 3 on; before, what a tracking server keeps was looked for at MLflow's own."""

monitors: Final[dict[str | None, Any]] = fluent.run_id_to_system_metrics_monitor
"""Run id -> what logs the machine's load into the run."""


def run_stack() -> list[ActiveRun]:
    """The calling thread's active runs, each nested in the one before it; changes are MLflow's own."""
    stack: list[ActiveRun] = fluent._active_run_stack.get()
    return stack


def run_stacks() -> list[list[ActiveRun]]:
    """The active runs of every thread, the calling thread's first."""
    return [run_stack(), *fluent._active_run_stack.get_all_thread_values().values()]


def set_last_active_run(run_id: str | None) -> None:
    """What `mlflow.last_active_run()` says in this thread from now on."""
    fluent._last_active_run_id.set(run_id)


def chosen_experiment_id() -> str | None:
    """The experiment that the script has set with `mlflow.set_experiment`, if any."""
    return fluent._active_experiment_id


def experiment_id() -> str:
    """The experiment in which a new run begins."""
    return str(fluent._get_experiment_id())


def start_monitor(run_id: str) -> None:
    """Begin to log the machine's load into a run; ImportError without psutil, which MLflow does not install."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitors[run_id] = SystemMetricsMonitor(run_id)
    monitors[run_id].start()


def stop_without_waiting(monitor: Any) -> None:
    """End a monitor; its own end waits for the server."""
    monitor._shutdown_event.set()


def latest_metrics(run: Run) -> list[Metric]:
    """The last value of each metric of a run, with step and time."""
    found: list[Metric] = run.data._metric_objs
    return found


def dataset_fields(dataset: Dataset) -> dict[str, Any]:
    """A data set as MLflow stores it."""
    return dict(dataset._to_mlflow_entity())


def repository_of(uri: str, tracking_uri: str) -> ArtifactRepository:
    """The artifacts at a URI that a run of this tracking store names."""
    if _TAKES_TRACKING_URI:
        return get_artifact_repository(uri, tracking_uri=tracking_uri)
    if urlsplit(uri).scheme == "mlflow-artifacts":
        uri = MlflowArtifactsRepository.resolve_uri(uri, tracking_uri)
    return get_artifact_repository(uri)


def endpoint_of(store: RestStore, api: Any) -> tuple[str, str]:
    """(path, method) of a call to a tracking server."""
    endpoints = getattr(store, "_METHOD_TO_INFO", None) or vars(rest_store)["_METHOD_TO_INFO"]
    path, method = endpoints[api]
    return path, method


def set_content(response: requests.Response, content: bytes) -> None:
    """Give a streamed response the content that was read from it."""
    response._content = content
