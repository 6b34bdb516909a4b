"""Sampling settings as a person types them: the value, or what is wrong with the text."""

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_tf import generate
from gpt2_tf.cli.sampling_flags import SETTINGS, change_setting, escape, format_settings, unescape


def test_defaults_are_those_of_generate():
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
def test_unescape_inverts_escape(text):
    assert unescape(escape(text)) == text
    assert "\n" not in escape(text)


@pytest.mark.parametrize(("typed", "wrong"), [(r"a\d", r"\\d in a\\d"), ("a\\", r"\\ in a\\"), (r"\\\x", r"\\x in")])
def test_an_unknown_escape_is_refused(typed, wrong):
    with pytest.raises(ValueError, match=rf"unknown escape {wrong}.*; expected \\n, \\r, \\t, or \\\\ for a backslash"):
        unescape(typed)


def test_change_and_format():
    values = {name: setting.default for name, setting in SETTINGS.items()}
    for name, text, value in [("length", "7", 7), ("temperature", ".5", 0.5), ("stop", r"\nA B", ("\nA B",))]:
        change_setting(values, name, text)
        assert values[name] == value
    lines = format_settings(values).splitlines()
    assert [line.split()[0] for line in lines] == list(SETTINGS)
    shown = dict(line.split(maxsplit=1) for line in lines)
    assert (shown["temperature"], shown["stop"], shown["seed"]) == ("0.5", r"'\nA B'", "none")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("temprature", "1", "there is no setting 'temprature'; did you mean temperature"),
        ("length", "0", "length is '0', but must be a whole number of at least 1"),
        ("top_p", "nan", "top_p is 'nan', but must be a number above 0 and at most 1"),
        ("temperature", "inf", "temperature is 'inf', but must be a number"),
        ("seed", "1.5", "seed is '1.5', but must be a whole number from -2.63 to 2.63 - 1"),
        ("stop", r"\d", r"stop: unknown escape \\d in \\d; expected"),
    ],
)
def test_a_refused_value_changes_nothing(name, text, message):
    values = {name: setting.default for name, setting in SETTINGS.items()}
    before = dict(values)
    with pytest.raises(ValueError, match=message):
        change_setting(values, name, text)
    assert values == before


@pytest.mark.parametrize("stop", [(), ("a",), ("\n\n", "it's", " "), ("'",), ("\\n",)])
def test_formatted_stop_strings_can_be_set_again(stop):
    settings = {"stop": ("before",)}
    change_setting(settings, "stop", format_settings({"stop": stop}).removeprefix("stop").strip())
    assert settings == {"stop": stop}


def test_none_resets_length_and_seed():
    settings = {"length": 5, "seed": 3, "top_k": 2}
    change_setting(settings, "length", "none")
    change_setting(settings, "seed", "none")
    assert settings == {"length": None, "seed": None, "top_k": 2}
    with pytest.raises(ValueError, match="top_k is 'none', but must be a whole number"):
        change_setting(settings, "top_k", "none")
