"""Checks the extras `report`, `train` and `ray`: requirements of only a part of this package, from its metadata."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, metadata, requires, version
from typing import Final, Literal

from packaging.requirements import Requirement

from mlflow_dynamics.errors import MissingDependencyError

Extra = Literal["report", "train", "ray"]

_DISTRIBUTION: Final = "mlflow-dynamics"


def pip_command(extra: str) -> str:
    """Return the command that installs an extra."""
    return f'pip install "{_DISTRIBUTION}[{extra}]"'


def unmet(extra: Extra) -> list[str]:
    """Return the requirements of an extra that are missing or installed in another version.

    The list is empty if this package itself is not installed, since its metadata are then missing.
    """
    try:
        declared = [Requirement(one) for one in requires(_DISTRIBUTION) or ()]
    except PackageNotFoundError:
        return []
    asked = (one for one in declared if one.marker is not None and one.marker.evaluate({"extra": extra}))
    return [said for said in map(_lacking, asked) if said is not None]


def require(extra: Extra, what: str) -> None:
    """Require that all packages of an extra are installed.

    Args:
        extra: the extra.
        what: the command or function that needs the extra, for the message.

    Raises:
        MissingDependencyError: a package is missing or installed in another version.
    """
    lacking = unmet(extra)
    if lacking:
        raise MissingDependencyError(
            f"{what} needs {', '.join(lacking)}; install it with: {pip_command(extra)}"
        )


def project_links() -> dict[str, str]:
    """Return the links of this package's metadata, such as its documentation, as label -> address.

    Nothing is returned if this package itself is not installed.
    """
    try:
        declared = metadata(_DISTRIBUTION).get_all("Project-URL") or []
    except PackageNotFoundError:
        return {}
    return {label: address for label, _, address in (link.partition(", ") for link in declared)}


def unusable(error: ImportError) -> MissingDependencyError:
    """Return the error for a name that the installed torch or MLflow does not have, with the installed versions."""
    here = ", ".join(f"{name} {_version(name) or 'missing'}" for name in ("torch", "mlflow"))
    return MissingDependencyError(
        f"this mlflow_dynamics cannot be used with what is installed ({here}): {error}. "
        f"Install other versions, or one of mlflow_dynamics that knows these."
    )


def _lacking(asked: Requirement) -> str | None:
    found = _version(asked.name)
    if found is None:
        return asked.name
    if asked.specifier.contains(found, prereleases=True):
        return None
    return f"{asked.name}{asked.specifier} (here is {found})"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
