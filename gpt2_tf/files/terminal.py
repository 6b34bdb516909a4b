"""Text for a terminal: control characters from outside become visible escapes, so that they cannot steer it."""


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
