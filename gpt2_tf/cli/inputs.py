"""Text from the command line: an argument, a file, or stdin."""

import sys
from pathlib import Path

from gpt2_tf.data.text_file import decode_text


def read_argument(argument: str) -> str:
    """The text of an argument, or all of stdin for "-".

    Raises:
        ValueError: the bytes are not UTF-8.

    Example:
        >>> read_argument("ROMEO:")
        'ROMEO:'
    """
    # Python gives bytes of an argument that are not UTF-8 as lone surrogates, which would be encoded as U+FFFD.
    return read_file("-") if argument == "-" else decode_text(argument.encode(errors="surrogateescape"), "the text")


def read_file(name: str) -> str:
    """All text of a file, or of stdin for "-".

    Raises:
        OSError: the file cannot be read.
        ValueError: the bytes are not UTF-8.

    Example:
        >>> _ = Path("a.txt").write_text("ROMEO:")
        >>> read_file("a.txt")
        'ROMEO:'
    """
    if name == "-":
        return decode_text(sys.stdin.buffer.read(), "stdin")
    if Path(name).is_dir():
        raise IsADirectoryError(f"{name} is a folder; expected a file of text")
    return decode_text(Path(name).read_bytes(), name)
