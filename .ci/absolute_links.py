"""Make the README's links absolute, to the files of a version, as a package index needs them.

    python .ci/absolute_links.py REPOSITORY

changes README.md and the URLs of pyproject.toml in the working folder, which is to be a copy: a checkout keeps relative
links, which are right in every branch and fork. REPOSITORY is an address such as https://github.com/OWNER/NAME.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!\w+:|#)([^)\s]+)\)")


def absolute(text: str, repository: str, version: str, *, root: Path = Path()) -> str:
    """Markdown in the folder `root` whose relative links and pictures lead into the version's tag of the repository."""

    def lead(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        kind = "raw" if picture else "tree" if (root / target).is_dir() else "blob"
        within = absolute(words, repository, version, root=root)
        return f"{picture}[{within}]({repository}/{kind}/v{version}/{target})"

    return LINK.sub(lead, text)


def with_urls(project: str, repository: str, version: str) -> str:
    """pyproject.toml with the repository's pages."""
    pages = {
        "Repository": repository,
        "Issues": f"{repository}/issues",
        "Changelog": f"{repository}/blob/v{version}/CHANGELOG.md",
        "Documentation": f"{repository}/tree/v{version}/docs",
    }
    lines = "".join(f'{name} = "{address}"\n' for name, address in pages.items())
    return project.replace("[project.urls]\n", f"[project.urls]\n{lines}")


def main(repository: str) -> None:
    """Change the two files."""
    repository = repository.removesuffix("/").removesuffix(".git")
    if not re.fullmatch(r"https://[\w.-]+/[\w./-]+", repository):
        sys.exit(
            f"{repository!r} must be the address of a repository, such as https://github.com/OWNER/NAME."
        )
    found = re.search(r'__version__ = "([^"]+)"', Path("mlflow_dynamics/__init__.py").read_text())
    assert found is not None
    for name, change in (("README.md", absolute), ("pyproject.toml", with_urls)):
        path = Path(name)
        path.write_text(change(path.read_text(), repository, found[1]))


if __name__ == "__main__":
    main(*sys.argv[1:])
