"""Runs a script in this process as Python's command line would; the script's tracebacks show none of our frames."""

from __future__ import annotations

import builtins
import os
import pkgutil
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader, SourcelessFileLoader
from itertools import pairwise
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Final

from mlflow_dynamics.recording.patching import PASSED_OVER

_PACKAGE: Final = __name__.partition(".")[0]

_SAFE_PATH: Final = getattr(sys.flags, "safe_path", False)
"""Whether Python was told, as it can be from 3.11 on, to search no folder of the script."""

_GROUP: Final = getattr(builtins, "BaseExceptionGroup", ())
"""From Python 3.11 on there are exceptions that hold others."""

_CALL_WITHOUT_CALLER: Final = compile("exec(code, script)", "sys", "exec")
"""Stands for the missing caller of a script: a warning with a stacklevel one too high is reported at "sys:1"."""


def run_as_main(script: str, arguments: list[str], *, module: bool) -> None:
    """Run a script (a file, or a folder or archive with a `__main__.py`) as `python` does, or a module as `python -m`.

    Nothing is put back afterwards: what the script calls at exit must find everything as the script left it.
    """
    main = ModuleType("__main__")
    vars(main).update(__builtins__=builtins, __annotations__={})
    # `__mp_main__` is the script's name in the children of `multiprocessing`: classes pickled there refer to it.
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main
    with _own_traceback(vars(main)):
        # Python itself calls this function for modules, folders and archives. It uses the `__main__` made above. Its
        # name is the same in Python 3.11 to 3.14.
        run_module: Any = vars(runpy)["_run_module_as_main"]
        if module:
            sys.argv = ["-m", *arguments]  # runpy replaces "-m" by the module's file
            _search_first(str(Path.cwd()))
            run_module(script)
            return
        sys.argv = [script, *arguments]
        # Python makes the path absolute but follows no link: scripts read files that lie beside the link.
        file = os.path.join(os.getcwd(), script)  # noqa: PTH109, PTH118 - pathlib would drop the "./" that Python keeps
        if pkgutil.get_importer(file) is not None:
            sys.path[0 : 0 if _SAFE_PATH else 1] = [file]
            run_module("__main__", alter_argv=False)
            return
        _search_first(str(Path(file).resolve().parent))
        code, loader = _code_of(file)
        vars(main).update(__file__=file, __cached__=None, __loader__=loader)
        exec(_CALL_WITHOUT_CALLER, {"__name__": "sys", "code": code, "script": vars(main)})


def _search_first(folder: str) -> None:
    """Put a folder first on the module search path, where Python has put the folder of our own command."""
    if not _SAFE_PATH:
        sys.path[0] = folder


def _code_of(file: str) -> tuple[Any, object]:
    if file.endswith(".pyc"):
        compiled = SourcelessFileLoader("__main__", file)
        return compiled.get_code("__main__"), compiled
    source = SourceFileLoader("__main__", file)
    return source.source_to_code(source.get_data(file), file), source


@contextmanager
def _own_traceback(script: dict[str, Any]) -> Iterator[None]:
    """If an exception ends the script (these are its globals), make the traceback begin in the script."""
    try:
        yield
    except BaseException as error:
        ended, shown, hook = error, _script_traceback(error, script), sys.excepthook

        def show(kind: type[BaseException], value: BaseException, traceback: TracebackType | None) -> None:
            if value is ended:  # `shown` lacks our frames, from this one outwards
                traceback = value.__traceback__ = shown
            hook(kind, value, traceback)

        sys.excepthook = show
        raise


def _script_traceback(error: BaseException, script: dict[str, Any]) -> TracebackType | None:
    """The traceback without the frames that lead to the script, and without frames of ours that only pass on a call."""
    for part in _with_causes_and_members(error):
        part.__traceback__ = _without_ours(
            part.__traceback__, interrupted=isinstance(part, KeyboardInterrupt)
        )
    traceback = error.__traceback__
    while traceback is not None and not _enters_script(traceback, script):
        traceback = traceback.tb_next
    return traceback


def _enters_script(traceback: TracebackType, script: dict[str, Any]) -> bool:
    return traceback.tb_frame.f_globals is script or traceback.tb_frame.f_globals.get("__name__") == "runpy"


def _with_causes_and_members(error: BaseException) -> list[BaseException]:
    """The exception, its causes and contexts, and the members of exception groups."""
    found: list[BaseException] = []
    ahead: list[BaseException | None] = [error]
    while ahead:
        part = ahead.pop()
        if part is None or any(part is known for known in found):
            continue
        found.append(part)
        ahead += [part.__cause__, part.__context__]
        if isinstance(part, _GROUP):
            ahead += part.exceptions
    return found


def _without_ours(traceback: TracebackType | None, *, interrupted: bool) -> TracebackType | None:
    """The traceback without frames that only pass on a call; an interrupt's ends where the script called our code."""
    kept: list[TracebackType] = []
    entered = False
    while traceback is not None:
        ours = _is_ours(traceback)
        entered = entered or not ours
        if ours and entered and interrupted:
            break
        if traceback.tb_frame.f_code.co_filename != PASSED_OVER:
            kept.append(traceback)
        traceback = traceback.tb_next
    for entry, following in pairwise([*kept, None]):
        if entry is not None:
            entry.tb_next = following
    return kept[0] if kept else None


def _is_ours(traceback: TracebackType) -> bool:
    name = str(traceback.tb_frame.f_globals.get("__name__"))
    return name.partition(".")[0] == _PACKAGE and traceback.tb_frame.f_code.co_filename != PASSED_OVER
