"""A progress bar, drawn only in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

from tqdm import tqdm
from tqdm.contrib import DummyTqdmFile
from tqdm.contrib.logging import logging_redirect_tqdm


@contextmanager
def progress_bar(steps: int | None, *, unit: str = "step") -> Iterator[tqdm]:
    """Yield a progress bar, which is drawn only if stderr is a terminal. Other output appears on lines above it.

    Without `steps` none is drawn.
    """
    if steps is None or not sys.stderr.isatty():
        yield tqdm(disable=True)
        return
    with (
        tqdm(total=steps, unit=unit, dynamic_ncols=True) as bar,
        logging_redirect_tqdm(),  # log lines go to the stderr from before the redirection
        redirect_stderr(DummyTqdmFile(sys.stderr)),
    ):
        yield bar
