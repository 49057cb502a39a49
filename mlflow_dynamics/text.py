"""Makes text of others (names of layers, runs and data sets, answers of servers) safe to store and to show."""

from __future__ import annotations

import unicodedata
from typing import Final

SHOWN_LENGTH: Final = 200
"""The most characters of a name that are shown on a page, in a picture or in a log line."""

LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LOG_DATES: Final = "%Y/%m/%d %H:%M:%S"
"""Of log lines, as MLflow writes its own (mlflow.utils.logging_utils)."""

_UNSHOWN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories of characters without a visible shape. Control characters steer terminals. In the text of a
picture, they or U+FFFE crash the process that draws it. Format characters reverse the direction of writing. Surrogates
cannot be encoded as UTF-8. Private and unassigned characters look different everywhere."""


def encodable(text: str) -> str:
    r"""Return `text` in a form that every file and store accepts.

    Undecodable bytes and zero characters are written out, as `\udcff` and `\x00`. Nothing else is changed, because what
    is recorded under a name is looked for under that name.
    """
    return text.replace("\0", r"\x00").encode("utf-8", "backslashreplace").decode()


def printable(text: str, *, limit: int = SHOWN_LENGTH) -> str:
    r"""Return `text` on one line for people to read, cut to `limit` characters.

    Characters without a visible shape are written out, as `\x1b`.
    """
    shown = text[: limit + 1]
    if not shown.isprintable():
        shown = "".join(_written_out(one) for one in shown)
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def _written_out(one: str) -> str:
    return one.encode("unicode_escape").decode() if unicodedata.category(one) in _UNSHOWN else one
