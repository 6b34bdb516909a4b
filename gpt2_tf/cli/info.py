"""`gpt2-tf info`: describe a model by its files."""

import argparse
from pathlib import Path

from gpt2_tf.cli.flags import BUNDLED, add_model_flags
from gpt2_tf.cli.parser import add_command
from gpt2_tf.files.terminal import escape_control_characters

EXAMPLES = """\
gpt2-tf info
gpt2-tf info --model 124M"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command `info`."""
    parser = add_command(
        commands,
        "info",
        run,
        summary="Print a model's hyperparameters and whether its files are complete.",
        usage="[flags]",
        examples=EXAMPLES,
    )
    add_model_flags(parser)
    parser.add_argument(
        "--clear-litert",
        action="store_true",
        help="first remove the files that the engine litert keeps for the model; they are made again when they are "
        "needed (default: off)",
    )


def run(args: argparse.Namespace) -> None:
    """Print one line per fact; nothing is downloaded."""
    from gpt2_tf.litert.kept import clear_kept, describe_kept
    from gpt2_tf.pretrained.load import describe

    facts = describe(args.model or BUNDLED, args.models_dir, args.step)
    if args.clear_litert:
        clear_kept(Path(facts["folder"]))
    if kept := describe_kept(Path(facts["folder"])):
        facts["litert"] = kept
    for key, value in facts.items():
        print(f"{key:<11} {escape_control_characters(value)}")
