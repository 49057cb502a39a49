"""Vega's JavaScript is put together once for each user, and also where nothing can be kept."""

from __future__ import annotations

import base64
import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import pytest

from mlflow_dynamics.report.bundle import vega_bundle


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "cache" / name)
    vega_bundle.cache_clear()
    yield tmp_path / "cache" / "mlflow_dynamics"
    vega_bundle.cache_clear()


def test_it_is_kept_for_the_next_process(cache_folder: Path) -> None:
    bundle = vega_bundle()
    assert "vegaEmbed" in gzip.decompress(base64.b64decode(bundle)).decode()
    assert re.fullmatch("[A-Za-z0-9+/=]+", bundle)
    (kept,) = cache_folder.iterdir()
    assert kept.read_text(encoding="utf-8") == bundle
    kept.write_text("what was kept")
    vega_bundle.cache_clear()
    assert vega_bundle() == "what was kept"


def test_a_cache_that_cannot_be_used_is_done_without(cache_folder: Path) -> None:
    cache_folder.parent.write_text("a file where the folder should be")
    assert b"vegaEmbed" in gzip.decompress(base64.b64decode(vega_bundle()))
