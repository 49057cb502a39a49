"""Names that are not ours (of layers, runs, data sets, in a server's answer), as text that its reader can take."""

from __future__ import annotations

import unicodedata
from typing import Final

SHOWN_LENGTH: Final = 200
"""Characters of a name on a page, in a picture, in a log line."""

_UNSHOWN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories without a shape of their own: controls drive terminals, and one in a picture's text ends the
process that draws it, as U+FFFE does; formats turn the direction of writing around; halves of characters are no UTF-8;
private and unassigned ones look different everywhere."""


def encodable(text: str) -> str:
    r"""`text` as every file and store takes it: undecodable bytes and zero characters written out, `\udcff`, `\x00`.

    All else stays as it is: what is recorded under a name is looked for under that name.
    """
    return text.replace("\0", r"\x00").encode("utf-8", "backslashreplace").decode()


def printable(text: str, *, limit: int = SHOWN_LENGTH) -> str:
    r"""`text` for people, on one line: what has no shape is written out, as `\x1b`, and what is long is cut."""
    shown = text[: limit + 1]
    if not shown.isprintable():
        shown = "".join(_written_out(one) for one in shown)
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def _written_out(one: str) -> str:
    return one.encode("unicode_escape").decode() if unicodedata.category(one) in _UNSHOWN else one
