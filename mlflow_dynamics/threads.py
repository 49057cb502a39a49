"""Threads that may be refused: Python 3.12 and later start none while they exit."""

from __future__ import annotations

import threading


def started(thread: threading.Thread) -> bool:
    """Start a thread; False where the exiting interpreter refuses, and its work is to be done here and now."""
    try:
        thread.start()
    except RuntimeError:
        return False
    return True
