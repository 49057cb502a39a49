"""run.json: the run and store that a spool folder belongs to, and all that is needed to create the run."""

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
"""Bound on the size of run.json. A run has some dozens of tags, a few of which may reach MLflow's limit of 8,000
characters."""

MAX_URI_LENGTH: Final = 2000

MAX_ID_LENGTH: Final = 250
"""The most characters of an experiment's id. Only a store can tell whether the id is valid."""

MAX_TAGS: Final = 500

STRICT: Final = ConfigDict(strict=True, extra="forbid")

Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
"""Text that every store accepts. PostgreSQL refuses a zero character with an error that looks like a failure of its
own."""

RunId = Annotated[str, StringConstraints(pattern=f"^{RUN_ID}$")]

Milliseconds = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""Milliseconds since 1970, in the range that stores can keep. A larger number would make a store fail at every try."""


def _printable(text: str) -> str:
    if text != printable(text, limit=len(text)):
        raise ValueError("holds characters that cannot be printed")
    return text


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The run that a folder belongs to.

    Attributes:
        tracking_uri: the store, without credentials.
        run_id: the MLflow run's id; None before the run is created.
        local_id: an id that we make up, by which a created run is found again.
        experiment_id, experiment_name, run_name, start_time, tags: what the run is created with.
        owned: the run is ours to end, because it was begun for its recording and not joined.
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
        """The run's id, or the local name of a run that is still to be created."""
        return self.run_id or f"{LOCAL_PREFIX}{self.local_id}"

    def is_same(self, other: RunRecord) -> bool:
        """Whether both records name the same run in the same store."""
        same_id = self.run_id is not None and self.run_id == other.run_id
        same_local_id = self.local_id is not None and self.local_id == other.local_id
        return (same_id or same_local_id) and self.tracking_uri == other.tracking_uri

    def may_lie_in(self, folder_name: str) -> bool:
        """Whether this project would record the run in a folder of this name.

        The name is the run's, such as `abc`, or `abc.1` if the folder `abc` was in use.
        """
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
    """Read a folder's run.json; None if there is none. Nothing in the folder is changed.

    Raises:
        DataError: the file is damaged, of a newer version, or of a run that this folder is not named after.
        NotOursError: the file is a link, another user's, or too large.
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
    """Write the run.json of a folder."""
    values = {"schema_version": SCHEMA_VERSION, **asdict(run)}
    folder.replace(FILE, json.dumps(values, indent=1).encode())


def what_is_wrong(error: ValidationError) -> str:
    """Return the first objection of a schema, without the value, which may be megabytes long or a password."""
    first = error.errors(include_input=False, include_context=False, include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]
