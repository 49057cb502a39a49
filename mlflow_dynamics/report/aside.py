"""Drawing a report in a process of its own: in the training's it would hold Python's lock, and training, for seconds.

`python -m mlflow_dynamics.report.aside FOLDER` reads a packed history from its input and writes the report's files.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from mlflow_dynamics.report.history import RunHistory

logger = logging.getLogger(__name__)

TIMEOUT_S: Final = 120.0
"""A report takes seconds."""


def render_aside(packed: bytes) -> dict[str, bytes] | None:
    """The files of a packed history, drawn by another process, which is waited for; None where that fails."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run(
                [sys.executable, "-m", __name__, folder],
                input=packed,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=TIMEOUT_S,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            logger.debug("The report is not drawn for now: %s", error)
            return None
        drawn = [path for path in Path(folder).rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in drawn}


def main(folder: Path) -> None:
    """Draw what comes in; the training goes first."""
    if hasattr(os, "nice"):
        os.nice(10)
    from mlflow_dynamics.report.artifacts import render

    history = RunHistory.unpacked(sys.stdin.buffer.read())
    for name, content in render(history, pictures=True).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
