"""Vega's JavaScript as one text, kept for each user: putting it together takes two seconds of every process."""

from __future__ import annotations

import contextlib
from functools import cache
from importlib.metadata import version

import platformdirs
import vl_convert

from mlflow_dynamics.tracking.parquet import write_file


@cache
def vega_bundle() -> str:
    """Vega, Vega-Lite and vega-embed, as `vegaEmbed`; without an end tag of its own, which a script must not hold."""
    kept = platformdirs.user_cache_path("mlflow_dynamics") / f"vega-{version('vl-convert-python')}.js"
    try:
        return kept.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
        bundle = bundle.replace("</script", "<\\/script")
        # A disk that is full or not ours to write on: it is put together next time too.
        with contextlib.suppress(OSError):
            write_file(kept, bundle.encode())
        return bundle
