"""What is published: both distributions hold what they should, and their words hold on a package index."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import yaml

import mlflow_dynamics

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://example.org/mlflow_dynamics"
BUILD = "from setuptools.build_meta import build_sdist, build_wheel; build_sdist('dist'), build_wheel('dist')"


class Built(NamedTuple):
    """The files of the checkout and of what was built of it."""

    tracked: set[str]
    source: set[str]
    wheel: set[str]
    metadata: str


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Both distributions, from a copy of the checkout; building checks pyproject.toml against its schema."""
    asked = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(asked, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("this is no checkout")
    tracked = {path for path in listed.stdout.splitlines() if (ROOT / path).exists()}
    copy = tmp_path_factory.mktemp("copy")
    for path in tracked:
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, copy / path)
    subprocess.run([sys.executable, "-c", BUILD], cwd=copy, check=True, capture_output=True, text=True)
    (source,) = (copy / "dist").glob("*.tar.gz")
    (wheel,) = (copy / "dist").glob("*.whl")
    with tarfile.open(source) as archive:
        inside = {one.name.partition("/")[2] for one in archive if one.isfile()}
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
        (metadata,) = [archive.read(name).decode() for name in files if name.endswith(".dist-info/METADATA")]
    return Built(tracked, inside, files, metadata)


def test_the_source_distribution_is_the_checkout(built: Built) -> None:
    made = {path for path in built.source if ".egg-info/" in path} | {"PKG-INFO", "setup.cfg"}
    assert built.source - made == built.tracked


def test_the_wheel_is_the_package_and_nothing_else(built: Built) -> None:
    package = {path for path in built.tracked if path.startswith("mlflow_dynamics/")}
    assert {path for path in built.wheel if ".dist-info/" not in path} == package


def test_the_metadata_say_who_what_and_which_version(built: Built) -> None:
    for line in (
        f"Version: {mlflow_dynamics.__version__}",
        "License-Expression: Apache-2.0",
        "License-File: LICENSE",
        "Classifier: Typing :: Typed",
        "Project-URL: Paper, https://arxiv.org/abs/2604.09716",
    ):
        assert line in built.metadata.splitlines()
    for header in ("Author", "Keywords", "Summary"):
        assert re.search(f"^{header}: .", built.metadata, re.M)


@pytest.fixture(scope="module")
def links() -> ModuleType:
    spec = importlib.util.spec_from_file_location("absolute_links", ROOT / ".ci/absolute_links.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_of_a_release_leads_to_the_files_of_its_version(links: ModuleType) -> None:
    text = (ROOT / "README.md").read_text()
    relative = [one for one in re.findall(r"\]\(([^)\s]+)\)", text) if ":" not in one]
    published = links.absolute(text, REPOSITORY, "1.2.3", root=ROOT)
    targets = re.findall(r"\]\(([^)\s]+)\)", published)
    assert [one for one in targets if "://" not in one and not one.startswith("#")] == []
    led = [re.fullmatch(rf"{REPOSITORY}/(blob|tree|raw)/v1\.2\.3/([^#]+)(#.*)?", one) for one in targets]
    ours = [(one[1], ROOT / one[2]) for one in led if one is not None]
    assert len(ours) == len(relative) > 10
    for kind, path in ours:
        assert path.is_dir() if kind == "tree" else path.is_file(), path
    assert "/raw/v1.2.3/docs/images/findings.png)" in published


def test_the_urls_of_a_release_are_those_of_its_repository(links: ModuleType) -> None:
    project = links.with_urls((ROOT / "pyproject.toml").read_text(), REPOSITORY, "1.2.3")
    assert f'\nRepository = "{REPOSITORY}"\n' in project
    assert f'\nChangelog = "{REPOSITORY}/blob/v1.2.3/CHANGELOG.md"\n' in project


@pytest.mark.parametrize("address", ["", "OWNER/NAME", "git@example.org:a/b.git", "https://example.org"])
def test_an_address_that_is_none_is_said(address: str, links: ModuleType) -> None:
    with pytest.raises(SystemExit, match="must be the address of a repository, such as https://"):
        links.main(address)


def test_the_version_is_the_same_everywhere() -> None:
    newest = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[0]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (newest, citation["version"]) == (mlflow_dynamics.__version__, mlflow_dynamics.__version__)
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)
