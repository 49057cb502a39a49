"""One record in a run's queue: numbers and files that are sent together, each part forgotten once it is sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlflow_dynamics.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one record sends besides files.

    A metric is (key, value, timestamp in ms, step); a dataset is its `context` ("training", ...) beside the fields of
    MLflow's Dataset.
    """

    metrics: tuple[tuple[str, float, int, int], ...] = ()
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    datasets: tuple[Mapping[str, str], ...] = ()
    status: str | None = None
    end_time: int | None = None


class Entry:
    """One record of the queue, on disk or (while the disk refuses) in memory; its parts leave as sent."""

    def __init__(
        self,
        number: int,
        *,
        folder: Path | None = None,
        batch: Batch | None = None,
        files: Mapping[str, bytes] = {},
    ) -> None:
        self.number = number
        self.folder = folder
        self._batch = batch
        self._files = dict(files)

    def batch(self) -> Batch | None:
        """Metrics, parameters and tags still to be sent; DataError where the file is damaged."""
        if self.folder is None:
            return self._batch
        path = self.folder / "batch.json"
        try:
            values = json.loads(path.read_bytes())
            metrics = tuple(
                (str(key), float(value), int(ms), int(step)) for key, value, ms, step in values["metrics"]
            )
            return Batch(**{**values, "metrics": metrics})
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path} is damaged and cannot be sent.") from error

    def artifact_paths(self) -> list[str]:
        """Artifact paths of the files still to be sent."""
        if self.folder is None:
            return sorted(self._files)
        root = self.folder / "artifacts"
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())

    def read_artifact(self, path: str) -> bytes | None:
        """The file's content; None where it has left since (a newer version took its place)."""
        if self.folder is None:
            return self._files.get(path)
        try:
            return (self.folder / "artifacts" / path).read_bytes()
        except FileNotFoundError:
            return None

    def memory_bytes(self) -> int:
        """What its files take in memory."""
        return sum(map(len, self._files.values()))

    def drop_batch(self) -> None:
        """Forget the metrics, parameters and tags: they are sent."""
        self._batch = None
        if self.folder is not None:
            (self.folder / "batch.json").unlink(missing_ok=True)

    def drop_artifact(self, path: str) -> int:
        """Forget a file; returns the bytes that this frees."""
        if self.folder is None:
            return len(self._files.pop(path, b""))
        file = self.folder / "artifacts" / path
        try:
            size = file.stat().st_size
            file.unlink()
        except FileNotFoundError:
            return 0
        return size
