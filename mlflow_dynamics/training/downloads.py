"""A time limit on downloads made by libraries that set none."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from mlflow_dynamics.redaction import redact_text

DOWNLOAD_TIMEOUT_SECONDS: Final = 30.0
"""A server that says nothing for so long has failed; torch and torchvision themselves would wait for ever."""


@contextmanager
def download_timeout() -> Iterator[None]:
    """Let sockets opened inside, which ask for no limit of their own, fail after the time limit."""
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(previous)


def last_line(error: Exception) -> str:
    """Why a download failed: the last line of its message, which may run over two lines for each mirror."""
    lines = str(error).strip().splitlines()
    return redact_text(lines[-1]) if lines else type(error).__name__
