"""Sets a time limit on the downloads of libraries that set none."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from mlflow_dynamics.redaction import redact_text

DOWNLOAD_TIMEOUT_SECONDS: Final = 30.0
"""A server that sends nothing for this long has failed. torch and torchvision themselves would wait for ever."""


@contextmanager
def download_timeout() -> Iterator[None]:
    """Apply the time limit to sockets that are opened inside the block and have no time limit of their own."""
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(previous)


def last_line(error: Exception) -> str:
    """Return the last line of a download's error, whose message may have two lines for each mirror."""
    lines = str(error).strip().splitlines()
    return redact_text(lines[-1]) if lines else type(error).__name__
