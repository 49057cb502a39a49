"""The local folder of one run: what is recorded is safe here first, and leaves when MLflow has it.

    .mlflow_dynamics/<run>/
        run.json                        which run of which store (without passwords), and how to create it
        lock                            held by the one process that writes or sends
        queue/00000012/                 one record, written aside and then renamed: all of it or nothing
            batch.json                  metrics, parameters, tags, the end of the run
            artifacts/dynamics/...      files, each under its artifact path
        rejected/00000007/              what the store refused for good: batch.json and reason.txt

It outlives the process, whatever ends it. Nothing is forced to disk: a power cut can cost seconds.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from mlflow_dynamics.errors import DataError, TrackingError
from mlflow_dynamics.tracking.entry import Batch, Entry
from mlflow_dynamics.tracking.names import (
    ACTIVATIONS,
    DEFAULT_SPOOL,
    ENV_SPOOL,
    LOCAL_PREFIX,
    SCHEMA_VERSION,
)
from mlflow_dynamics.tracking.parquet import write_file

MAX_DISK_BYTES: Final = 2 * 1024**3
"""Bound on one run's unsent files: 170,000 epochs of 21 layers x 79 steps, 200 of 256 x 5,000."""

MAX_MEMORY_BYTES: Final = 64 * 1024**2
"""Bound on the files kept in memory while the spool's disk refuses to write."""

LOCK_WAIT_S: Final = 10.0
"""How long a run recorded offline waits for a `sync` that looks into its folder just when it begins."""

_logger = logging.getLogger(__name__)


def spool_root(spool_dir: Path | None = None) -> Path:
    """Where the runs' folders lie: `spool_dir`, else MLFLOW_DYNAMICS_SPOOL, else `.mlflow_dynamics` here."""
    return Path(spool_dir or os.environ.get(ENV_SPOOL) or DEFAULT_SPOOL).absolute()


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Which run a folder belongs to. A run recorded offline has no `run_id` before it is created."""

    tracking_uri: str
    run_id: str | None
    local_id: str | None = None
    experiment_id: str | None = None
    experiment_name: str | None = None
    run_name: str | None = None
    start_time: int | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The run's id, or the local name of one that is still to be created."""
        return self.run_id or f"{LOCAL_PREFIX}{self.local_id}"


class Spool:
    """The queue of one run. `put` may be called from any thread, beside the one that sends.

    Raises:
        TrackingError: another process or writer holds this folder.
        DataError: the folder's run.json is damaged or of a newer version.
    """

    def __init__(self, folder: Path, run: RunRecord | None = None, *, wait_s: float = 0) -> None:
        self.folder = folder
        self._mutex = threading.Lock()
        self._memory: list[Entry] = []
        self._owners: dict[str, Entry] = {}
        self._over_bound = False
        self._refused_bytes: int | None = None
        self._lock = FileLock(folder / "lock", timeout=wait_s, thread_local=False)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout as error:
            raise TrackingError(f"{folder} is in use by another process or writer.") from error
        except OSError as error:
            self._report_disk(error)
        stored = _read_run(folder)
        if stored is None and run is None:
            # Another `sync` may have just sent and removed the folder: taking the lock has made it anew.
            with contextlib.suppress(OSError):
                (folder / "lock").unlink()
                folder.rmdir()
            self._lock.release()
            raise DataError(f"{folder} is not a folder of recorded runs: it holds no run.json.")
        self.run: RunRecord = stored or run  # type: ignore[assignment]
        self._run_saved = stored is not None
        for leftover in folder.glob("queue/.*"):
            shutil.rmtree(leftover, ignore_errors=True)
        entries = self.entries()
        self._next = entries[-1].number + 1 if entries else 0
        self._disk_bytes = sum(
            file.stat().st_size for file in folder.glob("queue/*/artifacts/**/*") if file.is_file()
        )
        for entry in entries:
            self._owners.update(dict.fromkeys(entry.artifact_paths(), entry))

    def put(self, batch: Batch | None = None, files: Mapping[str, bytes] = {}) -> None:
        """Add a record at the end of the queue: on disk, or in memory where the disk refuses (said once)."""
        with self._mutex:
            number, self._next = self._next, self._next + 1
            try:
                self._save_run()
                entry = self._write(number, batch, files)
                self._disk_took(sum(map(len, files.values())))
            except OSError as error:
                self._report_disk(error, sum(map(len, files.values())))
                entry = Entry(number, batch=batch, files=files)
                self._memory.append(entry)
            if entry.folder is not None:
                self._disk_bytes += sum(map(len, files.values()))
            for path in files:
                older = self._owners.get(path)
                if older is not None:
                    self._forget(older, path)
                self._owners[path] = entry
            self._keep_bounds()

    def entries(self) -> list[Entry]:
        """The queue, oldest first."""
        with self._mutex:
            return self._entries()

    def _entries(self) -> list[Entry]:
        names = [path for path in self.folder.glob("queue/*") if path.name.isdigit()]
        return sorted(
            [*(Entry(int(path.name), folder=path) for path in names), *self._memory],
            key=lambda entry: entry.number,
        )

    def artifact_sent(self, entry: Entry, path: str) -> None:
        """Forget a file that MLflow has."""
        with self._mutex:
            self._forget(entry, path)
            if self._owners.get(path) is not None and self._owners[path].number == entry.number:
                del self._owners[path]

    def finish(self, entry: Entry) -> None:
        """Forget a record all of whose parts have left."""
        with self._mutex:
            if entry in self._memory:
                self._memory.remove(entry)
            else:
                # Also of a record that closing has written down while it was being sent from memory.
                shutil.rmtree(self._folder_of(entry.number), ignore_errors=True)

    def reject(self, entry: Entry, reason: str) -> None:
        """Set the metrics, parameters and tags of a record aside: the store refuses them for good."""
        target = self.folder / "rejected" / f"{entry.number:08d}"
        if entry.folder is not None:
            target.mkdir(parents=True, exist_ok=True)
            (entry.folder / "batch.json").replace(target / "batch.json")
            write_file(target / "reason.txt", reason.encode())
        entry.drop_batch()

    def set_run_id(self, run_id: str) -> None:
        """Remember the run that was created for this folder."""
        with self._mutex:
            self.run = replace(self.run, run_id=run_id)
            self._run_saved = False
            self._save_run()

    def in_memory(self) -> int:
        """Try once more to write what is only in memory; returns how many records the disk still refuses."""
        with self._mutex:
            for entry in list(self._memory):
                files = {path: entry.read_artifact(path) or b"" for path in entry.artifact_paths()}
                try:
                    self._save_run()
                    self._write(entry.number, entry.batch(), files)
                except OSError as error:
                    self._report_disk(error)
                    break
                self._memory.remove(entry)
            return len(self._memory)

    def close(self) -> None:
        """Release the folder; it is removed where nothing is left in it."""
        with self._mutex:
            created = self.run.run_id is not None
            if created and not self._entries() and not (self.folder / "rejected").exists():
                shutil.rmtree(self.folder, ignore_errors=True)
            self._lock.release()

    def _save_run(self) -> None:
        if not self._run_saved:
            save_run(self.folder, self.run)
            self._run_saved = True

    def _folder_of(self, number: int) -> Path:
        return self.folder / "queue" / f"{number:08d}"

    def _write(self, number: int, batch: Batch | None, files: Mapping[str, bytes]) -> Entry:
        folder = self._folder_of(number)
        aside = folder.with_name(f".{number:08d}")
        try:
            aside.mkdir(parents=True)
            if batch is not None:
                (aside / "batch.json").write_text(json.dumps(asdict(batch)))
            for path, data in files.items():
                target = aside / "artifacts" / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
            aside.rename(folder)
        except OSError:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        return Entry(number, folder=folder)

    def _forget(self, entry: Entry, path: str) -> int:
        freed = entry.drop_artifact(path)
        if entry.folder is not None:
            self._disk_bytes -= freed
        return freed

    def _keep_bounds(self) -> None:
        """Where the files outgrow a bound, the oldest unsent activations go first; numbers never go."""
        self._drop_oldest(self._disk_bytes - MAX_DISK_BYTES, on_disk=True)
        in_memory = sum(entry.memory_bytes() for entry in self._memory)
        self._drop_oldest(in_memory - MAX_MEMORY_BYTES, on_disk=False)

    def _drop_oldest(self, excess: int, *, on_disk: bool) -> None:
        if excess <= 0:
            return
        if not self._over_bound:
            self._over_bound = True
            _logger.warning(
                "Too much waits to be sent in %s: the oldest activations go, metrics are kept.", self.folder
            )
        for path, entry in list(self._owners.items()):
            if excess <= 0:
                return
            if path.startswith(f"{ACTIVATIONS}/") and (entry.folder is not None) == on_disk:
                excess -= self._forget(entry, path)
                del self._owners[path]

    def _disk_took(self, size: int) -> None:
        # A full disk still takes small records now and then: it works again when it takes one like the first it
        # refused.
        if self._refused_bytes is not None and size >= self._refused_bytes:
            self._refused_bytes = None
            _logger.warning("%s can be written again.", self.folder)

    def _report_disk(self, error: OSError, size: int = 0) -> None:
        if self._refused_bytes is None:
            self._refused_bytes = size
            _logger.warning(
                "Cannot write to %s (%s): records are kept in memory until they are sent.",
                self.folder,
                error.strerror,
            )


def save_run(folder: Path, run: RunRecord) -> None:
    """Write which run a folder belongs to."""
    values = {"schema_version": SCHEMA_VERSION, **asdict(run)}
    write_file(folder / "run.json", json.dumps(values, indent=1).encode())


def open_spool(root: Path, name: str, run: RunRecord | None) -> Spool:
    """The spool folder of a run; beside it (`name.1`, ...) where another process is still sending from it.

    Raises:
        DataError: `run` is None and the folder does not say which run it belongs to.
    """
    if run is None:
        return Spool(root / name, wait_s=LOCK_WAIT_S)
    for folder in (root / name, *(root / f"{name}.{number}" for number in range(1, 100))):
        with contextlib.suppress(TrackingError):
            return Spool(folder, run)
    raise TrackingError(f"100 processes record the run {name} at once in {root}; let one of them do it.")


def _read_run(folder: Path) -> RunRecord | None:
    path = folder / "run.json"
    try:
        values = json.loads(path.read_bytes())
        version = values.pop("schema_version")
        if version <= SCHEMA_VERSION:
            return RunRecord(**values)
    except OSError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path} is damaged; it does not say which run this folder belongs to.") from error
    raise DataError(
        f"{path} has schema version {version}, newer than {SCHEMA_VERSION}; upgrade mlflow-dynamics."
    )
