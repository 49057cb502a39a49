"""A folder whose content is not trusted: nothing is followed through a link, nothing is read that is not ours.

Every name is looked up in a directory that is already open, so that nobody who swaps a folder for a link between two
calls leads one of them elsewhere. Ours is what belongs to this user, what nobody else can write, and (of files) what
has no second name: a hard link to a private key is none of our records.
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
"""Folders within each other that are looked into: each holds a file open meanwhile."""

_ENTER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
# Opening a fifo without O_NONBLOCK would wait for whoever writes into it.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_LOCK: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK

_LOCK_PAUSE_S: Final = 0.05


class NotOursError(OSError):
    """What lies there is a link, no plain file or folder, another user's, or writable by others."""


class Folder:
    """An open directory of ours. Names are single parts of a path; made folders are 0700 and files 0600.

    Raises:
        NotOursError: from any method, what it is asked for is not ours; it has not been changed.
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        self.path = path
        self._descriptor = descriptor
        # Whoever still holds the folder, in any thread, holds it open: a number that is closed is soon another file's.
        self._close = weakref.finalize(self, os.close, descriptor)
        self._close.atexit = False
        try:
            _check(os.fstat(descriptor), path, folder=True)
        except NotOursError:
            self._close()
            raise

    @classmethod
    def open(cls, path: Path, *, create: bool = False) -> Folder:
        """A folder by its path, of which the last part must be no link: those before it are the user's own."""
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
            _make(str(path), None)
        return cls(_entered(str(path), None, path), path)

    @contextmanager
    def at(self, *parts: str, create: bool = False) -> Iterator[Folder]:
        """A folder below this one, made where it is absent and `create` asks for it."""
        with ExitStack() as stack:
            folder = self
            for part in parts:
                folder = folder.child(part, create=create)
                stack.callback(folder._close)  # noqa: SLF001 - of this class
            yield folder

    def child(self, name: str, *, create: bool = False) -> Folder:
        """The folder `name` in this one."""
        path = self.path / name
        if create:
            _make(name, self._descriptor)
        return Folder(_entered(name, self._descriptor, path), path)

    def is_at(self, path: Path) -> bool:
        """Whether the folder still has this path."""
        return _same(os.fstat(self._descriptor), _status(str(path), None))

    def holds(self, name: str, descriptor: int | None = None) -> bool:
        """Whether there is anything of this name (or relative path), or whether that is the file `descriptor`."""
        status = _status(name, self._descriptor)
        return status is not None and (descriptor is None or _same(os.fstat(descriptor), status))

    def names(self) -> list[str]:
        """What is in it, of whatever kind."""
        # A descriptor of its own: the position in the listing belongs to the descriptor, and threads share that.
        own = os.open(".", _ENTER, dir_fd=self._descriptor)
        try:
            return sorted(os.listdir(own))  # noqa: PTH208 - of an open directory
        finally:
            os.close(own)

    def read(self, name: str, *, limit: int) -> bytes:
        """The content of a plain file; NotOursError also where it is larger than `limit`."""
        with os.fdopen(self._opened(name, _READ), "rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise NotOursError(errno.EFBIG, f"it is larger than {limit:,} bytes", str(self.path / name))
        return content

    def size(self, name: str) -> int:
        """The size of a plain file."""
        status = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        _check(status, self.path / name, folder=False)
        return status.st_size

    def modified(self) -> float:
        """When something was last added to it or taken from it, in seconds since 1970."""
        return os.fstat(self._descriptor).st_mtime

    def create(self, name: str, content: bytes) -> None:
        """Write a file that is not there yet."""
        with self._created(name) as file:
            file.write(content)

    def replace(self, name: str, content: bytes) -> None:
        """Write a file at once: whoever looks sees the older one or the whole of the new one."""
        with self.replacing(name) as file:
            file.write(content)

    @contextmanager
    def replacing(self, name: str) -> Iterator[BinaryIO]:
        """Likewise piece by piece: what is written inside becomes the file when it is whole."""
        aside = f".{name}.{secrets.token_hex(4)}"
        try:
            with self._created(aside) as file:
                yield file
            self.move(aside, self, name)
        except BaseException:
            with suppress(OSError):
                self.remove(aside)
            raise

    def move(self, name: str, target: Folder, new_name: str) -> None:
        """Rename; of a link the link itself is moved."""
        os.rename(name, new_name, src_dir_fd=self._descriptor, dst_dir_fd=target._descriptor)

    def remove(self, name: str) -> None:
        """Remove a file; nothing where it is gone already."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._descriptor)

    def remove_tree(self, name: str, *, files: bool, depth: int = MAX_DEPTH) -> None:
        """Remove the folder `name` and those in it, with their `files` or as far as there are none.

        Of a link the link is removed, never what it leads to. What lies deeper than this project writes stays.
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
        """Whether it is a folder, and no link to one."""
        status = _status(name, self._descriptor)
        return status is not None and stat.S_ISDIR(status.st_mode)

    def lock(self, name: str, *, wait_s: float) -> int | None:
        """Hold a lock file, until the descriptor is closed or this process ends; None where another holds it."""
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
        if error.errno in (errno.ENOTDIR, errno.ELOOP):  # what it was then, somebody has changed it since
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
    """Say what is wrong with what could not be opened, where that is its kind."""
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
