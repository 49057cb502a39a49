"""Vega's JavaScript as one text, kept for each user: putting it together takes two seconds of every process."""

from __future__ import annotations

import contextlib
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path

import platformdirs
import vl_convert


@cache
def vega_bundle() -> str:
    """Vega, Vega-Lite and vega-embed, as `vegaEmbed`; without an end tag of its own, which a script must not hold."""
    kept = platformdirs.user_cache_path("mlflow_dynamics") / f"vega-{version('vl-convert-python')}.js"
    try:
        return kept.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
        bundle = bundle.replace("</script", "<\\/script")
        with contextlib.suppress(
            OSError
        ):  # a disk that is full or not ours to write on: put together next time too
            _write_whole(kept, bundle)
        return bundle


def _write_whole(path: Path, text: str) -> None:
    """Write the file so that no other process ever reads a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        part = Path(folder) / path.name
        part.write_text(text, encoding="utf-8")
        part.replace(path)
