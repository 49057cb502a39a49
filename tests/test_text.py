"""Names that are not ours: whatever is in them, each reader gets what it can take."""

from __future__ import annotations

import sys
import unicodedata
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_dynamics.text import SHOWN_LENGTH, encodable, printable

EVERY_CHARACTER = [chr(point) for point in range(sys.maxunicode + 1)]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("a\x1b[2J", r"a\x1b[2J"),
        ("a\nb\tc\0", r"a\nb\tc\x00"),
        ("b\ufffe", r"b\ufffe"),
        ("txt.\u202eexe", r"txt.\u202eexe"),
        ("\udcff", r"\udcff"),
        ("\u2028", r"\u2028"),
        ("näme 漢字\u3000🙂", "näme 漢字\u3000🙂"),
        ("x" * 300, "x" * 199 + "…"),
    ],
)
def test_what_has_no_shape_is_written_out(given: str, shown: str) -> None:
    assert printable(given) == shown


def test_no_character_of_unicode_is_left_that_drives_a_terminal_or_ends_a_picture() -> None:
    for one in EVERY_CHARACTER:
        shown = printable(one)
        assert shown == one or shown.isascii()
        assert unicodedata.category(shown[0]) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@given(st.text(st.characters(codec=None), max_size=400), st.integers(1, 300))
def test_it_stays_as_it_is_when_asked_again_and_within_its_limit(text: str, limit: int) -> None:
    shown = printable(text, limit=limit)
    assert len(shown) <= limit
    assert printable(shown, limit=limit) == shown
    assert len(printable(text)) <= SHOWN_LENGTH


@given(st.text(st.characters(codec=None)))
def test_what_is_recorded_is_utf_8_and_otherwise_the_true_name(text: str) -> None:
    recorded = encodable(text)
    recorded.encode()
    assert "\0" not in recorded
    plain = "\0" not in text and not any(unicodedata.category(one) == "Cs" for one in text)
    assert (recorded == text) == plain


def test_every_character_that_is_shown_may_stand_in_xml() -> None:
    # A picture is drawn from an SVG file, and the renderer ends its process where that is no XML.
    shown = "".join(map(printable, EVERY_CHARACTER))
    assert ElementTree.fromstring(f"<svg>{escape(shown)}</svg>").text == shown
    with pytest.raises(ElementTree.ParseError):
        ElementTree.fromstring("<svg>\ufffe</svg>")
