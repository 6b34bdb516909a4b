"""`gpt2-tf download`: fetch OpenAI's files of one size."""

import argparse

from gpt2_tf.cli.flags import SIZE_NAMES, add_models_dir_flag, argument_type
from gpt2_tf.cli.parser import add_command
from gpt2_tf.hparams import OLDER_NAMES, canonical_size

EXAMPLES = """\
gpt2-tf download 124M
gpt2-tf download 1558M --models-dir /data/models"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command `download`."""
    parser = add_command(
        commands,
        "download",
        run,
        summary="Download one of OpenAI's models; run it again to resume.",
        usage="SIZE [flags]",
        examples=EXAMPLES,
        interrupt_hint=lambda args: "run the same command again to resume",
    )
    parser.add_argument(
        "size",
        metavar="SIZE",
        type=argument_type(canonical_size),
        help=f"{SIZE_NAMES}, in millions of parameters, or an older name: {', '.join(OLDER_NAMES)}",
    )
    add_models_dir_flag(parser)
    parser.add_argument(
        "--base-url",
        metavar="URL",
        help="server that holds the files, under URL/SIZE/ (default: $GPT2_TF_BASE_URL, or else OpenAI's server)",
    )


def run(args: argparse.Namespace) -> None:
    """Print the folder once all files are there."""
    from gpt2_tf.pretrained.download import download

    print(download(args.size, args.models_dir, args.base_url))
