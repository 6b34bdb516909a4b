"""Text from the command line: an argument, a file, or stdin."""

import sys
from pathlib import Path

from gpt2_tf.data.corpus import file_format
from gpt2_tf.data.text_file import decode_text, read_chunks


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
    """All text of a file, which is decompressed if its name ends in .gz, or of stdin for "-".

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
    with open(name, "rb") as file:
        return "".join(read_chunks(name, file))


def read_plain_text(name: str) -> str:
    """All text of a plain text file, or of stdin for "-".

    Raises:
        OSError: the file cannot be read.
        ValueError: the bytes are not UTF-8, or the name ends in .csv or .jsonl, whose texts `train` would read one by
            one.

    Example:
        >>> _ = Path("a.txt").write_text("ROMEO:")
        >>> read_plain_text("a.txt")
        'ROMEO:'
    """
    if (ending := file_format(Path(name))) in (".csv", ".jsonl"):
        raise ValueError(
            f"{name} is a {ending} file, but plain text is expected; to read it as plain text, pass it on stdin: "
            f"- < {name}"
        )
    return read_file(name)
