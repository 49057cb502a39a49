"""Checks of arguments. Each raises a ConfigError of one sentence: the name, the value and what is accepted."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

from mlflow_dynamics.errors import ConfigError, shown, unknown_choice


def require(holds: bool, name: str, value: object, words: str) -> None:
    """Raise ConfigError unless the condition `holds`; `words` say what the value must be."""
    if not holds:
        raise ConfigError(f"{name}={shown(value)} must be {words}.")


def check_whole(name: str, value: object, *, least: int = 1, what: str = "") -> None:
    """Require a whole number of at least `least`; `what` continues the message, such as " epochs"."""
    require(is_whole(value, least=least), name, value, f"a whole number of at least {least}{what}")


def check_flag(name: str, value: object) -> None:
    """Require True or False."""
    require(isinstance(value, bool), name, value, "True or False")


def check_choice(name: str, value: object, accepted: Sequence[str]) -> None:
    """Require one of the `accepted` names; the error suggests the nearest one."""
    if not isinstance(value, str) or value not in accepted:
        raise unknown_choice(name, value, accepted)


def check_instance(name: str, value: object, kind: type, words: str) -> None:
    """Require an object of the class `kind`; None is accepted too if `words` end in "or None"."""
    holds = isinstance(value, kind) or (value is None and words.endswith(" or None"))
    require(holds, name, value, words)


def check_patterns(name: str, value: object) -> None:
    """Require a tuple or list of glob patterns."""
    listed = isinstance(value, tuple | list) and all(isinstance(one, str) and one for one in value)
    example = f", such as ({value!r},)" if isinstance(value, str) and value else ""
    require(listed, name, value, f"a tuple of glob patterns{example}")


def is_whole(value: object, *, least: int) -> bool:
    """Whether `value` is a whole number of at least `least`. True and False are not numbers here."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least
