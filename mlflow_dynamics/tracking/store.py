"""Connects to MLflow's tracking store, with a bounded wait for each request, and checks the answers.

MLflow's own client makes up to seven retries (minutes) inside each call. They are set by environment variables, which
also apply to the user's own calls in the same process. So the sender leaves the variables alone and passes "no
retries" and a timeout with each request. It retries by itself, in a way that can be stopped.

The server at an address may not be MLflow, or may not be up yet. So no redirect is followed, and an answer is accepted
only if it is complete and concerns what was asked for. Any other answer is a failure, just as no answer is.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import requests
from google.protobuf.json_format import ParseError
from mlflow.entities import Experiment, Run
from mlflow.exceptions import MlflowException, RestException
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.store.tracking.abstract_store import AbstractStore
from mlflow.store.tracking.rest_store import RestStore
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.databricks_utils import get_databricks_host_creds
from mlflow.utils.proto_json_utils import parse_dict
from mlflow.utils.rest_utils import MlflowHostCreds, http_request, verify_rest_response
from mlflow.utils.uri import is_databricks_uri

from mlflow_dynamics.errors import DynamicsError, TrackingError
from mlflow_dynamics.redaction import redact, redact_text
from mlflow_dynamics.text import printable
from mlflow_dynamics.threads import within
from mlflow_dynamics.tracking.mlflow_private import endpoint_of, get_store, set_content
from mlflow_dynamics.tracking.names import LOCAL_PREFIX, is_run_id
from mlflow_dynamics.tracking.run_record import MAX_URI_LENGTH

CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 60.0
LONGEST_READ_S: Final = 600.0
"""Bound on a request of a caller who waits for the answer, including MLflow's own retries."""

SLOWEST_BYTES_PER_S: Final = 10_000
"""The time that the bytes of a request or answer need at this speed is added to its time limit."""

MAX_ANSWER_BYTES: Final = 256 * 1024**2
"""A longer answer is refused. One page of MLflow, 25,000 values of a metric, takes 4 MB."""

HTTP: Final = ("http", "https")
ONE_TRY: Final[Mapping[str, Any]] = {"max_retries": 0, "raise_on_status": False}
NOT_MLFLOW: Final = "the server's answer is not that of an MLflow server"

UNAUTHORIZED: Final = 401
FORBIDDEN: Final = 403
CREDENTIALS: Final = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"

_CHUNK_BYTES: Final = 2**10
"""The chunks are small, because reading is given up only between two of them, and a server may send single bytes."""

_DISTRIBUTIONS: Final = {"MySQLdb": "mysqlclient", "psycopg2": "psycopg2-binary"}
"""Module of a database's driver -> the package that installs it, if the names differ."""

_MALFORMED: Final = (ValueError, TypeError, KeyError, AttributeError, RecursionError, ParseError)
"""The errors that MLflow's client raises for an answer of another form than it expects."""


class UnusableStore(TrackingError):
    """The store at the tracking URI cannot be used in this environment, and no second try will help."""


class RefusedAccess(MlflowException):
    """The server answers, but refuses access. The message says which credentials to set or which permission to get."""


class HttpStore(RestStore):
    """MLflow's REST store as `connect` makes it.

    Args:
        tracking_uri: the server's URI, with credentials.
        request: arguments that are passed with each request, such as a timeout; MLflow's variables set the others.
    """

    def __init__(self, tracking_uri: str, request: Mapping[str, Any]) -> None:
        super().__init__(partial(get_default_host_creds, tracking_uri))
        self._request = request

    def ask(self, endpoint: str, method: str, **payload: Any) -> Any:
        """Send a request and return the server's answer, parsed from JSON.

        Raises:
            RestException: MLflow refuses the request.
            MlflowException: the answer is not MLflow's; otherwise as the function `ask` raises.
        """
        response = ask(self.get_host_creds(), endpoint, method, **self._request, **payload)
        try:
            answer = json.loads(verify_rest_response(response, endpoint).text)
        except RestException:
            raise
        except (MlflowException, *_MALFORMED) as error:
            if response.status_code == 200:
                raise MlflowException(NOT_MLFLOW) from error
            # The error has no code of MLflow's, because a proxy's page does not mean that MLflow refuses for good.
            raise MlflowException(
                f"the server answers {response.status_code}: {response.text[:500]}"
            ) from error
        return answer

    def _call_endpoint(
        self,
        api: Any,
        json_body: Any = None,
        endpoint: Any = None,
        retry_timeout_seconds: Any = None,
        response_proto: Any = None,
    ) -> Any:
        path, method = endpoint_of(self, api)
        body = json.loads(json_body) if json_body else None
        answer = self.ask(endpoint or path, method, **{"params" if method == "GET" else "json": body})
        message = response_proto or api.Response()
        try:
            parse_dict(js_dict=answer, message=message)
        except _MALFORMED as error:
            raise MlflowException(NOT_MLFLOW) from error
        return message


def connect(tracking_uri: str, *, read_timeout_s: float = READ_TIMEOUT_S) -> AbstractStore:
    """Return the store at a tracking URI, with one try and a bounded wait for each request.

    A database is opened at once; nothing is sent yet to a server.

    Raises:
        UnusableStore: MLflow has no such store, declines it, or lacks a login or a database's driver for it.
        MlflowException: a database does not answer.
    """
    return _connect(tracking_uri, {"timeout": (CONNECT_TIMEOUT_S, read_timeout_s), **ONE_TRY})


def connect_to_read(tracking_uri: str) -> AbstractStore:
    """Return the store for a caller who can wait: MLflow's variables set retries and timeouts. Raises as `connect`."""
    return _connect(tracking_uri, {})


def connect_to_read_runs(runs: object, tracking_uri: str) -> AbstractStore:
    """Return the store as `connect_to_read` does, for a caller who asks for runs by id.

    MLflow would create a missing SQLite database.

    Raises:
        TrackingError: there is no database, so there are no runs.
    """
    if lacks_database(tracking_uri):
        raise TrackingError(f"There is no run {runs!r} in {redact(tracking_uri)}: no such database is there.")
    return connect_to_read(tracking_uri)


def _connect(tracking_uri: str, request: Mapping[str, Any]) -> AbstractStore:
    if urlsplit(tracking_uri).scheme in HTTP:
        return HttpStore(tracking_uri, request)
    from sqlalchemy.exc import ArgumentError  # half a second, which a script without a training need not wait

    try:
        if is_databricks_uri(tracking_uri):
            get_databricks_host_creds(tracking_uri)
        return get_store(tracking_uri)
    except ImportError as error:
        raise UnusableStore(
            f"MLflow at {redact(tracking_uri)} needs the Python package {error.name}, which is not installed: pip "
            f"install {_DISTRIBUTIONS.get(str(error.name), error.name)}"
        ) from error
    except ArgumentError as error:  # SQLAlchemy knows no such database or no such driver
        raise UnusableStore(
            f"MLflow at {redact(tracking_uri)} cannot be used: {_message_of(error, tracking_uri)}"
        ) from error
    except MlflowException as error:
        if urlsplit(tracking_uri).scheme.partition("+")[0] in DATABASE_ENGINES:
            raise  # a database that does not answer may do so later
        raise UnusableStore(
            f"MLflow at {redact(tracking_uri)} cannot be used: {_message_of(error, tracking_uri)}"
        ) from error


def _message_of(error: Exception, tracking_uri: str) -> str:
    """Return an error's message without credentials. It may quote the tracking URI."""
    return redact_text(str(error).strip().replace(tracking_uri, redact(tracking_uri)))


def ask(creds: MlflowHostCreds, endpoint: str, method: str, **request: Any) -> requests.Response:
    """Send a request and return the server's answer, whatever its status, except for the errors below.

    Raises:
        RefusedAccess: the server refuses the credentials, or asks for some.
        MlflowException: there is no answer, the answer is a redirect, or it is too long.
        TimeoutError: the request as a whole takes too long.
    """
    send = partial(http_request, creds, endpoint, method, allow_redirects=False, stream=True, **request)
    response = read_answer(send, limit_s=limit_of(request))
    if response.status_code in (UNAUTHORIZED, FORBIDDEN):
        raise RefusedAccess(_refusal(creds, response.status_code))
    return response


def _refusal(creds: MlflowHostCreds, status: int) -> str:
    if status == FORBIDDEN:
        return f"it does not permit this (403); ask for the permission, or set {CREDENTIALS}, of a user who has it"
    if creds.username or creds.token or "@" in urlsplit(creds.host).netloc:
        return f"it refuses the credentials that are set (401); correct {CREDENTIALS}"
    return f"it asks for credentials and none are set (401); set {CREDENTIALS}"


def limit_of(request: Mapping[str, Any]) -> float:
    """Return the seconds that a request may take as a whole, without the time for the answer's bytes."""
    waiting = sum(request["timeout"]) if "timeout" in request else LONGEST_READ_S
    return waiting + len(request.get("data", b"")) / SLOWEST_BYTES_PER_S


def read_answer(send: Callable[[], requests.Response], *, limit_s: float) -> requests.Response:
    """Make a request with `send` and return the streamed answer with its content; raises as `ask` does.

    The limit is for the whole request, because a timeout of MLflow or `requests` begins anew with each received byte.
    """
    content = bytearray()
    given_up = threading.Event()

    def answer() -> requests.Response:
        with send() as response:
            if 300 <= response.status_code < 400:
                where = redact(response.headers.get("Location", "nowhere"))
                raise MlflowException(
                    f"it redirects to {where} ({response.status_code}), and no redirect is followed: set the "
                    "tracking URI to where MLflow itself answers"
                )
            for chunk in response.iter_content(_CHUNK_BYTES):
                content.extend(chunk)
                if given_up.is_set():
                    break
                if len(content) > MAX_ANSWER_BYTES:
                    raise MlflowException(f"its answer is longer than {MAX_ANSWER_BYTES:,} bytes")
            set_content(response, bytes(content))
        return response

    try:
        return within(limit_s, answer, more=lambda: len(content) / SLOWEST_BYTES_PER_S)
    finally:
        given_up.set()


def run_of(store: AbstractStore, run_id: str) -> Run:
    """Return the run as the store has it.

    Raises:
        MlflowException: there is no such run, or the answer is incomplete or of another run.
    """
    run = whole_run(store.get_run(run_id))
    if run.info.run_id != run_id:
        raise MlflowException(f"{NOT_MLFLOW}: asked for run {run_id} it gives {run.info.run_id}")
    return run


def whole_run(run: Run) -> Run:
    """Return `run` unchanged.

    Raises:
        MlflowException: the run lacks its id, its experiment or a place for its artifacts.
    """
    info = run.info
    if not is_run_id(info.run_id) or info.run_id.startswith(LOCAL_PREFIX):
        raise MlflowException(f"{NOT_MLFLOW}: its run id is {info.run_id!r:.100}")
    if not is_run_id(info.experiment_id) or not info.artifact_uri:
        raise MlflowException(
            f"{NOT_MLFLOW}: run {info.run_id} has no experiment or no place for its artifacts"
        )
    return run


def whole_experiment(experiment: Experiment, *, asked: str | None = None) -> Experiment:
    """Return `experiment` unchanged.

    Raises:
        MlflowException: the experiment's id is missing, or is not the one `asked` for.
    """
    if not is_run_id(experiment.experiment_id) or asked not in (None, experiment.experiment_id):
        raise MlflowException(f"{NOT_MLFLOW}: its experiment id is {experiment.experiment_id!r:.100}")
    return experiment


@contextmanager
def reading(what: str, *, place: str | None = None) -> Iterator[None]:
    """Turn every failure of the store inside the block into a TrackingError: `what` cannot be read (from `place`)."""
    with failing_as(f"{what} cannot be read" + ("" if place is None else f" from {redact(place)}")):
        yield


@contextmanager
def failing_as(failure: str) -> Iterator[None]:
    """Turn every failure of the store inside the block into a TrackingError of these words and the reason."""
    try:
        yield
    except DynamicsError:
        raise
    except Exception as error:  # stores are plug-ins, and cloud clients have errors of their own
        raise TrackingError(f"{failure}: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """Return the reason of a failure in one line, without credentials.

    The line has at most 200 characters, except for an `UnusableStore`, whose remedy must not be cut.
    """
    cause = error.__context__ if isinstance(error.__context__, requests.RequestException) else error
    if isinstance(cause, requests.Timeout | TimeoutError):
        return "it does not answer in time"
    if isinstance(cause, requests.ConnectionError):
        return "there is no connection"
    if isinstance(cause, requests.exceptions.ChunkedEncodingError):
        return "its answer is cut off"
    said = redact_text(" ".join(str(error).split())) or type(error).__name__
    return printable(said, limit=len(said)) if isinstance(error, UnusableStore) else printable(said)


def stored_uri(uri: str) -> str:
    """Return the URI by which a run's record names its store: absolute, without credentials, on one line."""
    return printable(redact(absolute(uri)), limit=MAX_URI_LENGTH)


def lacks_database(tracking_uri: str) -> bool:
    """Whether this URI names a SQLite database that does not exist. MLflow would create it, without any runs."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(tracking_uri)
    except ArgumentError:
        return False
    kept = url.drivername.startswith("sqlite") and url.database not in (None, "", ":memory:")
    return kept and "uri" not in url.query and not Path(str(url.database)).exists()


def absolute(uri: str) -> str:
    """Return the URI with a relative SQLite or folder path made absolute."""
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
