"""Writes and reads the files of a run or a logged model at the place that the store names, if it can be trusted.

A server names the place of the files in an artifact URI. MLflow's client writes to any place so named, with all the
credentials that it has. Here, a place that is not the tracking server's own must be a folder of that very run or
model, and no other host gets the credentials of the tracking server.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import mlflow
import requests
import requests.auth
from mlflow.entities import FileInfo, Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.request_utils import augmented_raise_for_status
from mlflow.utils.uri import get_uri_scheme

from mlflow_dynamics.errors import TrackingError
from mlflow_dynamics.redaction import redact
from mlflow_dynamics.tracking.mlflow_private import guess_mime_type, repository_of
from mlflow_dynamics.tracking.store import (
    CONNECT_TIMEOUT_S,
    HTTP,
    NOT_MLFLOW,
    ONE_TRY,
    READ_TIMEOUT_S,
    ask,
    limit_of,
    read_answer,
    reading,
)

_LISTING: Final = "/mlflow-artifacts/artifacts"
"""Endpoint of a server that lists the files in a folder of the artifacts that it keeps."""

_OF_OTHERS: Final = ("runs", "models")
"""Schemes of URIs that only refer to another artifact URI, for which MLflow would ask the server again."""

_MISREAD: Final = re.compile(r"[\\@\s]")
"""Characters with which clients disagree about the host in an address: one takes for the user what another takes for
the host."""

_CUTS_A_PATH: Final = re.compile(r"[?#;]")
"""Characters at which some clients end the path of an address and others do not, so that they see different folders."""

_OF_MLFLOW: Final = "(m-)?[0-9a-f]{32}"
"""Pattern of the ids that MLflow's own servers make. A lying server could choose the id `Documents` to have files
written into a folder of that name."""

_BOUNDED: Final[Mapping[str, Any]] = {"timeout": (CONNECT_TIMEOUT_S, READ_TIMEOUT_S), **ONE_TRY}


class NoCredentials(requests.auth.AuthBase):
    """Keeps `requests` from sending the user and password that `~/.netrc` has for the host."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


def artifact_root(run: Run, tracking_uri: str) -> str:
    """Return the place of a run's files; raises as `believed_root` does."""
    return believed_root(str(run.info.artifact_uri), tracking_uri, owner="run", owner_id=str(run.info.run_id))


def believed_root(uri: str, tracking_uri: str, *, owner: str, owner_id: str) -> str:
    """Return the URI that a store names for the files of a run or a logged model, unchanged, if it can be trusted.

    Args:
        uri: the place that the store names.
        tracking_uri: the store; a store that is not a server is trusted.
        owner: the word for the owner of the files, "run" or "model", for the message.
        owner_id: the id of the run or model.

    Raises:
        MlflowException: a server names a place that is neither its own nor a folder of the owner, or an address that
            clients may read as another host.
    """
    parts = urlsplit(uri)
    if urlsplit(tracking_uri).scheme not in HTTP:
        return uri
    if parts.scheme in (*HTTP, "mlflow-artifacts"):
        if _MISREAD.search(uri) or not uri.isprintable():
            raise MlflowException(
                f"the server names a place for the files of {owner} {owner_id} that is no plain address: "
                f"{redact(uri)!r:.200}"
            )
        return uri
    local = get_uri_scheme(uri) in ("", "file")
    # The path of a local place is taken as MLflow's own function reads it, since MLflow will write there.
    path = local_file_uri_to_path(uri) if local else unquote(parts.path)
    plain = _CUTS_A_PATH.search(path + uri) is None and path.isprintable()
    folders = path.split("/")
    its_own = owner_id in folders and ".." not in folders and parts.scheme not in _OF_OTHERS
    made_up = re.fullmatch(_OF_MLFLOW, owner_id) is None
    if made_up or not plain or not its_own or (local and (folders[0] or parts.netloc)):
        raise MlflowException(
            f"the server names a place for the files of {owner} {owner_id} that is not the {owner}'s own folder: "
            f"{redact(uri)}"
        )
    return uri


def upload(root: str, tracking_uri: str, path: str, data: bytes) -> None:
    """Write one artifact, replacing an older version of it, below a root that `artifact_root` has returned.

    Raises:
        requests.HTTPError: the server refuses the file.
    """
    repository = repository_of(root, tracking_uri)
    if isinstance(repository, HttpArtifactRepository):
        kind = {"Content-Type": guess_mime_type(path)}
        response = _ask(repository, tracking_uri, f"/{path}", "PUT", data=data, headers=kind, **_BOUNDED)
        augmented_raise_for_status(response)
        return
    target = PurePosixPath(path)
    with tempfile.TemporaryDirectory(prefix="mlflow_dynamics_") as folder:
        file = Path(folder) / target.name
        file.write_bytes(data)
        parent = target.parent.as_posix()
        repository.log_artifact(str(file), None if parent == "." else parent)


def confirm(root: str, tracking_uri: str, folder: str, sizes: Mapping[str, int]) -> None:
    """Check that a folder holds files of these sizes, path -> bytes, if the store can list them.

    Raises:
        MlflowException: a file is missing or has another size, or the answer is not that of an artifact store.
    """
    found = _sizes(repository_of(root, tracking_uri), tracking_uri, folder)
    if found is None:
        return
    for path, size in sizes.items():
        if path not in found:
            raise MlflowException(f"the store took {path} and does not have it")
        if found[path] not in (None, size):
            raise MlflowException(f"the store took {path} of {size} bytes and has {found[path]} of them")


def upload_all(root: str, tracking_uri: str, files: Mapping[str, bytes]) -> None:
    """Write several artifacts, path -> content, and check that the store has them.

    Raises as `upload` and `confirm` do.
    """
    sizes: dict[str, dict[str, int]] = {}
    for path, data in files.items():
        upload(root, tracking_uri, path, data)
        sizes.setdefault(path.rpartition("/")[0], {})[path] = len(data)
    for folder, of_files in sizes.items():
        confirm(root, tracking_uri, folder, of_files)


def download(run: Run, path: str, *, tracking_uri: str | None = None) -> bytes:
    """Read one artifact of a run.

    Args:
        run: the run.
        path: the artifact's path in the run.
        tracking_uri: the store that holds the run; None is MLflow's own.

    Raises:
        TrackingError: the artifact store has no such file, refuses it or does not answer.
    """
    tracking_uri = tracking_uri or mlflow.get_tracking_uri()
    with reading(f"{path} of run {run.info.run_id!r}", place=str(run.info.artifact_uri)):
        repository = _repository(run, tracking_uri)
        if isinstance(repository, HttpArtifactRepository):
            response = _ask(repository, tracking_uri, f"/{path}", "GET")
            augmented_raise_for_status(response)
            return response.content
        if isinstance(repository, LocalArtifactRepository):
            return Path(repository.download_artifacts(path)).read_bytes()
        with tempfile.TemporaryDirectory(prefix="mlflow_dynamics_") as folder:
            return Path(repository.download_artifacts(path, folder)).read_bytes()


def list_folder(run: Run, path: str, *, tracking_uri: str | None = None) -> list[FileInfo]:
    """List a folder of a run's artifacts; empty if there is no such folder. Raises as `download` does."""
    tracking_uri = tracking_uri or mlflow.get_tracking_uri()
    with reading(f"{path} of run {run.info.run_id!r}", place=str(run.info.artifact_uri)):
        repository = _repository(run, tracking_uri)
        if isinstance(repository, HttpArtifactRepository) and _LISTING in repository.artifact_uri:
            return _list(repository, tracking_uri, path)
        return [one for one in repository.list_artifacts(path) if _lies_in(one, path)]


def _repository(run: Run, tracking_uri: str) -> ArtifactRepository:
    return repository_of(artifact_root(run, tracking_uri), tracking_uri)


def _sizes(repository: ArtifactRepository, tracking_uri: str, folder: str) -> dict[str, int | None] | None:
    """Return path -> size of the files in a folder; None if the store cannot list them."""
    if isinstance(repository, HttpArtifactRepository):
        if _LISTING not in repository.artifact_uri:
            return None
        found = _list(repository, tracking_uri, folder, **_BOUNDED)
    else:
        try:
            with reading(folder):  # a user who may write files is not always permitted to list them
                found = repository.list_artifacts(folder or None)
        except TrackingError:
            return None
    return {one.path: one.file_size for one in found if not one.is_dir}


def _list(
    repository: HttpArtifactRepository, tracking_uri: str, folder: str, **request: Any
) -> list[FileInfo]:
    """Do what the repository's own `list_artifacts` does, but under the rules of `_ask`."""
    server, _, root = repository.artifact_uri.partition(_LISTING)
    params = {"path": _joined(root.strip("/"), folder)}
    response = _ask(repository, tracking_uri, _LISTING, "GET", root=server, params=params, **request)
    augmented_raise_for_status(response)
    try:
        found = [
            FileInfo(
                _joined(folder, str(one["path"])),
                bool(one["is_dir"]),
                int(one["file_size"]) if "file_size" in one else None,
            )
            for one in response.json().get("files", [])
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise MlflowException(NOT_MLFLOW) from error
    return sorted((one for one in found if _lies_in(one, folder)), key=lambda one: one.path)


def _lies_in(file: FileInfo, folder: str) -> bool:
    """Whether a path that the store names lies directly in this folder. Any other path is ignored."""
    name = PurePosixPath(file.path).name
    return name not in ("", "..") and file.path == _joined(folder, name)


def _ask(
    repository: HttpArtifactRepository,
    tracking_uri: str,
    endpoint: str,
    method: str,
    *,
    root: str | None = None,
    headers: Mapping[str, str] = {},
    **request: Any,
) -> requests.Response:
    """Return an artifact server's answer. Credentials are sent only to the tracking server itself."""
    root = root or repository.artifact_uri
    if _origin(root) == _origin(tracking_uri):
        return ask(get_default_host_creds(root), endpoint, method, extra_headers=headers, **request)
    request = {key: value for key, value in request.items() if key not in ONE_TRY}
    request.setdefault("timeout", (CONNECT_TIMEOUT_S, READ_TIMEOUT_S))
    verify = get_default_host_creds(root).verify
    send = partial(
        requests.request,
        method,
        root.rstrip("/") + endpoint,
        headers=dict(headers),
        allow_redirects=False,
        stream=True,
        verify=verify,
        auth=NoCredentials(),
        **request,
    )
    return read_answer(send, limit_s=limit_of(request))


def _origin(uri: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(uri)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
