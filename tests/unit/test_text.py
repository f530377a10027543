"""The sanitizer: whatever comes in, one harmless line comes out."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgcache.text import printable


@pytest.mark.row("R20")
@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain Ünïcode 漢字", "plain Ünïcode 漢字"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("a\rb\nc\td", "a\\x0db\\x0ac\\x09d"),
        ("\x9b2J", "\\x9b2J"),
        ("evil\u202egnp.exe", "evil\\u202egnp.exe"),
        ("zero\u200bwidth\u00adsoft", "zero\\u200bwidth\\xadsoft"),
        ("line\u2028sep", "line\\u2028sep"),
        ("\ud800", "\\ud800"),
        (b"\xff\xfe ok", "\\xff\\xfe ok"),
        ("tag\U000e0041", "tag\\U000e0041"),
    ],
)
def test_what_could_hurt_a_terminal_or_a_log_comes_out_escaped(
    raw: str | bytes, shown: str
) -> None:
    assert printable(raw) == shown


def test_piled_up_combining_marks_are_cut_off() -> None:
    assert printable("e" + "\u0301" * 50).count("\u0301") == 4


def test_long_strings_are_cut_and_say_so() -> None:
    assert printable("x" * 1000, 10) == "x" * 10 + "…"


@given(st.one_of(st.text(), st.binary()))
def test_nothing_unprintable_survives(raw: str | bytes) -> None:
    categories = {unicodedata.category(char) for char in printable(raw)}
    assert not categories & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
