"""Drawing a page in a process of its own: in the training's it would hold Python's lock, and training, for seconds.

`python -m mlflow_dynamics.report.aside` reads a packed history from its input and writes the page to its output.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from typing import Final

from mlflow_dynamics.report.history import RunHistory
from mlflow_dynamics.tracking import names

logger = logging.getLogger(__name__)

TIMEOUT_S: Final = 120.0
"""A page takes seconds."""


def page_aside(packed: bytes) -> bytes | None:
    """The page of a packed history, drawn by another process, which is waited for; None where that fails."""
    try:
        drawn = subprocess.run(
            [sys.executable, "-m", __name__],
            input=packed,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        logger.debug("The report is not drawn for now: %s", error)
        return None
    return drawn.stdout


def main() -> None:
    """Draw what comes in; the training goes first."""
    if hasattr(os, "nice"):
        os.nice(10)
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no part of the page
    from mlflow_dynamics.report.artifacts import render

    history = RunHistory.unpacked(sys.stdin.buffer.read())
    output.write(render(history, pictures=False)[names.REPORT])
    output.close()


if __name__ == "__main__":
    main()
