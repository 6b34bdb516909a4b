"""`gpt2-tf train`: fine-tune a model on texts, or train a new one."""

import argparse
import contextlib
import shlex
import sys
from pathlib import Path

from gpt2_tf.cli.flags import (
    SIZE_NAMES,
    WHOLE_NUMBER,
    add_models_dir_flag,
    add_text_file_flags,
    add_validation_flags,
    argument_type,
    number,
    vocab_size,
)
from gpt2_tf.cli.parser import add_command
from gpt2_tf.cli.prepare import FILES_HELP
from gpt2_tf.cli.terminal import print_notice

EXAMPLES = """\
gpt2-tf train texts/ --out my-run
gpt2-tf train texts/ --out my-run --lora-rank 8 --precision bfloat16
gpt2-tf train --out my-run --init-from resume
gpt2-tf train book.txt --out tiny --init-from scratch --vocab-size chars --n-layer 4 --n-head 4 --n-embd 128"""
SHAPE = ("n_layer", "n_head", "n_embd", "n_ctx")


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command `train`. A flag that is not given is None, and takes its default in `gpt2_tf.training`."""
    parser = add_command(
        commands,
        "train",
        run,
        summary="Fine-tune a model on texts, or train a new one; Ctrl-C stops it, --init-from resume continues.",
        usage="FILES... --out DIR [flags]",
        examples=EXAMPLES,
        interrupt_hint=interrupt_hint,
    )
    parser.add_argument("files", nargs="*", metavar="FILES", help=f"{FILES_HELP}; or a folder that `prepare` wrote")
    group = parser.add_argument_group("run")
    group.add_argument(
        "--out", required=True, metavar="DIR", help="folder of the run, which will hold the trained model"
    )
    group.add_argument(
        "--init-from",
        default="124M",
        metavar="NAME|DIR",
        help=f"model to start from: {SIZE_NAMES} (downloaded if missing), shakespeare, or a folder. scratch: new "
        "random weights. resume: continue the run in --out with its own settings (default: 124M)",
    )
    add_models_dir_flag(group)
    add_optimizer_flags(parser.add_argument_group("optimization"))
    add_memory_flags(parser.add_argument_group("memory and precision"))
    add_schedule_flags(parser.add_argument_group("while it trains"))
    add_data_flags(parser.add_argument_group("data"))
    add_shape_flags(parser.add_argument_group("new weights, with --init-from scratch"))
    add_device_and_log_flags(parser.add_argument_group("devices and logs"))


def add_optimizer_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags of the optimizer and of its steps."""
    _add_number(group, "steps", WHOLE_NUMBER, "N", "optimizer steps of the whole run (default: 1000)")
    _add_number(group, "batch-size", WHOLE_NUMBER, "N", "rows per optimizer step, over all devices (default: 4)")
    _add_number(
        group, "window", WHOLE_NUMBER, "N", "tokens per row (default: 256, or the model's n_ctx where it is less)"
    )
    _add_number(
        group,
        "learning-rate",
        argument_type(number(float, 0, above=True)),
        "X",
        "largest learning rate, above 0 (default: 5e-5; 1e-3 from scratch or with --lora-rank)",
    )
    _add_number(
        group,
        "warmup-steps",
        argument_type(number(int, 0)),
        "N",
        "steps in which the learning rate rises from 0 to its largest value; after them it falls to a tenth of that "
        "value (default: a tenth of --steps)",
    )
    _add_number(
        group,
        "weight-decay",
        argument_type(number(float, 0)),
        "X",
        "AdamW's decay of weight matrices, at least 0; biases and layer norms have none (default: 0.1)",
    )
    _add_number(
        group,
        "clip-norm",
        argument_type(number(float, 0)),
        "X",
        "largest norm of all gradients together; 0 turns clipping off (default: 1)",
    )
    _add_number(
        group,
        "dropout",
        argument_type(number(float, 0, 1)),
        "X",
        "share of the activations set to zero, from 0 to below 1 (default: 0)",
    )
    _add_number(
        group,
        "seed",
        argument_type(number(int, 0, 2**31 - 1)),
        "N",
        "seed of new weights, the order of the data and dropout; the same seed gives the same run (default: 0)",
    )


def add_memory_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags that trade time or precision for memory."""
    _add_number(
        group,
        "grad-accumulation",
        WHOLE_NUMBER,
        "N",
        "compute each batch in N parts and add their gradients, which takes less memory; N must divide --batch-size "
        "(default: 1)",
    )
    group.add_argument(
        "--remat",
        action="store_true",
        default=None,
        help="compute activations again in the backward pass instead of storing them: less memory, more time "
        "(default: off)",
    )
    group.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16"),
        metavar="TYPE",
        help="type of the arithmetic: float32, bfloat16 or float16; weights stay float32 (default: float32)",
    )
    _add_number(
        group,
        "lora-rank",
        WHOLE_NUMBER,
        "N",
        "train LoRA adapters of rank N beside c_attn, attn/c_proj and mlp/c_proj, and leave the weights unchanged "
        "(default: train all weights)",
    )


def add_schedule_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags that say how often something happens during the run."""
    _add_number(group, "save-every", WHOLE_NUMBER, "N", "steps between two checkpoints (default: 500)")
    _add_number(group, "eval-every", WHOLE_NUMBER, "N", "steps between two evaluations (default: 250)")
    _add_number(group, "sample-every", WHOLE_NUMBER, "N", "steps between two sample texts (default: 250)")
    _add_number(
        group,
        "patience",
        WHOLE_NUMBER,
        "N",
        "stop after N evaluations in a row without a lower validation loss (default: never)",
    )


def add_data_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags that say how the texts are read."""
    group.add_argument(
        "--documents",
        action="store_true",
        default=None,
        help="make each document a row of its own, padded to --window, instead of rows cut from all documents "
        "joined together (default: off)",
    )
    add_text_file_flags(group)
    add_validation_flags(group, default="0.1")


def add_shape_flags(group: argparse._ArgumentGroup) -> None:
    """Add the shape of new weights."""
    group.add_argument(
        "--vocab-size",
        type=argument_type(vocab_size),
        metavar="N|chars",
        help="learn a vocabulary of N tokens from the texts, at least 257; chars makes one token per character "
        "(default: the vocabulary of a prepared folder)",
    )
    _add_number(group, "n-layer", WHOLE_NUMBER, "N", "blocks (default: 12)")
    _add_number(group, "n-head", WHOLE_NUMBER, "N", "attention heads per block; must divide --n-embd (default: 12)")
    _add_number(group, "n-embd", WHOLE_NUMBER, "N", "width of the embeddings and blocks (default: 768)")
    _add_number(group, "n-ctx", WHOLE_NUMBER, "N", "longest context, in tokens (default: 1024)")


def add_device_and_log_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags for several devices and for logs elsewhere."""
    group.add_argument(
        "--strategy",
        choices=("mirrored", "multi-worker"),
        metavar="NAME",
        help="mirrored: all GPUs of this machine. multi-worker: the machines that the environment's TF_CONFIG names "
        "(default: one device)",
    )
    group.add_argument(
        "--tensorboard", action="store_true", help="also write logs for TensorBoard, to DIR/tensorboard (default: off)"
    )
    group.add_argument(
        "--wandb", metavar="PROJECT", help="also log to Weights & Biases; needs the extra [wandb] (default: off)"
    )


def run(args: argparse.Namespace) -> None:
    """Train, and leave the model in `--out`."""
    import gpt2_tf

    gpt2_tf.GPT2  # noqa: B018 - imports TensorFlow without its messages
    from gpt2_tf.model import distribute
    from gpt2_tf.training import callbacks
    from gpt2_tf.training.settings import SETTING_NAMES
    from gpt2_tf.training.train import run_training

    given = {name: value for name, value in vars(args).items() if value is not None}
    settings = {name: given[name] for name in SETTING_NAMES if name in given}
    model_shape = {name: given[name] for name in SHAPE if name in given}
    read_options = {name: given[name] for name in ("column", "field") if name in given}
    read_options["val_files"] = args.val_file or ()
    strategy = distribute.make_strategy(args.strategy)
    chief = distribute.is_chief(strategy)
    extra_callbacks = [callbacks.tensorboard(args.out)] if args.tensorboard and chief else []
    extra_callbacks += [callbacks.wandb(args.wandb)] if args.wandb is not None and chief else []
    # The callbacks of other libraries print to stdout, which is for results.
    with contextlib.redirect_stdout(sys.stderr), distribute.one_line_worker_errors(strategy):
        run_training(
            args.files,
            args.out,
            init_from=args.init_from,
            models_dir=args.models_dir,
            vocab_size=args.vocab_size,
            model_shape=model_shape,
            read_options=read_options,
            extra_callbacks=extra_callbacks,
            strategy=strategy,
            **settings,
        )
    if chief:
        print_notice(f"done; `gpt2-tf generate --model {shlex.quote(args.out)}` samples from the trained model")


def interrupt_hint(args: argparse.Namespace) -> str:
    """After Ctrl-C: the command that resumes the run, once it has begun."""
    if not Path(args.out, "run.json").exists():
        return ""
    return f"`gpt2-tf train --out {shlex.quote(args.out)} --init-from resume` resumes the run"


def _add_number(group: argparse._ArgumentGroup, name: str, kind, metavar: str, help: str) -> None:
    group.add_argument(f"--{name}", type=kind, metavar=metavar, help=help)
