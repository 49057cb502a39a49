"""Waits for something that happens in the background or in another process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

TIMEOUT_S: Final = 200.0
"""The longest wait. On a loaded machine a request may fail, and the sender pauses for up to 30 s before the next."""


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until `condition()` is true, and ask at most a third of the time, as the other process needs the core."""
    asked = began = time.monotonic()
    while not condition():
        now = time.monotonic()
        assert now - began < TIMEOUT_S, "it did not happen in time"
        time.sleep(max(0.02, 2 * (now - asked)))
        asked = time.monotonic()
