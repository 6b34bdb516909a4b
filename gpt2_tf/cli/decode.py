"""`gpt2-tf decode`: token ids to text."""

import argparse
import sys

from gpt2_tf.cli.flags import add_model_flags, load_vocabulary
from gpt2_tf.cli.inputs import read_file
from gpt2_tf.cli.parser import add_command
from gpt2_tf.cli.terminal import escape_for_terminal

EXAMPLES = """\
gpt2-tf decode 76 88 436
gpt2-tf encode "my lord" | gpt2-tf decode -"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command `decode`."""
    parser = add_command(
        commands, "decode", run, summary="Print the text of token ids.", usage="ID... [flags]", examples=EXAMPLES
    )
    parser.add_argument("ids", nargs="+", metavar="ID", help="token ids, whole numbers from 0; - reads them from stdin")
    add_model_flags(parser, weights=False)


def run(args: argparse.Namespace) -> None:
    """Print the text."""
    ids = parse_ids(read_file("-") if args.ids == ["-"] else " ".join(args.ids))
    content = load_vocabulary(args).decode_bytes(ids)
    if sys.stdout.isatty():
        print(escape_for_terminal(content.decode(errors="replace")))
    else:
        sys.stdout.buffer.write(content)  # the bytes themselves, because an id can stand for a part of a character


def parse_ids(text: str) -> list[int]:
    """The ids in a text, with white space between them.

    Raises:
        ValueError: a word is not a whole number.

    Example:
        >>> parse_ids("76 88 436")
        [76, 88, 436]
    """
    ids = []
    for word in text.split():
        try:
            ids.append(int(word))
        except ValueError:
            expected = "expected whole numbers with spaces between them, as `gpt2-tf encode` prints them"
            raise ValueError(f"{word[:40]!r} is not a token id; {expected}") from None
    return ids
