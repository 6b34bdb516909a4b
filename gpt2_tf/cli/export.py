"""`gpt2-tf export`: write a SavedModel for TensorFlow Serving."""

import argparse

from gpt2_tf.cli.flags import WHOLE_NUMBER, add_model_flags, model_name
from gpt2_tf.cli.parser import add_command
from gpt2_tf.cli.sampling_flags import add_sampling_flags
from gpt2_tf.files import interrupt

EXAMPLES = """\
gpt2-tf export my-export --model 124M --check
gpt2-tf export my-export --model my-run --length 50 --top-k 40 --dtype bfloat16"""
BUNDLED_NOTICE = (
    "no --model is given, so the small bundled model is exported; "
    "--model 124M downloads OpenAI's model (498 MB) and exports it instead"
)
SAMPLING = ("length", "temperature", "top_k", "top_p", "seed")
SETTINGS = (*SAMPLING, "max_length", "max_batch", "dtype")


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command `export`. A flag that is not given is None, and takes its default in `gpt2_tf.serving`."""
    parser = add_command(
        commands,
        "export",
        run,
        summary="Write a SavedModel that takes text and returns text, for TensorFlow Serving.",
        usage="DIR [flags]",
        examples=EXAMPLES,
    )
    parser.add_argument(
        "out", metavar="DIR", help="folder to write; the export is DIR/1, or the next number where there are others"
    )
    parser.add_argument(
        "--max-length",
        metavar="N",
        type=WHOLE_NUMBER,
        help="most new tokens a request may ask for, at least 1 (default: the model's window)",
    )
    parser.add_argument(
        "--max-batch", metavar="N", type=WHOLE_NUMBER, help="most texts per request, at least 1 (default: 16)"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        metavar="TYPE",
        help="type of the weights, float32 or bfloat16; bfloat16 takes half the space and keeps three digits "
        "(default: float32)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="load the export in a process without this package, and compare its answers with the model's "
        "(default: off)",
    )
    title = "sampling, where a request does not say otherwise"
    add_sampling_flags(parser, SAMPLING, title=title, defaults={"seed": "0"})
    add_model_flags(parser)


def run(args: argparse.Namespace) -> None:
    """Print the folder of the export."""
    from gpt2_tf.pretrained.load import find_model_dir

    model_dir = find_model_dir(model_name(args, BUNDLED_NOTICE), args.models_dir)
    with interrupt.reliable_ctrl_c():
        from gpt2_tf import load

        model, enc = load(model_dir, step=args.step)
        from gpt2_tf.serving.saved_model import export

        given = {name: value for name in SETTINGS if (value := getattr(args, name)) is not None}
        print(export(model, enc, args.out, check=args.check, **given))
