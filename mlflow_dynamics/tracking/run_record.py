"""run.json: which run of which store a spool folder belongs to, and how to create the run if it is not there yet."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Final

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from mlflow_dynamics.errors import DataError
from mlflow_dynamics.text import printable
from mlflow_dynamics.tracking.folder import Folder
from mlflow_dynamics.tracking.names import LOCAL_PREFIX, RUN_ID, SCHEMA_VERSION

FILE: Final = "run.json"

MAX_BYTES: Final = 1024**2
"""A run's tags are some dozens, of which one or the other may have the 8,000 characters that MLflow allows."""

MAX_URI_LENGTH: Final = 2000

MAX_ID_LENGTH: Final = 250
"""Of an experiment's id, which only a store can tell from a wrong one."""

MAX_TAGS: Final = 500

STRICT: Final = ConfigDict(strict=True, extra="forbid")

Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
"""What every store takes: PostgreSQL refuses a zero character in a way that looks like a failure of its own."""

RunId = Annotated[str, StringConstraints(pattern=f"^{RUN_ID}$")]

Milliseconds = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""As stores keep them; a larger number would raise in them, again and again."""


def _printable(text: str) -> str:
    if text != printable(text, limit=len(text)):
        raise ValueError("holds characters that cannot be printed")
    return text


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Which run a folder belongs to. A run recorded offline has no `run_id` before it is created.

    `owned` where the run is ours to end: it was begun for its recording, and not joined.
    """

    __pydantic_config__ = STRICT

    tracking_uri: Annotated[str, Field(max_length=MAX_URI_LENGTH), AfterValidator(_printable)]
    run_id: RunId | None
    local_id: RunId | None = None
    experiment_id: Annotated[Text, Field(max_length=MAX_ID_LENGTH)] | None = None
    experiment_name: Text | None = None
    run_name: Text | None = None
    start_time: Milliseconds | None = None
    tags: Annotated[Mapping[Text, Text], Field(max_length=MAX_TAGS)] = field(default_factory=dict)
    owned: bool = False

    @property
    def name(self) -> str:
        """The run's id, or the local name of one that is still to be created."""
        return self.run_id or f"{LOCAL_PREFIX}{self.local_id}"

    def is_same(self, other: RunRecord) -> bool:
        """Whether both are of one run in one store."""
        same_id = self.run_id is not None and self.run_id == other.run_id
        same_local_id = self.local_id is not None and self.local_id == other.local_id
        return (same_id or same_local_id) and self.tracking_uri == other.tracking_uri

    def may_lie_in(self, folder_name: str) -> bool:
        """Whether this project would record the run in a folder of that name (`abc`; `abc.1` beside one in use)."""
        base, _, number = folder_name.partition(".")
        return base in (self.run_id, f"{LOCAL_PREFIX}{self.local_id}") and bool(
            re.fullmatch("[0-9]{0,2}", number)
        )


@dataclass(frozen=True, kw_only=True)
class _Stored(RunRecord):
    schema_version: int


_SCHEMA: Final = TypeAdapter(_Stored)
_VERSION: Final = TypeAdapter(Mapping[str, object])


def read_run(folder: Folder) -> RunRecord | None:
    """What run.json says; None where there is none. Nothing in the folder is changed.

    Raises:
        DataError: it is damaged, of a newer version, or of a run that this folder is not named after.
        NotOursError: it is a link, another user's, or too large.
    """
    path = folder.path / FILE
    try:
        content = folder.read(FILE, limit=MAX_BYTES)
    except FileNotFoundError:
        return None
    try:
        version = _VERSION.validate_json(content).get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise DataError(
                f"{path} has schema version {version}, newer than {SCHEMA_VERSION}; upgrade mlflow-dynamics."
            )
        stored = asdict(_SCHEMA.validate_json(content))
    except ValidationError as error:
        raise DataError(
            f"{path} is damaged; it does not say which run this folder belongs to ({what_is_wrong(error)})."
        ) from error
    del stored["schema_version"]
    run = RunRecord(**stored)
    if not run.may_lie_in(folder.path.name) or (run.run_id is None and run.local_id is None):
        raise DataError(f"{path} is of another run than the one that its folder is named after.")
    return run


def save_run(folder: Folder, run: RunRecord) -> None:
    """Write which run a folder belongs to."""
    values = {"schema_version": SCHEMA_VERSION, **asdict(run)}
    folder.replace(FILE, json.dumps(values, indent=1).encode())


def what_is_wrong(error: ValidationError) -> str:
    """The first thing that a schema objects to, without the value: that may be megabytes, or a password."""
    first = error.errors(include_input=False, include_context=False, include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]
