"""`gpt2-tf convert`: write a model in another library's form."""

import argparse

from gpt2_tf.cli.flags import SIZE_NAMES, add_models_dir_flag, add_step_flag
from gpt2_tf.cli.parser import add_command
from gpt2_tf.pretrained import FORMS

EXAMPLES = """\
gpt2-tf convert shakespeare my-hf --to hf
gpt2-tf convert my-hf my-openai"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command `convert`."""
    parser = add_command(
        commands,
        "convert",
        run,
        summary="Write a model's files in another form, such as transformers' or OpenAI's.",
        usage="FROM TO [flags]",
        examples=EXAMPLES,
    )
    parser.add_argument(
        "source",
        metavar="FROM",
        help=f"model to read: {SIZE_NAMES} (downloaded if missing), shakespeare, hf:USER/NAME, or a folder of any form",
    )
    parser.add_argument("target", metavar="TO", help="folder to write; it must not exist yet, or be empty")
    parser.add_argument(
        "--to",
        choices=FORMS,
        metavar="FORM",
        help="form to write: openai, hf (for transformers), gpt-2-simple or keras-nlp (default: hf for a model in "
        "OpenAI's form, openai for any other). gpt-2-simple trains on rows of 1,024 tokens, and looks for models in "
        "models/NAME",
    )
    add_models_dir_flag(parser)
    add_step_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Print the folder once it is written."""
    from gpt2_tf.pretrained.convert import convert

    print(convert(args.source, args.target, args.to, args.models_dir, args.step))
