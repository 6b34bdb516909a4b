"""Text for a terminal: what could steer the terminal is escaped, and everything else stays."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_tf.files.terminal import escape_control_characters, escape_generated_text


@given(st.text())
def test_no_character_that_steers_a_terminal_is_left(text):
    escaped = escape_control_characters(text)
    assert not {unicodedata.category(character) for character in escaped} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@given(st.text(st.characters(categories=["L", "N", "P", "S", "M"])))
def test_visible_text_is_unchanged(text):
    assert escape_control_characters(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),  # the one-byte form of ESC [
        ("a\r\nb\tc", r"a\r\nb\tc"),
        ("\u202egnp.exe", r"\u202egnp.exe"),  # reverses the text after it
        ("\udcff", r"\udcff"),  # a byte of a file name that is not UTF-8
    ],
)
def test_known_sequences(text, expected):
    assert escape_control_characters(text) == expected


@given(st.text())
def test_generated_text_keeps_its_lines_and_loses_its_control_characters(text):
    shown = escape_generated_text(text)
    left = {character for character in shown if unicodedata.category(character) == "Cc"}
    assert left <= {"\n", "\t", "\r"} and (shown.count("\n"), shown.count("\t")) == (text.count("\n"), text.count("\t"))
    assert shown.count("\r") == text.count("\r\n")
