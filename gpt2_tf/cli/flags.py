"""The flags that several commands share, and what their values become."""

import argparse
import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpt2_tf.cli.terminal import print_notice
from gpt2_tf.files import shard
from gpt2_tf.hparams import SIZES

if TYPE_CHECKING:
    from encoder import Encoder

BUNDLED = "shakespeare"
BUNDLED_NOTICE = (
    "no --model is given, so the small bundled model answers; "
    "--model 124M downloads OpenAI's model (498 MB) and uses it instead"
)
BUNDLED_VOCABULARY_NOTICE = (
    "no --model is given, so the ids are those of the small bundled model; --model 124M uses OpenAI's vocabulary"
)
SIZE_NAMES = ", ".join(SIZES)


def number(kind: type, minimum: float, maximum: float = math.inf, *, above: bool = False) -> Callable[[str], float]:
    """A parser of finite numbers, whose ValueError names the limits.

    Args:
        kind: int or float.
        minimum: the smallest value; with `above`, every value must be greater.
        maximum: the largest value. Default: no limit.
        above: whether `minimum` itself is refused. Default: False.

    Example:
        >>> number(int, 1)("12")
        12
        >>> number(float, 0, 1)("2")
        Traceback (most recent call last):
        ValueError: is '2', but must be a number from 0 to 1
    """
    noun = "a whole number" if kind is int else "a number"
    if above:
        limits = f"above {minimum}" + (f" and at most {maximum}" if maximum < math.inf else "")
    else:
        limits = f"of at least {minimum}" if maximum == math.inf else f"from {minimum} to {maximum}"

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        # NaN fails every comparison, so it is refused here too.
        if not (minimum < value if above else minimum <= value) or not value <= maximum or value == math.inf:
            raise ValueError(f"is {text!r}, but must be {noun} {limits}")
        return value

    return parse


def vocab_size(text: str) -> int | str:
    """The value of `--vocab-size`: a number of tokens, or "chars".

    Example:
        >>> vocab_size("512"), vocab_size("chars")
        (512, 'chars')
    """
    try:
        return text if text == "chars" else number(int, 257)(text)
    except ValueError as error:
        raise ValueError(f"{error}, or chars") from None


def argument_type(parse: Callable[[str], object]) -> Callable[[str], object]:
    """An argparse type that calls `parse` and reports its ValueError in full; argparse itself would drop the text."""

    def parse_argument(text: str) -> object:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse_argument


WHOLE_NUMBER = argument_type(number(int, 1))


def add_model_flags(parser: argparse.ArgumentParser, *, weights: bool = True) -> None:
    """Add `--model` and `--models-dir`, and `--step` for commands that read the model's weights."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="NAME|DIR",
        help=f"{SIZE_NAMES} (downloaded if missing), {BUNDLED} (bundled), hf:USER/NAME from the Hugging Face hub, "
        f"or a model's folder (default: {BUNDLED})",
    )
    add_models_dir_flag(group)
    if weights:
        add_step_flag(group)


def add_step_flag(parser: argparse._ActionsContainer) -> None:
    """Add `--step`. Not given, it is None."""
    parser.add_argument(
        "--step",
        type=argument_type(number(int, 0)),
        metavar="N",
        help="checkpoint model-N, if the folder has several (default: the one named in the file checkpoint)",
    )


def add_models_dir_flag(parser: argparse._ActionsContainer) -> None:
    """Add `--models-dir`."""
    parser.add_argument(
        "--models-dir",
        default="models",
        metavar="DIR",
        help="folder of the downloaded sizes, with a subfolder for each (default: models)",
    )


def model_name(args: argparse.Namespace, notice: str = BUNDLED_NOTICE) -> str:
    """The name or folder that `--model` gives. Without it, the bundled model, and a notice on stderr that says so."""
    if args.model is None:
        print_notice(notice)
        return BUNDLED
    return args.model


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--engine`, `--weights` and `--threads`."""
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--engine",
        choices=("auto", "litert", "tensorflow"),
        default="auto",
        metavar="NAME",
        help="what runs the model: litert is quick to start and fast on CPUs, tensorflow also uses GPUs; auto takes "
        "litert where it is installed and no GPU is visible (default: auto)",
    )
    group.add_argument(
        "--weights",
        choices=("float32", "int8"),
        default="float32",
        metavar="TYPE",
        help="float32, or int8 on litert: a quarter of the memory, about three times as fast, and other texts of "
        "nearly the same quality (default: float32)",
    )
    group.add_argument(
        "--threads",
        type=WHOLE_NUMBER,
        metavar="N",
        help="threads of litert, at least 1 (default: as many as the process may use)",
    )


def engine_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Check the flags of `add_engine_flags`, and return them as keyword arguments of `load`.

    Raises:
        ImportError, ValueError: as `choose_engine`.
    """
    from gpt2_tf.pretrained.engines import choose_engine

    choose_engine(args.engine, args.weights, args.threads)
    return {"engine": args.engine, "weights": args.weights, "threads": args.threads}


def weights_setting(args: argparse.Namespace) -> dict[str, str]:
    """`--weights` as a setting of a journal or report; empty for float32, so that journals of before still fit."""
    return {"weights": args.weights} if args.weights != "float32" else {}


def add_output_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add `--out` and `--shard`, and return their group for further flags."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out",
        metavar="FILE",
        help="write to FILE once everything is done. Until then, results are kept in FILE.part; run the same command "
        "again to resume (default: write to stdout)",
    )
    group.add_argument(
        "--shard",
        type=argument_type(shard.parse_shard),
        default=shard.UNSHARDED,
        metavar="K/N",
        help="do share K, from 0 to N - 1, of the work of N processes, on this machine or on others that share the "
        "folder. Give all of them the same flags and --out FILE. The last process to finish writes FILE, with the "
        "bytes that a single process would have written (default: 0/1)",
    )
    return group


def check_shard(args: argparse.Namespace) -> None:
    """Report wrong usage where `--shard` lacks the flags that it needs."""
    if args.shard.count > 1 and args.out is None:
        args.parser.error("--shard needs --out FILE, the same for all shards")
    if args.shard.count > 1 and getattr(args, "seed", 0) is None:
        args.parser.error("--shard needs --seed N, the same for all shards")


def print_shard_notice(args: argparse.Namespace) -> None:
    """Print a notice that this shard is done, if `--out` does not exist yet."""
    if args.out is not None and not os.path.exists(args.out):
        print_notice(f"shard {args.shard} is done; the last shard to finish writes {args.out}")


def add_text_file_flags(parser: argparse._ActionsContainer) -> None:
    """Add `--column` and `--field`, which say where .csv and .jsonl files have their text. Not given, they are None."""
    parser.add_argument(
        "--column",
        metavar="NAME|N",
        help="column of the .csv files that holds the text, by its name in their first row, or by its number from 1 if "
        "the first row is text already (default: the only column)",
    )
    parser.add_argument(
        "--field",
        metavar="NAME",
        help="key of the objects in .jsonl files that holds the text (default: text)",
    )


def add_validation_flags(parser: argparse._ActionsContainer, default: str) -> None:
    """Add `--val-fraction` and `--val-file`, which exclude each other. Not given, they are None.

    Args:
        default: the fraction that is used then, as the help shows it.
    """
    validation = parser.add_mutually_exclusive_group()
    validation.add_argument(
        "--val-fraction",
        type=argument_type(number(float, 0, 1)),
        metavar="X",
        help="share of the tokens, taken from the end, that is kept for validation, from 0 to below 1 "
        f"(default: {default})",
    )
    validation.add_argument(
        "--val-file",
        action="append",
        metavar="FILE",
        help="file, folder or glob to validate on; repeat the flag for several (default: none)",
    )


def add_allow_special_flag(parser: argparse._ActionsContainer) -> None:
    """Add `--allow-special`."""
    parser.add_argument(
        "--allow-special",
        action="store_true",
        help="read <|endoftext|> in a text as the special token (default: as plain text, as in OpenAI's code)",
    )


def apply_allow_special(args: argparse.Namespace, enc: "Encoder") -> "Encoder":
    """The encoder, or with `--allow-special` a copy that recognizes special tokens in a text."""
    return enc.with_special_tokens() if args.allow_special else enc


def allow_special_setting(args: argparse.Namespace) -> dict[str, bool]:
    """The flag as a setting of a journal or report; empty without the flag, so that journals of before still fit."""
    return {"allow_special": True} if args.allow_special else {}


def load_vocabulary(args: argparse.Namespace) -> "Encoder":
    """The encoder of the model that `--model` gives; no weights are downloaded for it."""
    from gpt2_tf.pretrained.load import load_encoder

    return load_encoder(model_name(args, BUNDLED_VOCABULARY_NOTICE), args.models_dir)
