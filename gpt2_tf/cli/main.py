"""The program `gpt2-tf`: parse the command line, run the command, and turn its errors into one line and a status."""

import io
import os
import sys
from collections.abc import Sequence

from gpt2_tf import __version__
from gpt2_tf.cli import (
    convert,
    decode,
    download,
    encode,
    evaluate,
    export,
    generate,
    info,
    inspect,
    interactive,
    prepare,
    train,
)
from gpt2_tf.cli.parser import Parser, add_debug_flag
from gpt2_tf.cli.terminal import one_line, print_notice

COMMANDS = (generate, interactive, download, info, encode, decode, prepare, train, evaluate, inspect, convert, export)
EXAMPLES = """\
examples:
  gpt2-tf generate "ROMEO:"                                  continue a text with the small bundled model
  gpt2-tf generate "In a shocking finding," --model 124M     use OpenAI's model, downloaded once (498 MB)

`gpt2-tf COMMAND --help` lists the flags of a command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    Args:
        argv: the words after the program's name. Default: those of this process.

    Returns:
        0, or after one line on stderr: 1 for an error, 130 after Ctrl-C.

    Raises:
        SystemExit: after `--help` with status 0, after wrong usage with status 2.

    Example:
        >>> main(["encode", "--model", "shakespeare", "my lord"])
        76 88 436
        0
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the shell closed it, as `2>&-` does
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["help"]:  # as git and docker have it
        words = [*words[1:], "--help"]
    args, unexpected = build_parser().parse_known_args(words)
    if unexpected:
        args.parser.unexpected_words(unexpected, args)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a pipe on Windows cannot encode every character
    try:
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # as in `gpt2-tf generate | head -1`
        discard_stdout()
        return 1
    except KeyboardInterrupt:
        hint = args.interrupt_hint(args)
        print_notice(f"interrupted; {hint}" if hint else "interrupted")
        return 130
    except Exception as error:
        if args.debug:
            raise
        print_notice(f"error: {one_line(error)}")
        discard_stdout()
        return 1
    return 0


def build_parser() -> Parser:
    """The parser of the program and of all its commands."""
    parser = Parser(
        prog="gpt2-tf",
        usage="gpt2-tf COMMAND ...",
        description="GPT-2 in TensorFlow and Keras: sample, fine-tune, evaluate, convert and export OpenAI's models.",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "--version", action="version", version=f"gpt2-tf {__version__}", help="print the version and exit"
    )
    add_debug_flag(parser)
    commands = parser.add_commands("COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def discard_stdout() -> None:
    """Discard the output that cannot be written, as when the pipe is closed or the disk is full.

    Python would try to write the rest again at exit, and print a second error.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
