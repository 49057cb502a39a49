"""Removes secrets from URIs and from text that quotes URIs. In doubt, too much is removed rather than too little."""

from __future__ import annotations

import re
from typing import Final

_WITHOUT_HOST: Final = ("sqlite", "file")
_SCHEME: Final = re.compile(r"[A-Za-z][\w+.-]*:")
_QUERY: Final = re.compile(r"[?#&;][\w.~-]+=")
_TAIL: Final = re.compile(r"[?#;]")
_LONGEST: Final = 2000
"""Characters of a text that are kept. The patterns take time that grows with the square of the text's length, and a
server may answer megabytes of slashes."""

_QUOTED_USER: Final = re.compile(r"(:/{1,2}|//).*@", re.DOTALL)
_QUOTED_PASSWORD: Final = re.compile(r"[^\s'\":]*:\S*@")
_ENCODED_USER: Final = re.compile(r"%3A%2F%2F.*%40", re.DOTALL | re.IGNORECASE)
_QUOTED_QUERY: Final = re.compile(r"(/[^\s?#]*)[?#](?:\S*=.*?(?= \(Caused by |$)|\S*)", re.DOTALL)


def redact(uri: str) -> str:
    """Return the URI without user, password, query and fragment, so that it may be stored and logged.

    A password may hold any character, so everything up to the last `@` is removed, even if it is a path. If the last
    `@` may belong to a query, the text on either side of it may be secret, and only the scheme is kept.
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
    """Return a place without a host, such as a path; a `user:password@` that was meant for a host is removed.

    A query is removed only from an address, because the name of a folder may hold any character.
    """
    user, _, host = place.rpartition("@")
    if ":" in (user.partition("//")[2] if place.startswith("/") else user):
        if _TAIL.search(user):
            return "..."
        place, address = host, True
    return _TAIL.split(place, maxsplit=1)[0] if address else place


def redact_text(text: str) -> str:
    """Return the text without users, passwords, queries and fragments of the URIs that it quotes.

    The end of a password cannot be recognised, so everything between the first `://` and the last `@` is removed. The
    end of a query with values cannot be recognised either, so the text after it is removed too, except for the cause
    that Python's HTTP client appends ("(Caused by ...").
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
