"""MLflow's tracking store as the sender needs it: one try and a bounded wait for each request.

MLflow's own client hides up to seven retries (minutes) inside each call. They are steered by environment
variables that count for the whole process, the user's own calls included, so the sender leaves those alone
and passes "no retries" and a timeout with each request; it retries by itself, where that can be stopped.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

import mlflow
import requests
from google.protobuf.json_format import ParseError
from mlflow import MlflowClient
from mlflow.entities import FileInfo, Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.tracking.abstract_store import AbstractStore
from mlflow.store.tracking.rest_store import RestStore
from mlflow.tracking._tracking_service.utils import _get_store
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.mime_type_utils import _guess_mime_type
from mlflow.utils.proto_json_utils import parse_dict
from mlflow.utils.request_utils import augmented_raise_for_status
from mlflow.utils.rest_utils import http_request, verify_rest_response

from mlflow_dynamics.errors import TrackingError

CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 60.0
_HTTP: Final = ("http", "https")
_WITHOUT_HOST: Final = ("sqlite", "file")
_ONE_TRY: Final = {"max_retries": 0, "raise_on_status": False}


class _OneTryRestStore(RestStore):
    """MLflow's REST store without its hidden retries."""

    def __init__(self, tracking_uri: str, read_timeout_s: float) -> None:
        super().__init__(partial(get_default_host_creds, tracking_uri))
        self._timeout = (CONNECT_TIMEOUT_S, read_timeout_s)

    def _call_endpoint(
        self,
        api: Any,
        json_body: Any = None,
        endpoint: Any = None,
        retry_timeout_seconds: Any = None,
        response_proto: Any = None,
    ) -> Any:
        path, method = self._METHOD_TO_INFO[api]
        body = json.loads(json_body) if json_body else None
        payload = {"params" if method == "GET" else "json": body}
        creds = self.get_host_creds()
        response = http_request(creds, endpoint or path, method, timeout=self._timeout, **_ONE_TRY, **payload)
        response = verify_rest_response(response, endpoint or path)
        message = response_proto or api.Response()
        try:
            parse_dict(js_dict=json.loads(response.text), message=message)
        except (ValueError, ParseError) as error:
            raise MlflowException("the server's answer is not that of an MLflow server") from error
        return message


def connect(tracking_uri: str, *, read_timeout_s: float = READ_TIMEOUT_S) -> AbstractStore:
    """The store behind a tracking URI; nothing is sent yet to a server, while a database is opened."""
    if urlsplit(tracking_uri).scheme in _HTTP:
        return _OneTryRestStore(tracking_uri, read_timeout_s)
    return _get_store(tracking_uri)


def upload(artifact_uri: str, tracking_uri: str, path: str, data: bytes) -> None:
    """Write one artifact, replacing an older version of it."""
    repository = get_artifact_repository(artifact_uri, tracking_uri=tracking_uri)
    if isinstance(repository, HttpArtifactRepository):
        response = http_request(
            get_default_host_creds(repository.artifact_uri),
            f"/{path}",
            "PUT",
            data=data,
            extra_headers={"Content-Type": _guess_mime_type(path)},
            timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
            **_ONE_TRY,
        )
        augmented_raise_for_status(response)
        return
    target = PurePosixPath(path)
    with tempfile.TemporaryDirectory(prefix="mlflow_dynamics_") as folder:
        file = Path(folder) / target.name
        file.write_bytes(data)
        parent = target.parent.as_posix()
        repository.log_artifact(str(file), None if parent == "." else parent)


def download(run: Run, path: str) -> bytes:
    """Read one artifact of a run.

    Raises:
        TrackingError: the artifact store has no such file, refuses it or does not answer.
    """
    with _artifacts_of(run, path):
        repository = get_artifact_repository(run.info.artifact_uri, tracking_uri=mlflow.get_tracking_uri())
        if isinstance(repository, HttpArtifactRepository):
            creds = get_default_host_creds(repository.artifact_uri)
            response = http_request(creds, f"/{path}", "GET")
            augmented_raise_for_status(response)
            return response.content
        if isinstance(repository, LocalArtifactRepository):
            return Path(repository.artifact_dir, path).read_bytes()
        with tempfile.TemporaryDirectory(prefix="mlflow_dynamics_") as folder:
            return Path(repository.download_artifacts(path, folder)).read_bytes()


def list_folder(run: Run, path: str) -> list[FileInfo]:
    """What lies in a folder of a run's artifacts, nothing where there is no such folder; raises as `download` does."""
    with _artifacts_of(run, path):
        return list(MlflowClient().list_artifacts(run.info.run_id, path))


@contextmanager
def _artifacts_of(run: Run, path: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # stores are plug-ins, and cloud clients have errors of their own
        raise TrackingError(
            f"{path} of run {run.info.run_id!r} cannot be read from {redact(run.info.artifact_uri)}: {reason_of(error)}"
        ) from error


def redact(uri: str) -> str:
    """The URI without user, password and query: what may be written down and logged."""
    scheme, separator, rest = uri.partition("://")
    rest = rest.partition("?")[0]
    if not separator or scheme.startswith(_WITHOUT_HOST):
        return f"{scheme}{separator}{rest}" if separator else uri
    if scheme in _HTTP:
        host, slash, path = rest.partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    # A database's password may hold a slash, as SQLAlchemy reads it.
    return f"{scheme}://{rest.rpartition('@')[2]}"


def reason_of(error: BaseException) -> str:
    """The reason of a failure in one line of at most 200 characters, without credentials."""
    cause = error.__context__ if isinstance(error.__context__, requests.RequestException) else error
    if isinstance(cause, requests.Timeout):
        return "it does not answer in time"
    if isinstance(cause, requests.ConnectionError):
        return "there is no connection"
    line = re.sub(r"://\S*@", "://", " ".join(str(error).split())) or type(error).__name__
    line = re.sub(r"(/[^\s?]*)\?\S*", r"\1", line)
    return line if len(line) <= 200 else f"{line[:197]}..."


def absolute(uri: str) -> str:
    """The URI with a relative SQLite or folder path made absolute, so that it means the same anywhere."""
    scheme, separator, path = uri.partition(":///")
    if (
        separator
        and scheme.startswith("sqlite")
        and path
        and not Path(path).is_absolute()
        and path != ":memory:"
    ):
        return f"{scheme}:///{Path(path).absolute()}"
    return str(Path(uri).absolute()) if not urlsplit(uri).scheme and uri != "databricks" else uri
