"""The fields of `SamplingParams` as a person types them: as flags, and as `/set` of an interactive session.

Names, types, ranges, defaults and help texts come from `SamplingParams`, so a field added there is a flag here.
"""

import argparse
import dataclasses
import re
import shlex
from collections.abc import Collection, Mapping
from typing import Any

from gpt2_tf.cli.flags import argument_type
from gpt2_tf.cli.parser import list_words, suggestion
from gpt2_tf.generation.params import Setting, sampling_settings

ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}
METAVARS = {int: "N", float: "X", str: "TEXT"}
STOP_HELP = (
    r"repeat the flag for several, '' is for none; \n, \r, \t and \\ are a newline, a return, a tab and a backslash"
)
# A field that only Python can set has no kind.
SETTINGS: dict[str, Setting] = {name: setting for name, setting in sampling_settings().items() if setting.kind}


def add_sampling_flags(
    parser: argparse.ArgumentParser,
    names: Collection[str] = tuple(SETTINGS),
    *,
    title: str = "sampling",
    defaults: Mapping[str, str] | None = None,
) -> None:
    """Add a flag for each of these fields of `SamplingParams`. A flag that is not given is None.

    Args:
        names: fields, in the order of the help. Default: all that can be typed.
        title: the heading of the flags in the help.
        defaults: name -> the default as the help shows it, where it is not the field's.
    """
    group = parser.add_argument_group(title)
    for name in names:
        setting = SETTINGS[name]
        if defaults and name in defaults:
            setting = dataclasses.replace(setting, default_text=defaults[name])
        if setting.kind is str:
            setting = dataclasses.replace(setting, special=STOP_HELP)
        help = (setting.help_text[0].lower() + setting.help_text[1:]).replace("%", "%%")
        if setting.kind is bool:
            options = {"action": "store_true"}
        else:
            options = {"type": argument_type(lambda text, name=name: parse_setting(name, text))}
            options["metavar"] = METAVARS[setting.kind]
        if setting.kind is str:
            options["action"] = "append"
        group.add_argument(f"--{name.replace('_', '-')}", default=None, help=help, **options)


def settings_from_flags(args: argparse.Namespace, names: Collection[str] = tuple(SETTINGS)) -> dict[str, Any]:
    """The value of each of these fields: the flag's, or the field's default."""
    settings = {}
    for name in names:
        value = getattr(args, name)
        if value is None:
            value = SETTINGS[name].default
        elif name == "stop":
            value = tuple(string for string in value if string)  # '' alone asks for no stop string
        settings[name] = value
    return settings


def parse_setting(name: str, text: str) -> Any:
    r"""The value that a typed text stands for.

    Raises:
        ValueError: a text of another kind, or a number outside the field's range.

    Example:
        >>> parse_setting("top_k", "40"), parse_setting("stop", r"\n")
        (40, '\n')
        >>> parse_setting("top_k", "many")
        Traceback (most recent call last):
        ValueError: is 'many', but must be a whole number of at least 0 (0 keeps all)
    """
    setting = SETTINGS[name]
    if setting.kind is str:
        return unescape(text)
    try:
        return setting.checked(name, setting.kind(text))
    except ValueError:
        raise ValueError(f"is {text[:40]!r}, but must be {setting.expected}") from None


def change_setting(settings: dict[str, Any], name: str, text: str) -> None:
    """Set one setting to a typed value, or to what `format_settings` shows of it.

    Args:
        settings: name -> value; changed in place.
        name: the setting's name.
        text: the value. "none" stands for a length or seed that is not given. Quotes allow several stop strings.

    Raises:
        ValueError: there is no such setting, or the text does not fit it; nothing is changed.

    Example:
        >>> settings = {"top_k": 0, "stop": ("<|endoftext|>",)}
        >>> change_setting(settings, "top_k", "40")
        >>> change_setting(settings, "stop", "'.' '!'")
        >>> settings
        {'top_k': 40, 'stop': ('.', '!')}
    """
    check_name(settings, name)
    try:
        if name == "stop":
            strings = shlex.split(text) if text.startswith(("'", '"')) else [text]
            settings[name] = tuple(parse_setting(name, string) for string in strings if string)
        else:
            none = text == "none" and SETTINGS[name].default is None
            settings[name] = None if none else parse_setting(name, text)
    except ValueError as error:
        # shlex has a text of its own for a quote without an end.
        raise ValueError(f"{name} {error}" if str(error).startswith("is ") else f"{name}: {error}") from None


def check_name(settings: Mapping[str, Any], name: str) -> None:
    """Raise ValueError, with a suggestion, where no setting has this name.

    Example:
        >>> check_name({"top_k": 0, "top_p": 1.0}, "topk")
        Traceback (most recent call last):
        ValueError: there is no setting 'topk'; did you mean top_k?
    """
    if name not in settings:
        names = list(settings)
        expected = suggestion(name, names) or f"; expected {list_words(names)}"
        raise ValueError(f"there is no setting {name!r}{expected}")


def format_settings(settings: Mapping[str, Any]) -> str:
    """The settings, one per line.

    Example:
        >>> print(format_settings({"top_k": 40, "seed": None, "stop": (".",)}))
        top_k              40
        seed               none
        stop               '.'
    """
    return "\n".join(f"{name:<18} {_format_value(value)}" for name, value in settings.items())


def _format_value(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join("'" + escape(string).replace("'", "'\"'\"'") + "'" for string in value) or "''"
    return "none" if value is None else str(value)


def unescape(text: str) -> str:
    r"""The text with its escapes replaced: \n, \r, \t and \\ are a newline, a return, a tab and a backslash.

    Raises:
        ValueError: another character after a backslash, or bytes that are not UTF-8.

    Example:
        >>> unescape(r"one\ntwo")
        'one\ntwo'
    """

    def replace(match: re.Match) -> str:
        if match[1] not in ESCAPES:
            raise ValueError(rf"unknown escape {match[0]} in {text}; expected \n, \r, \t, or \\ for a backslash")
        return ESCAPES[match[1]]

    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"is {text!a}, which is not UTF-8; convert it first") from None
    return re.sub(r"\\(.?)", replace, text, flags=re.DOTALL)


def escape(text: str) -> str:
    r"""Return the text with newlines, returns, tabs and backslashes escaped. `unescape` reverses this.

    Example:
        >>> print(escape("one\ntwo"))
        one\ntwo
    """
    letters = {character: f"\\{letter}" for letter, character in ESCAPES.items()}
    return "".join(letters.get(character, character) for character in text)
