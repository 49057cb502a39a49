"""Keeps Vega's JavaScript as one packed text in the user's cache, because building the text takes a process 2 s."""

from __future__ import annotations

import base64
import contextlib
import gzip
from functools import cache
from importlib.metadata import version

import platformdirs
import vl_convert

from mlflow_dynamics.tracking.parquet import write_file


def packed(text: str) -> str:
    """Return a text as a page holds it: compressed, and in base64, whose characters cannot end a script element."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


@cache
def vega_bundle() -> str:
    """Return Vega, Vega-Lite and vega-embed as one packed script, which defines `vegaEmbed`."""
    kept = platformdirs.user_cache_path("mlflow_dynamics") / f"vega-{version('vl-convert-python')}.js.gz.txt"
    try:
        return kept.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        bundle = packed(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))
        # If the disk is full, or may not be written, the next process builds the bundle again.
        with contextlib.suppress(OSError):
            write_file(kept, bundle.encode())
        return bundle
