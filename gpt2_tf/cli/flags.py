"""The settings of `generate` as a person types them, as flags or in a session: their limits, defaults and meaning."""

import math
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gpt2_tf.generation.params import STOP

ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


def number(kind: type, least: float, most: float = math.inf, *, above: bool = False) -> Callable[[str], float]:
    """A parser of finite numbers from `least` (not itself where `above`) to `most`; a ValueError says the limits."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (least < value if above else least <= value) or not value <= most or value == math.inf:
            limits = f"{'above' if above else 'at least'} {least}" + f" and at most {most}" * (most != math.inf)
            noun = "a whole number" if kind is int else "a number"
            raise ValueError(f"{text!r} is given, but it must be {noun} {limits}")
        return value

    return parse


def unescape(text: str) -> str:
    r"""The string that was typed: \n, \r, \t and \\ are a newline, a return, a tab and a backslash.

    Raises:
        ValueError: another character after a backslash, or bytes that aren't UTF-8.
    """

    def character(match: re.Match) -> str:
        if match[1] not in ESCAPES:
            raise ValueError(rf"{match[0]} in {text} has no meaning; expected \n, \r, \t, or \\ for a backslash")
        return ESCAPES[match[1]]

    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{text!a} is not UTF-8; convert it first") from None
    return re.sub(r"\\(.?)", character, text, flags=re.DOTALL)


def escape(text: str) -> str:
    """What `unescape` makes the text of."""
    return "".join({character: f"\\{letter}" for letter, character in ESCAPES.items()}.get(c, c) for c in text)


class Setting(NamedTuple):
    """One setting of `generate`: what its typed text becomes (a ValueError says what fits), its default, its help."""

    parse: Callable[[str], Any]
    default: Any
    help: str


SETTINGS = {
    "length": Setting(number(int, 1), None, "new tokens at most (default: 100, or what fits)"),
    "temperature": Setting(number(float, 0), 1.0, "0 takes the likeliest token each time (default: 1)"),
    "top_k": Setting(number(int, 0), 0, "keep the k likeliest tokens (default: 0, all)"),
    "top_p": Setting(
        number(float, 0, 1, above=True), 1.0, "keep the likeliest tokens of this probability together (default: 1, all)"
    ),
    "min_p": Setting(
        number(float, 0, 1), 0.0, "keep tokens at least this times as likely as the likeliest (default: 0, all)"
    ),
    "repetition_penalty": Setting(
        number(float, 0, above=True), 1.0, "above 1, tokens that the text holds become less likely (default: 1)"
    ),
    "no_repeat_ngram": Setting(
        number(int, 0), 0, "no run of so many tokens comes twice (default: 0, any number of times)"
    ),
    "stop": Setting(
        unescape,
        STOP,
        r"the text ends before this string, in which \n, \r, \t and \\ are a newline, a return, a tab and a backslash, "
        "or before the special token of this name; once for each, instead of <|endoftext|>; '' for no stop",
    ),
    "min_length": Setting(number(int, 0), 0, "nothing stops the text before so many new tokens (default: 0)"),
    "seed": Setting(number(int, -(2**63), 2**63 - 1), None, "the same seed gives the same text"),
}


def change(settings: dict[str, Any], name: str, text: str) -> None:
    """Sets one to what was typed, or to what `show` shows of it.

    ValueError where there is no such setting, or the text is not of its kind.
    """
    setting = find(name)
    try:
        if name == "stop":
            # Quoted, there can be several, or with '' none.
            strings = shlex.split(text) if text.startswith(("'", '"')) else [text]
            settings[name] = tuple(setting.parse(string) for string in strings if string)
        else:
            settings[name] = None if text == "none" and setting.default is None else setting.parse(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def find(name: str) -> Setting:
    """The setting of this name. ValueError where there is none."""
    if name not in SETTINGS:
        raise ValueError(f"there is no setting {name!r}; expected one of {', '.join(SETTINGS)}")
    return SETTINGS[name]


def show(settings: Mapping[str, Any]) -> str:
    """A line for each."""
    return "\n".join(f"{name:<18} {_shown(value)}" for name, value in settings.items())


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join("'" + escape(string).replace("'", "'\"'\"'") + "'" for string in value) or "''"
    return "none" if value is None else str(value)
