"""A folder whose content is not trusted: no link is followed, and no file is read that is not ours.

Every name is looked up in a directory that is already open. So nobody can lead a call elsewhere by replacing a folder
with a link between two calls. A file or folder is ours if it belongs to this user and nobody else can write it. A file
must also have only one name, because a hard link to a private key is not one of our records.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

FOLDER_MODE: Final = 0o700
FILE_MODE: Final = 0o600

MAX_DEPTH: Final = 32
"""The deepest nesting of folders that is read. Each level keeps a file descriptor open meanwhile."""

_ENTER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
# Without O_NONBLOCK, opening a fifo would wait until somebody writes into it.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_LOCK: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK

_LOCK_PAUSE_S: Final = 0.05


class NotOursError(OSError):
    """The file or folder is not ours: a link, another user's, writable by others, or of another kind than expected."""


class Folder:
    """An open directory of ours. Names are single parts of a path. New folders have mode 0700, new files 0600.

    Args:
        descriptor: a descriptor of the open directory, which this object closes.
        path: the directory's path, for messages.

    Raises:
        NotOursError: from every method, if the file or folder is not ours; it has not been changed.
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        self.path = path
        self._descriptor = descriptor
        # The descriptor stays open as long as any thread holds this object: the number of a closed descriptor is soon
        # used for another file.
        self._close = weakref.finalize(self, os.close, descriptor)
        self._close.atexit = False
        try:
            _check(os.fstat(descriptor), path, folder=True)
        except NotOursError:
            self._close()
            raise

    @classmethod
    def open(cls, path: Path, *, create: bool = False) -> Folder:
        """Open a folder by its path. Only the last part must not be a link; the parts before it are the user's own."""
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
            _make(str(path), None)
        return cls(_entered(str(path), None, path), path)

    @contextmanager
    def at(self, *parts: str, create: bool = False) -> Iterator[Folder]:
        """Open a folder below this one for the block; with `create`, missing folders are made."""
        with ExitStack() as stack:
            folder = self
            for part in parts:
                folder = folder.child(part, create=create)
                stack.callback(folder._close)  # noqa: SLF001 - of this class
            yield folder

    def child(self, name: str, *, create: bool = False) -> Folder:
        """Open the folder `name` in this one; with `create`, it is made if it is missing."""
        path = self.path / name
        if create:
            _make(name, self._descriptor)
        return Folder(_entered(name, self._descriptor, path), path)

    def is_at(self, path: Path) -> bool:
        """Whether this folder is still the one at `path`."""
        return _same(os.fstat(self._descriptor), _status(str(path), None))

    def holds(self, name: str, descriptor: int | None = None) -> bool:
        """Whether anything of this name (or relative path) exists; with `descriptor`, whether it is that open file."""
        status = _status(name, self._descriptor)
        return status is not None and (descriptor is None or _same(os.fstat(descriptor), status))

    def names(self) -> list[str]:
        """Return the sorted names of all entries, of whatever kind."""
        # A listing needs a descriptor of its own, because threads that share a descriptor share its position.
        own = os.open(".", _ENTER, dir_fd=self._descriptor)
        try:
            return sorted(os.listdir(own))  # noqa: PTH208 - of an open directory
        finally:
            os.close(own)

    def read(self, name: str, *, limit: int) -> bytes:
        """Return the content of a plain file; NotOursError is also raised if it is larger than `limit` bytes."""
        with os.fdopen(self._opened(name, _READ), "rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise NotOursError(errno.EFBIG, f"it is larger than {limit:,} bytes", str(self.path / name))
        return content

    def size(self, name: str) -> int:
        """Return the size of a plain file in bytes."""
        status = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        _check(status, self.path / name, folder=False)
        return status.st_size

    def modified(self) -> float:
        """Return when an entry was last added or removed, in seconds since 1970."""
        return os.fstat(self._descriptor).st_mtime

    def create(self, name: str, content: bytes) -> None:
        """Write a new file; FileExistsError if the name is taken."""
        with self._created(name) as file:
            file.write(content)

    def replace(self, name: str, content: bytes) -> None:
        """Write a file atomically: a reader sees either the older file or the whole new one."""
        with self.replacing(name) as file:
            file.write(content)

    @contextmanager
    def replacing(self, name: str) -> Iterator[BinaryIO]:
        """Yield a file to write to, which atomically becomes the file `name` at the end of the block."""
        temporary = f".{name}.{secrets.token_hex(4)}"
        try:
            with self._created(temporary) as file:
                yield file
            self.move(temporary, self, name)
        except BaseException:
            with suppress(OSError):
                self.remove(temporary)
            raise

    def move(self, name: str, target: Folder, new_name: str) -> None:
        """Move an entry to `target` under a new name. A link is moved itself, not the file that it leads to."""
        os.rename(name, new_name, src_dir_fd=self._descriptor, dst_dir_fd=target._descriptor)

    def remove(self, name: str) -> None:
        """Remove a file, if it is still there."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._descriptor)

    def remove_tree(self, name: str, *, files: bool, depth: int = MAX_DEPTH) -> None:
        """Remove the folder `name` and the folders in it.

        A link is removed itself, never the file that it leads to. A folder at a greater depth than this project writes
        is kept.

        Args:
            name: the folder.
            files: remove the files too; otherwise only empty folders are removed.
            depth: how many levels of folders below `name` are removed.

        Raises:
            OSError: the folder is not empty in the end.
        """
        with self.at(name) as folder:
            for inner in folder.names():
                if folder.is_folder(inner):
                    if depth:
                        folder.remove_tree(inner, files=files, depth=depth - 1)
                elif files:
                    folder.remove(inner)
        os.rmdir(name, dir_fd=self._descriptor)

    def is_folder(self, name: str) -> bool:
        """Whether the entry is a folder, not a link to one."""
        status = _status(name, self._descriptor)
        return status is not None and stat.S_ISDIR(status.st_mode)

    def lock(self, name: str, *, wait_s: float) -> int | None:
        """Lock the file `name`, which is made if it is missing.

        Args:
            name: the lock file.
            wait_s: how long to wait for another holder, in seconds.

        Returns:
            The descriptor that holds the lock until it is closed or this process ends; None if another holder keeps it.
        """
        deadline = time.monotonic() + wait_s
        descriptor = self._opened(name, _LOCK)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return descriptor
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        os.close(descriptor)
                        return None
                    time.sleep(_LOCK_PAUSE_S)
        except OSError:
            os.close(descriptor)
            raise

    def _created(self, name: str) -> BinaryIO:
        return os.fdopen(os.open(name, _CREATE, FILE_MODE, dir_fd=self._descriptor), "wb")

    def _opened(self, name: str, flags: int) -> int:
        path = self.path / name
        try:
            descriptor = os.open(name, flags, FILE_MODE, dir_fd=self._descriptor)
        except OSError as error:
            _check_found(name, self._descriptor, path, folder=False)
            raise error
        try:
            _check(os.fstat(descriptor), path, folder=False)
        except NotOursError:
            os.close(descriptor)
            raise
        return descriptor


def _entered(name: str, parent: int | None, path: Path) -> int:
    try:
        return os.open(name, _ENTER, dir_fd=parent)
    except OSError as error:
        _check_found(name, parent, path, folder=True)
        if error.errno in (errno.ENOTDIR, errno.ELOOP):  # it was no folder then, and has been replaced since
            raise NotOursError(errno.EPERM, "it is no folder at times", str(path)) from error
        raise error


def _make(name: str, parent: int | None) -> None:
    with suppress(FileExistsError):
        os.mkdir(name, FOLDER_MODE, dir_fd=parent)


def _status(name: str, parent: int | None) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError:
        return None


def _same(one: os.stat_result, other: os.stat_result | None) -> bool:
    return other is not None and (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def _check_found(name: str, parent: int | None, path: Path, *, folder: bool) -> None:
    """Raise NotOursError if an entry that could not be opened is not ours."""
    status = _status(name, parent)
    if status is not None:
        _check(status, path, folder=folder)


def _check(status: os.stat_result, path: Path, *, folder: bool) -> None:
    kind, right = ("folder", stat.S_ISDIR) if folder else ("plain file", stat.S_ISREG)
    if stat.S_ISLNK(status.st_mode):
        wrong = "it is a link"
    elif not right(status.st_mode):
        wrong = f"it is no {kind}"
    elif status.st_uid != os.geteuid():
        wrong = "it belongs to another user"
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        wrong = "others can write it; `chmod -R go-w` on it, if what is in it is yours"
    elif not folder and status.st_nlink > 1:
        wrong = "it has another name (a hard link)"
    else:
        return
    raise NotOursError(errno.EPERM, wrong, str(path))
