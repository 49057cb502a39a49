"""What may be written down of a URI and of text that quotes URIs: never a secret, rather too little than too much."""

from __future__ import annotations

import re
from typing import Final

_WITHOUT_HOST: Final = ("sqlite", "file")
_SCHEME: Final = re.compile(r"[A-Za-z][\w+.-]*:")
_QUERY: Final = re.compile(r"[?#&;][\w.~-]+=")
_TAIL: Final = re.compile(r"[?#;]")
_LONGEST: Final = 2000
"""Of a text; the patterns take time with its square, and a server may answer megabytes of slashes."""

_QUOTED_USER: Final = re.compile(r"(:/{1,2}|//).*@", re.DOTALL)
_QUOTED_PASSWORD: Final = re.compile(r"[^\s'\":]*:\S*@")
_ENCODED_USER: Final = re.compile(r"%3A%2F%2F.*%40", re.DOTALL | re.IGNORECASE)
_QUOTED_QUERY: Final = re.compile(r"(/[^\s?#]*)[?#](?:\S*=.*?(?= \(Caused by |$)|\S*)", re.DOTALL)


def redact(uri: str) -> str:
    """The URI without user, password, query and fragment: what may be written down and logged.

    A password may hold any character, so what ends at the last `@` goes, though it be a path. Where that `@` may as
    well be of a query, neither the text before it nor that behind it is known to be no secret, and only the scheme is
    left.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or _SCHEME.fullmatch(f"{scheme}:") is None:
        return _without_password(uri, address=_SCHEME.match(uri) is not None)
    if scheme.startswith(_WITHOUT_HOST) and rest.startswith("/"):
        return f"{scheme}://{_without_password(rest, address=True)}"
    user, _, rest = rest.rpartition("@")
    if _QUERY.search(user):
        return f"{scheme}://..."
    return f"{scheme}://{_TAIL.split(rest, maxsplit=1)[0]}"


def _without_password(place: str, *, address: bool) -> str:
    """What has no host by its form: a path as it is, and no `user:password@` that was meant for a host.

    Only an address has a query: a folder may have any name.
    """
    user, _, host = place.rpartition("@")
    if ":" in (user.partition("//")[2] if place.startswith("/") else user):
        if _TAIL.search(user):
            return "..."
        place, address = host, True
    return _TAIL.split(place, maxsplit=1)[0] if address else place


def redact_text(text: str) -> str:
    """The text without users, passwords, queries and fragments of the URIs that it quotes.

    Where a password ends cannot be told: what lies between the first `://` and the last `@` goes. Nor can the end of
    a query that names values: what follows it goes, but for the cause that Python's HTTP client gives.
    """
    text = text[:_LONGEST]
    for pattern, kept in (
        (_QUOTED_USER, r"\1"),
        (_QUOTED_PASSWORD, ""),
        (_ENCODED_USER, "%3A%2F%2F"),
        (_QUOTED_QUERY, r"\1"),
    ):
        text = pattern.sub(kept, text)
    return text
