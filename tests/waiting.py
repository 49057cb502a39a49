"""Waiting for what happens in the background or in another process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

TIMEOUT_S: Final = 200.0
"""What a loaded machine may take, on which a request may fail and the sender pause for 30 s before the next."""


def wait_until(condition: Callable[[], object]) -> None:
    """Ask again and again, for at most a third of the time: the other process needs the core."""
    asked = began = time.monotonic()
    while not condition():
        now = time.monotonic()
        assert now - began < TIMEOUT_S, "it did not happen in time"
        time.sleep(max(0.02, 2 * (now - asked)))
        asked = time.monotonic()
