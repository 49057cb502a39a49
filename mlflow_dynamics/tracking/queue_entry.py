"""One record in a run's queue: numbers and files that are sent together. Each part is deleted once it is sent."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Annotated, Final

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from mlflow_dynamics.errors import ConfigError, DataError
from mlflow_dynamics.tracking.folder import MAX_DEPTH, Folder, NotOursError
from mlflow_dynamics.tracking.names import check_artifact_path
from mlflow_dynamics.tracking.run_record import STRICT, Milliseconds, Text, what_is_wrong

QUEUE: Final = "queue"
BATCH: Final = "batch.json"
ARTIFACTS: Final = "artifacts"

MAX_BATCH_BYTES: Final = 64 * 1024**2
"""Bound on the size of batch.json, enough for a million metrics in one record."""

MAX_FILE_BYTES: Final = 2 * 1024**3


END_STATUSES: Final = ("FINISHED", "FAILED", "KILLED")


def _end_status(status: str) -> str:
    if status not in END_STATUSES:
        raise ValueError("is no end of a run")
    return status


@dataclass(frozen=True, kw_only=True)
class InputDataset:
    """A data set that a run used: its purpose (`context`, such as "training") and the fields of MLflow's Dataset."""

    __pydantic_config__ = STRICT

    context: Text
    name: Text
    digest: Text
    source_type: Text
    source: Text
    schema: Text | None = None
    profile: Text | None = None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The part of a record that is not files. A metric is (key, value, timestamp in ms, step)."""

    __pydantic_config__ = STRICT

    metrics: tuple[tuple[Text, float, Milliseconds, Annotated[int, Field(ge=-(2**63), lt=2**63)]], ...] = ()
    params: Mapping[Text, Text] = field(default_factory=dict)
    tags: Mapping[Text, Text] = field(default_factory=dict)
    datasets: tuple[InputDataset, ...] = ()
    status: Annotated[str, AfterValidator(_end_status)] | None = None
    end_time: Milliseconds | None = None

    def to_json(self) -> bytes:
        """Return the content of batch.json."""
        return json.dumps(asdict(self)).encode()


_SCHEMA: Final = TypeAdapter(Batch)


class Entry:
    """One record of the queue, on disk or, if the disk refuses it, in memory. Its parts are deleted once they are sent.

    Args:
        number: the record's place in the queue.
        home: the run's folder, for a record on disk; None for a record in memory.
        forgotten: (number of the record, part) of each sent part that could not be deleted from disk; shared by all
            entries of a queue.
        batch: the metrics, parameters and tags of a record in memory.
        files: artifact path -> content, of a record in memory.
    """

    def __init__(
        self,
        number: int,
        *,
        home: Folder | None = None,
        forgotten: set[tuple[int, str]] | None = None,
        batch: Batch | None = None,
        files: Mapping[str, bytes] = {},
    ) -> None:
        self.number = number
        self.home = home
        self._forgotten = set() if forgotten is None else forgotten
        self._batch = batch
        self._files = dict(files)

    @property
    def parts(self) -> tuple[str, str]:
        """The path of the record's folder below the run's folder."""
        return QUEUE, f"{self.number:08d}"

    def batch(self) -> Batch | None:
        """Return the metrics, parameters and tags that are still to be sent; None if they are sent.

        Raises:
            DataError: the file is damaged or not ours.
        """
        if self.home is None:
            return self._batch
        if (self.number, BATCH) in self._forgotten:
            return None
        try:
            with self.home.at(*self.parts) as folder:
                return _SCHEMA.validate_json(folder.read(BATCH, limit=MAX_BATCH_BYTES))
        except FileNotFoundError:
            return None
        except NotOursError as error:
            raise DataError(f"{error.filename} cannot be sent: {error.strerror}.") from error
        except ValidationError as error:
            path = self.home.path.joinpath(*self.parts, BATCH)
            raise DataError(f"{path} is damaged and cannot be sent ({what_is_wrong(error)}).") from error

    def artifact_paths(self) -> list[str]:
        """Return the artifact paths of the files that are still to be sent, without files that cannot be ours."""
        if self.home is None:
            return sorted(self._files)
        with suppress(FileNotFoundError, NotOursError), self.home.at(*self.parts, ARTIFACTS) as root:
            return sorted(
                path
                for path in _files_below(root, "", MAX_DEPTH)
                if (self.number, path) not in self._forgotten and _is_artifact_path(path)
            )
        return []

    def read_artifact(self, path: str) -> bytes | None:
        """Return the file's content; None if it has been deleted since, because a newer version replaces it."""
        if self.home is None:
            return self._files.get(path)
        *folders, name = PurePosixPath(path).parts
        with (
            suppress(FileNotFoundError, NotOursError),
            self.home.at(*self.parts, ARTIFACTS, *folders) as folder,
        ):
            return folder.read(name, limit=MAX_FILE_BYTES)
        return None

    def artifact_bytes(self) -> int:
        """Return the size of the record's files in bytes, on disk or in memory."""
        if self.home is None:
            return sum(map(len, self._files.values()))
        return sum(map(self._size, self.artifact_paths()))

    def drop_batch(self) -> None:
        """Delete the metrics, parameters and tags, which are sent.

        Raises:
            OSError: they cannot be deleted from disk; this process still treats them as deleted.
        """
        self._batch = None
        if self.home is not None:
            self._drop(BATCH, self.parts, BATCH)

    def drop_artifact(self, path: str) -> int:
        """Delete a file and return the bytes that this frees. Raises as `drop_batch` does."""
        if self.home is None:
            return len(self._files.pop(path, b""))
        size = self._size(path)
        *folders, name = PurePosixPath(path).parts
        self._drop(path, (*self.parts, ARTIFACTS, *folders), name)
        return size

    def _drop(self, part: str, folders: tuple[str, ...], name: str) -> None:
        assert self.home is not None
        try:
            with suppress(FileNotFoundError), self.home.at(*folders) as folder:
                folder.remove(name)
        except OSError:
            self._forgotten.add((self.number, part))
            raise

    def _size(self, path: str) -> int:
        assert self.home is not None
        *folders, name = PurePosixPath(path).parts
        with (
            suppress(FileNotFoundError, NotOursError),
            self.home.at(*self.parts, ARTIFACTS, *folders) as folder,
        ):
            return folder.size(name)
        return 0


def _files_below(folder: Folder, prefix: str, depth: int) -> Iterator[str]:
    for name in folder.names():
        if folder.is_folder(name):
            if depth:
                with suppress(FileNotFoundError, NotOursError), folder.at(name) as inner:
                    yield from _files_below(inner, f"{prefix}{name}/", depth - 1)
        else:
            with suppress(FileNotFoundError, NotOursError):
                folder.size(name)
                yield f"{prefix}{name}"


def _is_artifact_path(path: str) -> bool:
    try:
        check_artifact_path(path)
    except ConfigError:
        return False
    return True
