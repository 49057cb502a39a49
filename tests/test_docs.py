"""The documentation points at what is there, and its commands and names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mlflow_dynamics.tracking import names

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)", page.read_text())
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert missing == []


def test_the_readme_explains_every_metric() -> None:
    table = (ROOT / "README.md").read_text()
    assert [key for key in names.DYNAMICS_METRICS if f"| `{key}` |" not in table] == []


def test_every_module_says_its_one_job_first() -> None:
    silent = [
        path.relative_to(ROOT)
        for path in (ROOT / "mlflow_dynamics").rglob("*.py")
        if not path.read_text().startswith('"""')
    ]
    assert silent == []
