"""Tells a function or an address of the user's when a run converges, is unsettled or diverges: aside, and bounded."""

from __future__ import annotations

import inspect
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Final
from urllib.parse import urlsplit

import requests
from requests.utils import get_auth_from_url

from mlflow_dynamics.checks import require
from mlflow_dynamics.convergence import State, Verdict
from mlflow_dynamics.errors import TrackingError
from mlflow_dynamics.text import printable
from mlflow_dynamics.threads import Aside, within
from mlflow_dynamics.tracking import names
from mlflow_dynamics.tracking.artifacts import NoCredentials
from mlflow_dynamics.tracking.store import HTTP, reason_of

MAX_WAITING: Final = 16
"""The most events that wait to be told, while an earlier one is; more are left out."""

END_S: Final = 5.0
"""The end of a training waits at most this long until its events are told."""

TRIES: Final = 3
FIRST_PAUSE_S: Final = 1.0
TIMEOUT_S: Final = 10.0
"""An address is asked so often if it does not answer in this time or is too busy, after pauses that double."""

TOO_MANY_REQUESTS: Final = 429
SERVER_ERRORS: Final = 500

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Event:
    """What the early warning has found in a run, told to `on_event`.

    Attributes:
        kind: the verdict's state that begins: "converging", "unsettled" or "diverging".
        run_id: the MLflow run; None while the run waits to be created in MLflow.
        epoch: the epoch's number, from 0.
        text: the run's name and the verdict, in a sentence.
        metrics: the epoch's metrics, key -> value.
    """

    kind: State
    run_id: str | None
    epoch: int
    text: str
    metrics: Mapping[str, float]


OnEvent = Callable[[Event], object] | str
"""What is told: a function, called in a thread of its own, or the http(s) address of a webhook."""


def begins(verdict: Verdict, before: Verdict | None) -> bool:
    """Whether a state that is told begins with this epoch; `before` is the verdict of the epoch before."""
    if verdict.state not in names.STATE_TAGS:
        return False
    return before is None or not (before.state == verdict.state or (before.signal and verdict.signal))


def check_on_event(name: str, value: object) -> None:
    """Require a function that can be called with one event, the address of a webhook, or None."""
    holds = value is None or (_is_webhook(value) if isinstance(value, str) else _takes_one(value))
    # An address may hold a secret: no more than its scheme is shown.
    given = f"{value[:8]}..." if isinstance(value, str) and not holds else value
    words = "a function that takes one event and is not async, the http(s):// address of a webhook, or None"
    require(holds, name, given, words)


def _is_webhook(address: str) -> bool:
    try:
        parts = urlsplit(address)
        whole = bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is no number, or an IPv6 address is incomplete
        return False
    return whole and parts.scheme in HTTP and address.isprintable() and " " not in address


def _takes_one(function: object) -> bool:
    if not callable(function) or inspect.iscoroutinefunction(function):
        return False
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a function in C that does not tell
        return True
    try:
        signature.bind(None)
    except TypeError:
        return False
    return True


class Alerts:
    """Tells of events, one after the other, in a thread of its own.

    No method raises because of what is told. A failure there is one log line.

    Args:
        on_event: who is told; None tells nobody.
    """

    def __init__(self, on_event: OnEvent | None) -> None:
        self._tell: Callable[[Event], object] | None = (
            partial(post, on_event) if isinstance(on_event, str) else on_event
        )
        self._aside = None if on_event is None else Aside("mlflow_dynamics-alerts", waiting=MAX_WAITING)

    def tell(self, verdict: Verdict, *, run_id: str | None, title: str, metrics: Mapping[str, float]) -> None:
        """Have the epoch's verdict told, without waiting for it."""
        if self._aside is None:
            return
        text = f"{printable(title)}: {verdict.message}"
        event = Event(
            kind=verdict.state, run_id=run_id, epoch=verdict.epoch, text=text, metrics=dict(metrics)
        )
        if not self._aside.put(partial(self._told, event)):
            logger.warning("on_event is not told: %d events wait already. %s", MAX_WAITING, text)

    def finish(self) -> None:
        """Wait until all is told, but not for long."""
        aside, self._aside = self._aside, None
        if aside is not None and not aside.finish(END_S):
            logger.warning("on_event takes longer than %g s: not all events of this run may be told.", END_S)

    def _told(self, event: Event) -> None:
        assert self._tell is not None
        try:
            self._tell(event)
        except BaseException as error:  # noqa: BLE001 - the user's code, which may also call sys.exit
            logger.warning("on_event has failed (%s): %s", _reason(error), event.text)


def post(address: str, event: Event) -> None:
    """Send an event as JSON: its fields by name, and null for a metric that is not finite.

    User and password are sent if they are in the address; those in `~/.netrc` are not. No redirect is followed.

    Raises:
        TrackingError: the webhook has not taken it.
        requests.RequestException: it cannot be asked at all.
    """
    metrics = {key: value if math.isfinite(value) else None for key, value in event.metrics.items()}
    parts = urlsplit(address)
    send = partial(
        requests.post,
        address,
        json={**asdict(event), "metrics": metrics},
        auth=get_auth_from_url(address) if "@" in parts.netloc else NoCredentials(),
        timeout=TIMEOUT_S,
        allow_redirects=False,
        stream=True,  # what is answered does not matter, nor how long that is
    )
    reason = ""
    for attempt in range(TRIES):
        time.sleep(FIRST_PAUSE_S * (2**attempt - 1))
        try:
            # The timeout of `requests` begins anew with each byte.
            with within(2 * TIMEOUT_S, send) as response:
                status = response.status_code
        except (requests.Timeout, TimeoutError):
            reason = "it does not answer in time"
        except requests.ConnectionError as error:
            reason = type(error).__name__
        else:
            if 200 <= status < 300:
                return
            reason = f"it answers {status}"
            if status < SERVER_ERRORS and status != TOO_MANY_REQUESTS:
                break
    raise TrackingError(f"{parts.hostname}: {reason}")


def _reason(error: BaseException) -> str:
    """Without the address of a webhook, which may hold a secret."""
    if isinstance(error, TrackingError):
        return str(error)
    said = "" if isinstance(error, requests.RequestException) else f": {reason_of(error)}"
    return f"{type(error).__name__}{said}"
