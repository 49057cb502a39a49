"""Decides when the page of a run in training is drawn anew: rarely enough to cost next to nothing."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Final

SHARE: Final = 0.02
"""The largest part of the time that goes into drawing."""

FIRST_DRAWING_S: Final = 4.0
"""How long the first drawing is assumed to last, which also loads the drawing libraries."""


class RedrawClock:
    """Measures how long drawings last (`with clock:`) and says when the next drawing is due."""

    def __init__(self) -> None:
        self._next = time.monotonic() + FIRST_DRAWING_S / SHARE
        self._began = 0.0

    @property
    def due(self) -> bool:
        """Whether the page may be drawn again."""
        return time.monotonic() >= self._next

    def __enter__(self) -> RedrawClock:
        self._began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        now = time.monotonic()
        self._next = now + (now - self._began) / SHARE
