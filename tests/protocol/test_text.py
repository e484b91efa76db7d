"""``protocol.text``: a peer's words, fit to be shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.text import cleaned


@given(st.text(st.characters(exclude_categories=())), st.integers(1, 40))
def test_what_is_cleaned_is_printable_utf_8_and_no_longer_than_allowed(text: str, most: int) -> None:
    shown = cleaned(text, most)
    assert shown.isprintable()
    assert len(shown) <= most
    assert shown.encode().decode() == shown
    assert cleaned(shown, most) == shown


@given(st.text(st.characters(categories=("L", "N", "P", "S")), max_size=20))
def test_what_can_be_printed_and_is_short_stays_as_it_is(text: str) -> None:
    assert cleaned(text, 20) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("a\r\nb", r"a\r\nb"),
        ("\u202egnp", r"\u202egnp"),
        ("\x9b31m", r"\x9b31m"),
        ("\ud800", r"\ud800"),
        ("é 表 🙂", "é 表 🙂"),
        ("x" * 21, "x" * 19 + "…"),
        ("\0" * 20, r"\x00\x00\x00\x00\x00"[:19] + "…"),
    ],
)
def test_what_would_move_a_terminal_is_escaped_and_the_end_of_what_is_too_long_left_out(text: str, shown: str) -> None:
    assert cleaned(text, 20) == shown
