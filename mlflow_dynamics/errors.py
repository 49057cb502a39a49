"""The exceptions this package raises on purpose.

    DynamicsError
    ├── ConfigError (ValueError)     a parameter, path or argument is not usable: what was given, what is accepted
    ├── DataError (ValueError)       a data set, image file or stored record is damaged or of another kind
    ├── RecordingError               activations cannot be recorded from this model or loop
    ├── TrackingError                the tracking store refused, failed or does not hold what was asked for
    ├── DrawingError                 a page or picture could not be drawn
    └── MissingDependencyError (ImportError)   an optional package is absent: names the pip command

A measure that is undefined on valid input is no error: it is NaN with a reason (see `records.Measures`).
"""

from __future__ import annotations

import difflib
import reprlib
import sys
from collections.abc import Iterable
from typing import Final


class DynamicsError(Exception):
    """Base of every exception that mlflow_dynamics raises on purpose."""


class ConfigError(DynamicsError, ValueError):
    """A parameter or argument is not usable; the message names it, its value and what is accepted."""


class DataError(DynamicsError, ValueError):
    """A data set, an image file or a stored record is damaged or of another kind than expected."""


class RecordingError(DynamicsError):
    """Activations cannot be recorded from this model or training loop."""


class TrackingError(DynamicsError):
    """The tracking store failed, refused, or does not hold what was asked for."""


class DrawingError(DynamicsError):
    """A page or picture could not be drawn; the message says why."""


class MissingDependencyError(DynamicsError, ImportError):
    """An optional package is absent; the message names the pip command that installs it."""


_WHOLE: Final = reprlib.Repr()
_WHOLE.maxother = sys.maxsize


def shown(value: object) -> str:
    """Return a refused value as one line of at most 200 characters."""
    # The `repr` of a refused value may raise; reprlib then names the value's class.
    text = " ".join(_WHOLE.repr_instance(value, 0).split())
    return text if len(text) <= 200 else f"{text[:197]}..."


def unknown_choice(
    parameter: str, value: object, accepted: Iterable[str], *, unlisted: Iterable[str] = ()
) -> ConfigError:
    """Return the error for a value outside a set of names: the value, the accepted names, the nearest match.

    Args:
        parameter: the parameter's name.
        value: the refused value.
        accepted: the names that the message lists.
        unlisted: more accepted names, too many to list; the nearest match is sought among them as well.
    """
    names = list(accepted)
    message = f"{parameter}={shown(value)} is not known; accepted: {', '.join(names)}."
    nearest = difflib.get_close_matches(value, [*names, *unlisted], n=1) if isinstance(value, str) else ()
    if nearest:
        message += f" Did you mean {nearest[0]!r}?"
    return ConfigError(message)
