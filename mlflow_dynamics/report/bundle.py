"""Vega's JavaScript as one packed text, kept for each user: putting it together takes two seconds of every process."""

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
    """A text as a page holds it: compressed, in letters and digits that end no script."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


@cache
def vega_bundle() -> str:
    """Vega, Vega-Lite and vega-embed, as `vegaEmbed`, packed."""
    kept = platformdirs.user_cache_path("mlflow_dynamics") / f"vega-{version('vl-convert-python')}.js.gz.txt"
    try:
        return kept.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        bundle = packed(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))
        # A disk that is full or not ours to write on: it is put together next time too.
        with contextlib.suppress(OSError):
            write_file(kept, bundle.encode())
        return bundle
