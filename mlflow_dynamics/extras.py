"""What only a part of this package needs, as its metadata declare it: the extras `report` and `train`."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version
from typing import Final, Literal

from packaging.requirements import Requirement

from mlflow_dynamics.errors import MissingDependencyError

Extra = Literal["report", "train"]

_DISTRIBUTION: Final = "mlflow-dynamics"


def pip_command(extra: str) -> str:
    """What installs an extra."""
    return f'pip install "{_DISTRIBUTION}[{extra}]"'


def unmet(extra: Extra) -> list[str]:
    """What an extra asks for and is not here, or in another version; nothing where this package is not installed."""
    try:
        declared = [Requirement(one) for one in requires(_DISTRIBUTION) or ()]
    except PackageNotFoundError:
        return []
    asked = (one for one in declared if one.marker is not None and one.marker.evaluate({"extra": extra}))
    return [said for said in map(_lacking, asked) if said is not None]


def require(extra: Extra, what: str) -> None:
    """MissingDependencyError unless all that an extra asks for is here: `what` needs it."""
    lacking = unmet(extra)
    if lacking:
        raise MissingDependencyError(
            f"{what} needs {', '.join(lacking)}; install it with: {pip_command(extra)}"
        )


def unusable(error: ImportError) -> MissingDependencyError:
    """The error for a name that is not where this package looks for it, with the versions that are here."""
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
