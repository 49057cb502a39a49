"""Writes and reads logs as JSON lines: a file with what `autolog` heard of a user's training, without data."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from mlflow_dynamics.errors import ConfigError
from mlflow_dynamics.loop.epochs import EpochFinder
from mlflow_dynamics.loop.events import Backward, BatchDrawn, Event, LoaderGone, Mode, PassEnded, Stepped

EVENTS: Final[dict[str, type[Any]]] = {
    kind.__name__: kind for kind in (Mode, BatchDrawn, PassEnded, LoaderGone, Backward, Stepped)
}


def write_log(log: Iterable[Event], training: int = 0) -> str:
    """The events of a training as text, one line for each."""
    return "".join(
        json.dumps({"log": training, "event": type(event).__name__, **dataclasses.asdict(event)}) + "\n"
        for event in log
    )


def read_logs(path: Path) -> list[list[Event]]:
    """The logs in a file, one for each training.

    Raises:
        ConfigError: the file cannot be read, or a line is not one that `write_log` writes.
    """
    logs: dict[int, list[Event]] = {}
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a log of the loop: {error}.") from error
    for number, line in enumerate(lines, 1):
        try:
            fields = json.loads(line)
            training, kind = fields.pop("log"), EVENTS[fields.pop("event")]
            logs.setdefault(training, []).append(kind(**fields))
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}, line {number}, is no event of the loop; one is written by autolog(loop_log=FILE) or "
                "mlflow-dynamics run --record-loop FILE."
            ) from error
    return list(logs.values())


class LoopLog:
    """Writes what each training hears to a file, until `close`.

    Args:
        path: the file, which is overwritten.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._numbers = itertools.count()
        try:
            self._file = path.open("w")
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}.") from error

    def finder(self) -> EpochFinder:
        """A finder for one more training, whose log is written to the file."""
        return _WrittenFinder(self, next(self._numbers))

    def write(self, log: Iterable[Event], training: int) -> None:
        """Write events of a training."""
        if not self._file.closed:
            self._file.write(write_log(log, training))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _WrittenFinder(EpochFinder):
    """Finds epochs, and writes the events that it hears."""

    def __init__(self, log: LoopLog, training: int) -> None:
        super().__init__()
        self._log = log
        self._training = training
        self._training_mode: bool | None = None
        self._heard: deque[Event] = deque()

    def batch(self, drawn: BatchDrawn, *, training: bool) -> None:
        if training is not self._training_mode:
            self._training_mode = training
            self._heard.append(Mode(training))
        self._heard.append(drawn)
        self._write()
        super().batch(drawn, training=training)

    def backward(self) -> None:
        self._heard.append(Backward())
        super().backward()

    def end(self, event: PassEnded | LoaderGone) -> None:
        self._heard.append(event)
        super().end(event)

    def step(self) -> tuple[int, ...]:
        self._heard.append(Stepped())
        self._write()
        return super().step()

    def finish(self, *, whole: bool = True) -> tuple[int, ...]:
        self._write()
        return super().finish(whole=whole)

    def _write(self) -> None:
        """Write the events heard. Python may free an iterator while they are written, which adds an event."""
        self._log.write([self._heard.popleft() for _ in range(len(self._heard))], self._training)
