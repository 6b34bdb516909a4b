"""`gpt2-tf encode`: text to token ids."""

import argparse

from gpt2_tf.cli.flags import add_allow_special_flag, add_model_flags, apply_allow_special, load_vocabulary
from gpt2_tf.cli.inputs import read_argument
from gpt2_tf.cli.parser import add_command

EXAMPLES = """\
gpt2-tf encode "my lord"
gpt2-tf encode - --model 124M < book.txt"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command `encode`."""
    parser = add_command(
        commands,
        "encode",
        run,
        summary="Print the token ids of a text.",
        usage="TEXT [flags]",
        examples=EXAMPLES,
        takes_text=True,
    )
    parser.add_argument("text", metavar="TEXT", help="text to encode; - reads all of stdin")
    add_allow_special_flag(parser)
    add_model_flags(parser, weights=False)


def run(args: argparse.Namespace) -> None:
    """Print the ids on one line, with a space between them."""
    text = read_argument(args.text)
    enc = apply_allow_special(args, load_vocabulary(args))
    print(*enc.encode(text))
