"""Draws in a process of its own, because drawing takes seconds and the renderer is native code that may crash.

The other process reads what to draw from its standard input, and writes files into a folder. Only the files that were
asked for are taken from that folder.
"""

from __future__ import annotations

import json
import math
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from mlflow_dynamics.errors import DrawingError
from mlflow_dynamics.text import printable
from mlflow_dynamics.tracking import names

FIGURES: Final = ("glance", "overview", "path", "exponents", "phase_coherence", "order_parameter")
"""The names of the figures of a run's report."""

TIMEOUT_S: Final = 120.0
"""The longest time for a drawing. A report takes seconds."""

MAX_FILE_BYTES: Final = 16_000_000
"""The largest file that is taken. A page has about one megabyte, and a picture a tenth of that."""


def render_apart(packed: bytes, *, timeout_s: float = TIMEOUT_S, nice: int = 10) -> dict[str, bytes]:
    """Have another process draw the page and the pictures of a packed history; return artifact path -> content.

    Args:
        packed: the history, as `RunHistory.packed` returns it.
        timeout_s: how long the other process may take.
        nice: the niceness of the other process; with a higher value it leaves the processor to others.

    Raises:
        DrawingError: the other process failed or wrote no page.
    """
    wanted = [names.REPORT, *map(names.figure_path, FIGURES)]
    files = _drawn("report", packed, wanted, timeout_s=timeout_s, nice=nice)
    if names.REPORT not in files:
        raise DrawingError("the process that draws it wrote no page")
    return files


def pictures_apart(specifications: Mapping[str, str]) -> dict[str, bytes]:
    """Have another process draw Vega-Lite specifications, given as figure name -> text; return figure name -> PNG.

    Raises:
        DrawingError: the other process failed, or a picture is missing.
    """
    files = _drawn("pictures", json.dumps(dict(specifications)).encode(), specifications, timeout_s=TIMEOUT_S)
    missing = [name for name in specifications if name not in files]
    if missing:
        raise DrawingError(f"the process that draws it wrote no picture {missing[0]}")
    return files


def _drawn(
    task: str, given: bytes, wanted: Iterable[str], *, timeout_s: float, nice: int = 0
) -> dict[str, bytes]:
    """Return the wanted files that the other process has written, as path -> content."""
    if not sys.executable:
        raise DrawingError("there is no Python interpreter to start for it")
    # The other process gets the `sys.path` of this one, to which the script may have added folders.
    command = (
        f"import sys; sys.path[:] = {[entry for entry in sys.path if isinstance(entry, str)]!r}\n"
        "from mlflow_dynamics.report.drawing_process import main; main()"
    )
    try:
        with tempfile.TemporaryDirectory(prefix="mlflow_dynamics_", ignore_cleanup_errors=True) as folder:
            subprocess.run(
                [sys.executable, "-c", command, task, folder, str(nice), str(math.ceil(timeout_s) + 1)],
                input=given,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=timeout_s,
                check=True,
            )
            found = ((path, _content(Path(folder, path))) for path in wanted)
            return {path: content for path, content in found if content is not None}
    except subprocess.TimeoutExpired:
        raise DrawingError(f"the process that draws it took longer than {timeout_s:g} s") from None
    except subprocess.CalledProcessError as error:
        said = printable(error.stderr.decode(errors="replace").strip().rpartition("\n")[2])
        how = f"{_status(error.returncode)}{said and f' ({said})'}"
        raise DrawingError(f"the process that draws it ended with {how}") from None
    except (
        OSError,
        RuntimeError,
    ) as error:  # `subprocess` may start threads, and Python starts none while it exits
        raise DrawingError(f"no process could be started for it: {error}") from error


def _content(path: Path) -> bytes | None:
    """Return the content of a plain file of at most `MAX_FILE_BYTES`, or None for anything else."""
    with suppress(FileNotFoundError, NotADirectoryError):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_size <= MAX_FILE_BYTES:
            return path.read_bytes()
    return None


def _status(returncode: int) -> str:
    with suppress(ValueError):
        if returncode < 0:
            return signal.Signals(-returncode).name
    return f"status {returncode}"


def main() -> None:
    """Draw what comes in. This is what the other process runs."""
    task, folder, nice, seconds = sys.argv[1:]
    if hasattr(os, "nice"):
        os.nice(int(nice))
    if hasattr(signal, "alarm"):  # the process that waits for this one may be gone by then
        signal.pthread_sigmask(
            signal.SIG_UNBLOCK, {signal.SIGALRM}
        )  # the thread that has started this process blocks it
        signal.alarm(int(seconds))
    given = sys.stdin.buffer.read()
    if task == "report":
        from mlflow_dynamics.report.artifacts import render
        from mlflow_dynamics.report.history import RunHistory

        files = render(RunHistory.unpacked(given), pictures=True)
    else:
        from vl_convert import vegalite_to_png

        files = {name: vegalite_to_png(specification) for name, specification in json.loads(given).items()}
    for name, content in files.items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
