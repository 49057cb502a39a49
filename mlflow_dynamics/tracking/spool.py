"""The local folder of one run. Each record is kept here from the moment it is made until MLflow has it.

    .mlflow_dynamics/<run>/
        run.json                        the run and its store (without passwords), and all that is needed to create it
        lock                            held by the one process that writes or sends
        queue/00000012/                 one record, written under another name and then renamed: complete or absent
            batch.json                  metrics, parameters, tags, the end of the run
            artifacts/dynamics/...      files, each under its artifact path
        rejected/00000007/              a record that the store refused for good or that is not ours, and reason.txt

The folder outlives the process, however the process ends. Nothing is forced to disk, so a power cut can lose some
seconds of the record. Other files in the folder are left alone.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Final

from mlflow_dynamics.errors import DataError, TrackingError
from mlflow_dynamics.tracking.folder import Folder, NotOursError
from mlflow_dynamics.tracking.names import ACTIVATIONS, DEFAULT_SPOOL, ENV_SPOOL, check_run_id
from mlflow_dynamics.tracking.queue_entry import ARTIFACTS, BATCH, QUEUE, Batch, Entry
from mlflow_dynamics.tracking.run_record import FILE, RunRecord, read_run, save_run

MAX_DISK_BYTES: Final = 2 * 1024**3
"""Bound on one run's unsent files: 170,000 epochs of 21 layers x 79 steps, or 200 of 256 layers x 5,000 steps."""

MAX_MEMORY_BYTES: Final = 64 * 1024**2
"""Bound on the files that are kept in memory while the spool's disk refuses to write."""

LOCK_WAIT_S: Final = 10.0
"""How long a run recorded offline waits for a `sync` that holds the run's folder just when the run begins."""

LOCK: Final = "lock"
REJECTED: Final = "rejected"
REASON: Final = "reason.txt"

_NUMBER = re.compile("[0-9]{8,12}")
_TEMPORARY_RECORD = re.compile(r"\.[0-9]{8,12}")
_TEMPORARY_RUN = re.compile(r"\.run\.json\.\w{8}")

_logger = logging.getLogger(__name__)


def spool_root(spool_dir: Path | None = None) -> Path:
    """Return the folder that holds the folders of all runs.

    It is `spool_dir`; if that is None, the folder that MLFLOW_DYNAMICS_SPOOL names; if that is not set,
    `.mlflow_dynamics` in the working folder. The folder that the environment names may be a link, because the user has
    chosen it. The folder `.mlflow_dynamics` must not be a link, because it may come with a checkout.
    """
    named = os.environ.get(ENV_SPOOL)
    if spool_dir is None and named:
        return Path(named).resolve()
    return Path(spool_dir or DEFAULT_SPOOL).absolute()


def open_folder(path: Path, *, create: bool = False) -> Folder:
    """Open a run's folder and, before it, the folder that contains it. With `create`, missing folders are made.

    Raises:
        NotOursError: one of the two is a link, another user's, or writable by others.
    """
    return Folder.open(path.parent, create=create).child(path.name, create=create)


def numbers(home: Folder) -> list[int]:
    """Return the numbers of the records on disk, oldest first."""
    with contextlib.suppress(FileNotFoundError, NotOursError), home.at(QUEUE) as queue:
        return [int(name) for name in queue.names() if _NUMBER.fullmatch(name) and queue.is_folder(name)]
    return []


def last_change(home: Folder) -> float:
    """Return when a record was last added to a run's folder or removed from it, in seconds since 1970."""
    with contextlib.suppress(FileNotFoundError, NotOursError), home.at(QUEUE) as queue:
        return max(home.modified(), queue.modified())
    return home.modified()


class InUseError(TrackingError):
    """The folder of a run is in use by another process or writer."""


class Spool:
    """The queue of one run. `put` may be called from any thread while another thread sends.

    Nothing in a folder is changed before its run.json is read and its lock is held. If the folder cannot be made or is
    not ours, records are kept in memory, and this is logged once.

    Args:
        folder: the run's folder.
        run: the run to record; None opens the folder of a run that was recorded before.
        wait_s: how long to wait for another process that holds the folder, in seconds.

    Raises:
        InUseError: another process or writer holds this folder.
        DataError: the folder holds another run, or its run.json is damaged or of a newer version. Without `run`, also
            if the folder is missing or not ours.
    """

    def __init__(self, folder: Path, run: RunRecord | None = None, *, wait_s: float = 0) -> None:
        self.folder = folder
        self._mutex = threading.Lock()
        self._memory: list[Entry] = []
        self._forgotten: set[tuple[int, str]] = set()
        self._owners: dict[str, Entry] = {}
        self._over_bound = False
        self._refused_bytes: int | None = None
        self._home: Folder | None = None
        self._lock: int | None = None
        self._undeletable: set[int] = set()
        self._undeletable_told = False
        self._closed = False
        self._ended = False
        stored = None
        try:
            stored = self._enter(run, wait_s)
        except OSError as error:
            if run is None or (isinstance(error, NotOursError) and error.filename != str(folder.parent)):
                raise DataError(f"{error.filename or folder} is left alone: {error.strerror}.") from error
            self._report_disk(error)
        # The last process that records into a run decides whether the run is ours to end.
        self.run: RunRecord = replace(stored, owned=run.owned) if stored and run else stored or run  # type: ignore[assignment]
        self._run_saved = stored == self.run
        entries = self.entries()
        self._next = entries[-1].number + 1 if entries else 0
        self._disk_bytes = sum(entry.artifact_bytes() for entry in entries)
        for entry in entries:
            self._owners.update(dict.fromkeys(entry.artifact_paths(), entry))

    def put(self, batch: Batch | None = None, files: Mapping[str, bytes] = {}) -> None:
        """Add a record at the end of the queue, on disk or, if the disk refuses it, in memory (logged once).

        Args:
            batch: the metrics, parameters and tags.
            files: artifact path -> content. A file replaces an older one of the same path that still waits.
        """
        size = sum(map(len, files.values()))
        with self._mutex:
            number, self._next = self._next, self._next + 1
            try:
                entry = self._write(number, batch, files)
                self._disk_took(size)
                self._disk_bytes += size
            except OSError as error:
                self._report_disk(error, size)
                entry = Entry(number, batch=batch, files=files)
                self._memory.append(entry)
            for path in files:
                older = self._owners.get(path)
                if older is not None:
                    self._forget(older, path)
                self._owners[path] = entry
            self._keep_bounds()

    def entries(self) -> list[Entry]:
        """Return the records of the queue, oldest first."""
        with self._mutex:
            return self._entries()

    def _entries(self) -> list[Entry]:
        found = [] if self._home is None else numbers(self._home)
        on_disk = [
            Entry(number, home=self._home, forgotten=self._forgotten)
            for number in found
            if number not in self._undeletable
        ]
        return sorted([*on_disk, *self._memory], key=lambda entry: entry.number)

    def batch_sent(self, entry: Entry) -> None:
        """Delete the metrics, parameters and tags of a record, which MLflow has."""
        try:
            entry.drop_batch()
        except OSError as error:
            self._report_kept(error)

    def artifact_sent(self, entry: Entry, path: str) -> None:
        """Delete a file of a record, which MLflow has."""
        with self._mutex:
            self._forget(entry, path)
            if self._owners.get(path) is not None and self._owners[path].number == entry.number:
                del self._owners[path]

    def finish(self, entry: Entry) -> None:
        """Delete a record of which all parts are sent. Other files in its folder are moved to `rejected`."""
        with self._mutex:
            if entry in self._memory:
                self._memory.remove(entry)
            elif self._home is not None:
                self._clear(self._home, entry)

    def reject(self, entry: Entry, reason: str) -> None:
        """Move the metrics, parameters and tags of a record to `rejected`, because they can never be sent.

        Args:
            entry: the record; one that is only in memory is dropped.
            reason: the content of `reason.txt`.
        """
        if entry.home is None:
            entry.drop_batch()
            return
        try:
            with entry.home.at(*entry.parts) as record:
                _set_aside(entry.home, entry.number, record, BATCH, reason)
        except OSError as error:
            self._forgotten.add((entry.number, BATCH))
            self._report_kept(error)

    def set_run_id(self, run_id: str) -> None:
        """Store the id of the run that was created for this folder."""
        with self._mutex:
            self.run = replace(self.run, run_id=run_id)
            self._run_saved = False
            try:
                self._writable()
            except OSError as error:
                self._report_disk(error)

    def in_memory(self) -> int:
        """Try once more to write the records in memory to disk; return how many the disk still refuses."""
        with self._mutex:
            for entry in list(self._memory):
                files = {path: entry.read_artifact(path) or b"" for path in entry.artifact_paths()}
                try:
                    self._write(entry.number, entry.batch(), files)
                except OSError as error:
                    self._report_disk(error)
                    break
                self._memory.remove(entry)
            if self._closed:
                self._release()
            return len(self._memory)

    @property
    def awaits_end(self) -> bool:
        """Whether the run is ours to end and its end has not been sent. Its folder is kept until then."""
        return self.run.owned and not self._ended

    def ended(self) -> None:
        """Note that the store has the run's end."""
        self._ended = True

    def close(self) -> None:
        """Release the folder, and remove it if it is empty and the run is not waiting for its end."""
        with self._mutex:
            self._closed = True
            if self._home is not None and self.run.run_id and not self._entries() and not self.awaits_end:
                with contextlib.suppress(OSError):
                    _remove(self._home)
            self._release()

    def _enter(self, run: RunRecord | None, wait_s: float = 0) -> RunRecord | None:
        """Open and lock the folder, which is made for `run` if it is missing; return the content of its run.json."""
        try:
            home = open_folder(self.folder, create=run is not None)
            self._check_run(read_run(home), run)
            lock = home.lock(LOCK, wait_s=wait_s)
        except FileNotFoundError:
            if run is not None:
                raise
            self._check_run(None, None)
        if lock is None:
            raise InUseError(f"{self.folder} is in use by another process or writer.")
        with contextlib.ExitStack() as refused:
            refused.callback(os.close, lock)
            stored = read_run(home)
            self._check_run(stored, run)
            refused.pop_all()
        with contextlib.suppress(OSError), home.at(QUEUE) as queue:
            for name in filter(_TEMPORARY_RECORD.fullmatch, queue.names()):
                with contextlib.suppress(OSError):
                    queue.remove_tree(name, files=True)
        self._home, self._lock = home, lock
        return stored

    def _check_run(self, stored: RunRecord | None, run: RunRecord | None) -> None:
        if stored is None and run is None:
            raise DataError(f"{self.folder} is not a folder of recorded runs: it holds no run.json.")
        if stored is not None and run is not None and not stored.is_same(run):
            raise DataError(f"{self.folder} holds records of another run.")

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _writable(self) -> Folder:
        """Return the folder with its run.json. It is made anew if somebody has removed it."""
        home = self._home
        if home is None or not home.is_at(self.folder) or not self._holds_lock(home):
            if home is not None and not self._closed:
                _logger.warning("%s was removed or moved: it is made anew.", self.folder)
            self._release()
            try:
                self._enter(self.run)
            except (DataError, TrackingError) as error:
                raise OSError(errno.EBUSY, str(error)) from error
            home = self._home
            assert home is not None
        if not self._run_saved or not home.holds(FILE):
            save_run(home, self.run)
            self._run_saved = True
        return home

    def _holds_lock(self, home: Folder) -> bool:
        return self._lock is not None and home.holds(LOCK, self._lock)

    def _write(self, number: int, batch: Batch | None, files: Mapping[str, bytes]) -> Entry:
        home = self._writable()
        entry = Entry(number, home=home, forgotten=self._forgotten)
        name = entry.parts[-1]
        with home.at(QUEUE, create=True) as queue:
            try:
                with queue.at(f".{name}", create=True) as record:
                    if batch is not None:
                        record.create(BATCH, batch.to_json())
                    for path, data in files.items():
                        *folders, last = PurePosixPath(path).parts
                        with record.at(ARTIFACTS, *folders, create=True) as target:
                            target.create(last, data)
                queue.move(f".{name}", queue, name)
            except OSError:
                with contextlib.suppress(OSError):
                    queue.remove_tree(f".{name}", files=True)
                raise
        return entry

    def _clear(self, home: Folder, entry: Entry) -> None:
        """Remove the folder of a record of which all parts are sent. Other files in it are moved to `rejected`."""
        queue, name = entry.parts
        try:
            if entry.home is None:  # it was sent from memory while `in_memory` wrote it to disk
                on_disk = Entry(entry.number, home=home)
                on_disk.drop_batch()
                for path in on_disk.artifact_paths():
                    on_disk.drop_artifact(path)
            with home.at(queue) as folder:
                try:
                    folder.remove_tree(name, files=False)
                except OSError:
                    if any(number == entry.number for number, _ in self._forgotten):
                        raise
                    _set_aside(
                        home, entry.number, folder, name, "It holds what is no record of this project."
                    )
        except FileNotFoundError:
            return
        except OSError as error:
            self._undeletable.add(entry.number)
            self._report_kept(error)

    def _forget(self, entry: Entry, path: str) -> int:
        try:
            freed = entry.drop_artifact(path)
        except OSError as error:
            self._report_kept(error)
            return 0
        if entry.home is not None:
            self._disk_bytes -= freed
        return freed

    def _keep_bounds(self) -> None:
        """Drop the oldest unsent activations if the files exceed a bound. Numbers are never dropped."""
        self._drop_oldest(self._disk_bytes - MAX_DISK_BYTES, on_disk=True)
        in_memory = sum(entry.artifact_bytes() for entry in self._memory)
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
            if path.startswith(f"{ACTIVATIONS}/") and (entry.home is not None) == on_disk:
                excess -= self._forget(entry, path)
                del self._owners[path]

    def _disk_took(self, size: int) -> None:
        # A full disk still takes small records now and then. So the disk counts as working again only when it has taken
        # a record at least as large as the first one that it refused.
        if self._refused_bytes is not None and size >= self._refused_bytes:
            self._refused_bytes = None
            _logger.warning("%s can be written again.", self.folder)

    def _report_disk(self, error: OSError, size: int = 0) -> None:
        if self._refused_bytes is None:
            self._refused_bytes = size
            _logger.warning(
                "Cannot write to %s (%s): records are kept in memory until they are sent.",
                error.filename if isinstance(error, NotOursError) else self.folder,
                error.strerror,
            )

    def _report_kept(self, error: OSError) -> None:
        if not self._undeletable_told:
            self._undeletable_told = True
            _logger.warning(
                "Cannot remove from %s what MLflow has (%s): sending goes on, and `mlflow-dynamics sync` will find it "
                "again.",
                self.folder,
                error.strerror,
            )


def open_spool(root: Path, name: str, run: RunRecord | None) -> Spool:
    """Open the spool folder of a run, or another folder (`name.1`, ...) if that one is in use or another run's.

    Args:
        root: the folder of all runs' folders.
        name: the run's id or local name.
        run: the run to record; None opens the folder of a run that was recorded offline.

    Raises:
        ConfigError: `name` is not the name of a run.
        DataError: `run` is None and the folder is missing, damaged or not ours.
        TrackingError: `run` is None and the folder is in use, or 100 folders of the run are in use.
    """
    check_run_id(name)
    if run is None:
        return Spool(root / name, wait_s=LOCK_WAIT_S)
    for folder in (root / name, *(root / f"{name}.{number}" for number in range(1, 100))):
        with contextlib.suppress(TrackingError, DataError):
            return Spool(folder, run)
    raise TrackingError(f"100 processes record the run {name} at once in {root}; let one of them do it.")


def _set_aside(home: Folder, number: int, folder: Folder, name: str, reason: str) -> None:
    """Move `name` from a folder of the queue to `rejected`, with the reason beside it."""
    with home.at(REJECTED, create=True) as rejected:
        # The number may be taken: numbers begin anew if the queue was empty when a run was resumed.
        again = (f"{number:08d}.{count}" for count in itertools.count(1))
        free = next(one for one in itertools.chain([f"{number:08d}"], again) if not rejected.holds(one))
        with rejected.at(free, create=True) as target:
            folder.move(name, target, name)
            target.create(REASON, reason.encode("utf-8", "replace"))


def _remove(home: Folder) -> None:
    """Remove a run's folder, unless it holds files that this project does not write or has not sent."""
    names = home.names()
    ours = [name for name in names if name in (FILE, LOCK) or _TEMPORARY_RUN.fullmatch(name)]
    if set(names) - set(ours) - {QUEUE}:
        return
    if QUEUE in names:
        home.remove_tree(QUEUE, files=False)
    for name in ours:
        home.remove(name)
    Folder.open(home.path.parent).remove_tree(home.path.name, files=False, depth=0)
