"""What a person types for a setting: its value, or what is wrong with it."""

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_tf import generate
from gpt2_tf.cli.flags import SETTINGS, change, escape, show, unescape


def test_the_defaults_are_generates():
    parameters = inspect.signature(generate).parameters
    for name, setting in SETTINGS.items():
        assert setting.default == parameters[name].default, name


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("", ""),
        ("a b ", "a b "),
        (r"\n\n", "\n\n"),
        (r"\r\t", "\r\t"),
        (r"\\n", r"\n"),
        (r"\\\n", "\\\n"),
        ("色", "色"),
    ],
)
def test_escapes(typed, meant):
    assert unescape(typed) == meant
    assert escape(meant) == typed


@given(st.text())
def test_what_is_escaped_comes_back(text):
    assert unescape(escape(text)) == text
    assert "\n" not in escape(text)


@pytest.mark.parametrize(("typed", "wrong"), [(r"a\d", r"\\d in a\\d"), ("a\\", r"\\ in a\\"), (r"\\\x", r"\\x in")])
def test_a_backslash_before_anything_else_is_said(typed, wrong):
    with pytest.raises(ValueError, match=rf"{wrong}.*has no meaning; expected \\n, \\r, \\t, or \\\\ for a backslash"):
        unescape(typed)


def test_change_and_show():
    values = {name: setting.default for name, setting in SETTINGS.items()}
    for name, text, value in [("length", "7", 7), ("temperature", ".5", 0.5), ("stop", r"\nA B", ("\nA B",))]:
        change(values, name, text)
        assert values[name] == value
    lines = show(values).splitlines()
    assert [line.split()[0] for line in lines] == list(SETTINGS)
    shown = dict(line.split(maxsplit=1) for line in lines)
    assert (shown["temperature"], shown["stop"], shown["seed"]) == ("0.5", r"'\nA B'", "none")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("temprature", "1", "there is no setting 'temprature'; expected one of length, temperature, top_k"),
        ("length", "0", "length: '0' is given, but it must be a whole number at least 1"),
        ("top_p", "nan", "top_p: 'nan' is given, but it must be a number above 0 and at most 1"),
        ("temperature", "inf", "temperature: 'inf' is given"),
        ("seed", "1.5", "seed: '1.5' is given, but it must be a whole number"),
        ("stop", r"\d", r"stop: \\d in \\d has no meaning"),
    ],
)
def test_what_cannot_be_set_changes_nothing(name, text, message):
    values = {name: setting.default for name, setting in SETTINGS.items()}
    before = dict(values)
    with pytest.raises(ValueError, match=message):
        change(values, name, text)
    assert values == before


@pytest.mark.parametrize("stop", [(), ("a",), ("\n\n", "it's", " "), ("'",), ("\\n",)])
def test_stops_are_read_as_they_are_shown(stop):
    settings = {"stop": ("before",)}
    change(settings, "stop", show({"stop": stop}).removeprefix("stop").strip())
    assert settings == {"stop": stop}


def test_none_puts_back_what_has_no_value():
    settings = {"length": 5, "seed": 3, "top_k": 2}
    change(settings, "length", "none")
    change(settings, "seed", "none")
    assert settings == {"length": None, "seed": None, "top_k": 2}
    with pytest.raises(ValueError, match="top_k: 'none' is given"):
        change(settings, "top_k", "none")
