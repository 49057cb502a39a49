"""Offers a Python that has torch and MLflow imported already: processes that tests start are forked from a server.

A new process needs 6 s of a core to import torch and MLflow, and a hundred tests start processes. `offered` starts a
server that imports them once, and yields the path of a script `python`, which tests start as `sys.executable`. This
script passes its arguments, environment, folder, open files and signals on to the server. The server forks, and the
script ends as the fork ends. The fork runs its program as an interpreter runs its `__main__`, and ends as an
interpreter does. Modules that the server has not imported, such as this package, are imported by the fork itself. For
forks, the folders of `WARM_PYTHON_PATH` come before those of `PYTHONPATH`, so that a test can set `PYTHONPATH` freely.

A test about the start of an interpreter, about what is imported, about the exact text of tracebacks or about process
groups starts `COLD`, the interpreter itself. The script `python` also starts `COLD` if a fork would behave otherwise:
if it is given an option of the interpreter, or other values of variables that an interpreter reads at its start.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import io
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType
from typing import Any, Final

COLD: Final = sys.executable
"""The path of the interpreter itself."""

IMPORTED: Final = (
    *("torch", "torch._dynamo", "torch.utils.data", "torch.distributed.run", "multiprocessing.spawn"),
    *("numpy", "scipy.signal", "scipy.stats", "pandas", "pyarrow.parquet", "sklearn.datasets"),
    *("mlflow", "mlflow.cli", "mlflow.store.tracking.sqlalchemy_store"),
    *("mlflow.store.model_registry.sqlalchemy_store", "altair", "vl_convert", "uvicorn"),
)

FORWARDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

READ_AT_START: Final = ("PYTHON", "OMP_", "LD_")
"""The beginnings of the names of variables that an interpreter, or a library, reads only when it starts."""

LONGEST_START_S: Final = 60.0
"""The longest wait for the server. To import the packages here, beside the server that imports them, takes longer."""

LENGTH: Final = struct.Struct("!Q")


@contextlib.contextmanager
def offered() -> Iterator[str]:
    """Yield the path of a `python` whose processes are forks, or of the interpreter if the system cannot do this."""
    if not hasattr(os, "pidfd_open"):
        yield COLD
        return
    folder = Path(tempfile.mkdtemp(prefix="warm_python_"))
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec "{COLD}" -I -S "{__file__}" "$0" "$@"\n')
    python.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment.pop("PYTHONPATH", None)
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import warm_python\n"
        "with warm_python.program() as __program: exec(__program)"
    )
    server = subprocess.Popen(
        [COLD, "-c", program],
        env=environment,
        cwd=folder,
        stdin=subprocess.PIPE,  # the server sees the end of this pipe, however this process ends
        start_new_session=True,
    )
    try:
        yield str(python)
    finally:
        server.kill()
        server.communicate()
        shutil.rmtree(folder)


# These functions run in the script `python`.


def start(python: str, arguments: list[str]) -> None:
    """Have the server run a program in a fork, and end as the fork ends."""
    connection = _asked(python, arguments)
    if connection is None:
        os.execv(COLD, [COLD, *arguments])

    def forward(number: int, frame: object) -> None:
        with contextlib.suppress(OSError):  # the fork has ended
            connection.sendall(bytes([number]))

    for number in FORWARDED:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, forward)
    status = LENGTH.unpack(connection.recv(LENGTH.size, socket.MSG_WAITALL))[0]
    if os.WIFSIGNALED(status):
        _die_of(os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


def _die_of(number: int) -> None:
    with contextlib.suppress(OSError):  # SIGKILL and SIGSTOP have no handlers
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _asked(python: str, arguments: list[str]) -> socket.socket | None:
    """Return the connection to the server, which runs the program; None if an interpreter of its own must run it."""
    unbuffered = arguments[:1] == ["-u"]  # as torchrun starts its processes
    if unbuffered or (arguments[:1] == ["-B"] and os.environ.get("PYTHONDONTWRITEBYTECODE")):
        arguments = arguments[1:]
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-c", "-m")):
        return None
    listed = [*Path("/proc/self/fd").iterdir()]  # one of them is the descriptor of the listing itself
    descriptors = sorted(int(entry.name) for entry in listed if entry.is_symlink())
    umask = os.umask(0o077)
    os.umask(umask)
    asked = {
        "arguments": [python, *arguments],
        "environment": dict(os.environ),
        "folder": str(Path.cwd()),
        "descriptors": descriptors,
        "parent": os.getppid(),
        "unbuffered": unbuffered or bool(os.environ.get("PYTHONUNBUFFERED")),
        "leads": os.getpgrp() == os.getpid(),
        "umask": umask,
        "ignored": [number for number in FORWARDED if signal.getsignal(number) == signal.SIG_IGN],
        "blocked": list(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    }
    connection = socket.socket(socket.AF_UNIX)
    listens = Path(python).parent / "socket"
    deadline = time.monotonic() + LONGEST_START_S
    while not listens.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    try:
        connection.connect(str(listens))
        message = json.dumps(asked).encode()
        socket.send_fds(connection, [LENGTH.pack(len(message))], descriptors)
        connection.sendall(message)
        if connection.recv(1) == b"y":
            for number in descriptors:  # a stream ends when the fork closes it
                os.close(number)
            return connection
    except OSError:
        pass
    connection.close()
    return None


# These functions run in the server and in its forks.


@contextlib.contextmanager
def program() -> Iterator[CodeType]:
    """Serve requests. In a fork, yield the code that the fork runs in its own `__main__`."""
    ending = _Ending()
    atexit.register(ending)  # the first to be registered is the last to be called
    code = _asked_for()
    try:
        yield code
    except BaseException as error:
        ending.error = error
        raise


class _Ending:
    """Ends the fork when Python has ended all but its modules, whose removal would take half a second."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __call__(self) -> None:
        sys.modules["__main__"].__dict__.clear()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        if isinstance(self.error, KeyboardInterrupt):
            _die_of(signal.SIGINT)
        status = self.error.code if isinstance(self.error, SystemExit) else self.error and 1
        os._exit(status & 0xFF if isinstance(status, int) else int(status is not None))


def _asked_for() -> CodeType:
    began = _read_at_start(os.environ)
    paths = sys.path[2:]  # without the folder of this file and the entry of `-c`
    _import()
    signal.signal(signal.SIGCHLD, _reap)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        listener.listen(128)
        while True:
            if sys.stdin in select.select([listener, sys.stdin], [], [])[0]:
                os._exit(0)
            connection, _ = listener.accept()
            if not os.fork():
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, received, *_ = socket.recv_fds(connection, LENGTH.size, 64)
    asked = json.loads(connection.recv(LENGTH.unpack(length)[0], socket.MSG_WAITALL))
    code = None if _read_at_start(asked["environment"]) != began else _code(asked)
    if code is None:
        os._exit(0)
    connection.sendall(b"y")
    child = os.fork()
    if child:
        for descriptor in received:
            os.close(descriptor)
        _accompany(child, connection, group=asked["leads"])
    connection.close()
    _become(asked, received, paths)
    return code


def _reap(*_: object) -> None:
    """Reap the processes that have accompanied a fork. Their processor time then counts as the server's."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _import() -> None:
    import gc
    import importlib

    for name in IMPORTED:
        with contextlib.suppress(ImportError):  # a test that needs a missing module says so
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


def _read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(READ_AT_START) and name != "PYTHONPATH"
    }


def _code(asked: dict[str, Any]) -> CodeType | None:
    """Return the code that the fork's `__main__` runs; None if there is none, so that an interpreter says so."""
    _, kind, *rest = asked["arguments"]
    if kind == "-c":
        with contextlib.suppress(SyntaxError, ValueError):
            return compile(rest[0], "<string>", "exec")
        return None
    if kind == "-m":
        return compile(f"import runpy; runpy._run_module_as_main({rest[0]!r})", "<frozen runpy>", "exec")
    with contextlib.suppress(OSError, SyntaxError, ValueError):
        return compile(Path(asked["folder"], kind).read_bytes(), kind, "exec")
    return None


def _accompany(child: int, connection: socket.socket, *, group: bool) -> None:
    """Pass signals on until the fork ends, and send its status. If `python` was killed, kill the fork or its group."""
    ended = os.pidfd_open(child)
    while ended not in select.select([ended, connection], [], [])[0]:
        number = b""
        with contextlib.suppress(ConnectionError):
            number = connection.recv(1)
        if number:
            os.kill(child, number[0])
        else:
            (os.killpg if group else os.kill)(child, signal.SIGKILL)
            break
    with contextlib.suppress(OSError):
        connection.sendall(LENGTH.pack(os.waitpid(child, 0)[1]))
    os._exit(0)


def _become(asked: dict[str, Any], received: list[int], paths: list[str]) -> None:
    """Give this process the state that an interpreter with these arguments has when its program begins."""
    import importlib
    import random
    from importlib.machinery import SourceFileLoader

    os.setsid()
    own, parent_of_fork = os.getpid(), os.getppid
    os.getppid = lambda: asked["parent"] if os.getpid() == own else parent_of_fork()
    os.chdir(asked["folder"])
    os.umask(asked["umask"])
    for number in FORWARDED:
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in asked["ignored"] else default)
    signal.pthread_sigmask(signal.SIG_SETMASK, asked["blocked"])
    above = [fcntl.fcntl(number, fcntl.F_DUPFD, max(asked["descriptors"]) + 1) for number in received]
    for number in received:
        os.close(number)
    for number, given in zip(above, asked["descriptors"], strict=True):
        os.dup2(number, given)
        os.close(number)
    sys.stdin = sys.__stdin__ = open(0, encoding=sys.stdout.encoding, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = _written(1, asked, line_buffering=os.isatty(1))
    sys.stderr = sys.__stderr__ = _written(2, asked, line_buffering=True, errors="backslashreplace")
    os.environ.clear()
    os.environ.update(asked["environment"])
    time.tzset()
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()

    python, kind, *rest = asked["arguments"]
    main = sys.modules["__main__"].__dict__
    for name in [name for name in main if not name.startswith("__")]:
        del main[name]
    sys.modules.pop("warm_python", None)
    sys.executable = python
    sys.modules["multiprocessing"].set_executable(python)
    sys.orig_argv = [python, kind, *rest]
    if kind in ("-c", "-m"):
        sys.argv = [kind, *rest[1:]]
        first = "" if kind == "-c" else str(Path.cwd())
    else:
        sys.argv = [kind, *rest]
        first = str(Path(kind).resolve().parent)
        main |= {"__file__": kind, "__loader__": SourceFileLoader("__main__", kind)}
    given = [
        entry
        for name in ("WARM_PYTHON_PATH", "PYTHONPATH")
        for entry in asked["environment"].get(name, "").split(os.pathsep)
        if entry
    ]
    sys.path[:] = [first, *given, *paths]
    importlib.invalidate_caches()


def _written(descriptor: int, asked: dict[str, Any], **how: Any) -> io.TextIOWrapper:
    buffering = 0 if asked["unbuffered"] else -1
    binary = open(descriptor, "wb", buffering=buffering, closefd=False)  # noqa: SIM115
    return io.TextIOWrapper(binary, sys.stdin.encoding, write_through=asked["unbuffered"], **how)


if __name__ == "__main__":
    start(sys.argv[1], sys.argv[2:])
