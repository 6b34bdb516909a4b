"""Text for a terminal: control characters from outside become visible escapes, so that they cannot steer it."""

import re

# Control characters, apart from newlines and tabs. A carriage return is one, because it lets a line overwrite itself.
TERMINAL_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|\r(?!\n)")


def escape_control_characters(text: str) -> str:
    r"""Replace every character that is not printable with its Python escape.

    File names, server answers and model files come from outside. Printed raw, an escape sequence in them could
    recolour the terminal, move its cursor or set its title. A newline is escaped too, so the result is one line.

    Example:
        >>> escape_control_characters("HTTP 404 \x1b[31mNot found\r\n")
        'HTTP 404 \\x1b[31mNot found\\r\\n'
        >>> escape_control_characters("naïve 色")
        'naïve 色'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def escape_generated_text(text: str) -> str:
    r"""Replace the control characters in a text of several lines with their Python escapes; newlines and tabs stay.

    A model can write any character, so it can write the escape sequences that it has read in its training text.

    Example:
        >>> escape_generated_text("one\n\ttwo\x1b[31m")
        'one\n\ttwo\\x1b[31m'
    """
    return TERMINAL_CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
