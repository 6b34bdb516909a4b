"""What a terminal shows: notices and errors, one line each, and generated text, without harmful control characters."""

import sys
from collections.abc import Iterable, Iterator

from gpt2_tf.files.atomic import FULL_DISK
from gpt2_tf.files.terminal import escape_control_characters, escape_generated_text


def print_notice(text: str) -> None:
    """Print one line on stderr, after the program's name."""
    print(f"gpt2-tf: {escape_control_characters(text)}", file=sys.stderr)


def escape_for_terminal(text: str) -> str:
    """A generated text as stdout takes it: unchanged, unless stdout is a terminal, which control characters can steer.

    Example:
        >>> escape_for_terminal("my lord")
        'my lord'
    """
    return escape_generated_text(text) if sys.stdout.isatty() else text


def pieces_for_terminal(pieces: Iterable[str]) -> Iterator[str]:
    r"""The pieces of a generated text as `escape_for_terminal` gives them for the whole text.

    A "\r" at the end of a piece waits for the next piece, because "\r\n" is left as it is.

    Example:
        >>> list(pieces_for_terminal(["my ", "lord"]))
        ['my ', 'lord', '']
    """
    held = ""
    for piece in pieces:
        text = held + piece
        held = "\r" if text.endswith("\r") else ""
        yield escape_for_terminal(text.removesuffix(held))
    yield escape_for_terminal(held)


def one_line(error: Exception) -> str:
    """An exception as one line for a user.

    The text of a ValueError, OSError or ImportError is written for users. Another exception is a fault of this
    program, so its line names the kind and `--debug`.

    Example:
        >>> one_line(FileNotFoundError(2, "No such file or directory", "texts/a.txt"))
        'texts/a.txt: No such file or directory'
        >>> one_line(KeyError("h12"))
        "KeyError: 'h12' (--debug shows where)"
    """
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in FULL_DISK:  # every write to a file adds the file's name
        return f"stdout: {error.strerror}"
    message = " ".join(str(error).split())
    if isinstance(error, ValueError | OSError | ImportError):
        return message
    return f"{type(error).__name__}: {message} (--debug shows where)"
