"""`gpt2-tf generate`: continue a prompt, or each line of a file of prompts."""

import argparse
import contextlib
from collections.abc import Iterable
from pathlib import Path

from gpt2_tf.cli.flags import (
    WHOLE_NUMBER,
    add_allow_special_flag,
    add_engine_flags,
    add_model_flags,
    add_output_flags,
    allow_special_setting,
    apply_allow_special,
    check_shard,
    engine_settings,
    model_name,
    print_shard_notice,
    weights_setting,
)
from gpt2_tf.cli.inputs import read_argument, read_plain_text
from gpt2_tf.cli.parser import add_command
from gpt2_tf.cli.sampling_flags import add_sampling_flags, settings_from_flags
from gpt2_tf.cli.terminal import escape_for_terminal, pieces_for_terminal
from gpt2_tf.files import interrupt

EXAMPLES = """\
gpt2-tf generate "ROMEO:" --length 60 --seed 1
gpt2-tf generate "In a shocking finding," --model 124M --top-k 40
gpt2-tf generate --file prompts.txt --json --out samples.jsonl"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command `generate`."""
    parser = add_command(
        commands,
        "generate",
        run,
        summary="Continue a prompt, or write without one.",
        usage="[PROMPT] [flags]",
        examples=EXAMPLES,
        takes_text=True,
        interrupt_hint=interrupt_hint,
    )
    group = parser.add_argument_group("prompts")
    prompts = group.add_mutually_exclusive_group()
    prompts.add_argument(
        "prompt",
        nargs="?",
        metavar="PROMPT",
        help="text to continue; - reads it from stdin (default: none, the model starts a text of its own)",
    )
    prompts.add_argument(
        "--file", metavar="FILE", help="continue each line of FILE as a prompt of its own; - reads stdin"
    )
    add_allow_special_flag(group)
    group.add_argument(
        "--nsamples", type=WHOLE_NUMBER, default=1, metavar="N", help="samples per prompt, at least 1 (default: 1)"
    )
    add_sampling_flags(parser)
    add_model_flags(parser)
    add_engine_flags(parser)
    add_speed_flags(parser)
    output = add_output_flags(parser)
    output.add_argument(
        "--json",
        action="store_true",
        help="print a JSON object per sample, each on its own line, with prompt, text, ids, finish_reason and "
        "logprobs (default: plain text)",
    )


def add_speed_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that change the speed of sampling, but not the samples."""
    group = parser.add_argument_group("speed")
    group.add_argument(
        "--batch-size",
        type=WHOLE_NUMBER,
        default=16,
        metavar="N",
        help="samples computed at a time, at least 1; more are faster and take more memory (default: 16)",
    )
    group.add_argument(
        "--draft",
        "--draft-model",
        metavar="NAME|DIR",
        help="smaller model of the same vocabulary, which proposes several tokens for --model to check at once; the "
        "text stays the same and can come faster. int8 is the model itself with 8-bit weights, on the engine litert. "
        "lookup proposes the tokens that followed the same words earlier in the text (default: none)",
    )


def run(args: argparse.Namespace) -> None:
    """Write the samples to stdout or to `--out`."""
    from gpt2_tf.cli import batch
    from gpt2_tf.pretrained.load import find_model_dir, fingerprint

    check_shard(args)
    if args.file is not None:
        prompts = batch.parse_prompts(read_plain_text(args.file), "stdin" if args.file == "-" else args.file)
    else:
        prompts = [None if args.prompt is None else read_argument(args.prompt)]
    settings = {**settings_from_flags(args), "num_samples": args.nsamples}
    settings["batch_size"] = args.batch_size if args.draft is None else 1
    # Importing TensorFlow takes seconds, so mistakes are reported before it.
    model_dir = find_model_dir(model_name(args), args.models_dir)
    if args.draft == "int8" and args.weights != "float32":
        raise ValueError("--draft int8 is the model of --weights int8 itself; leave one of them out")
    if args.draft == "int8" and args.engine == "auto":
        args.engine = "litert"
    engine = engine_settings(args)
    draft = args.draft
    if draft not in (None, "lookup", "int8"):
        draft = find_model_dir(draft, args.models_dir)
    journal = None
    if args.out is not None:
        draft_identity = fingerprint(draft) if isinstance(draft, Path) else draft
        work = settings | {"draft": draft_identity} | allow_special_setting(args) | weights_setting(args)
        journal = batch.open_journal(args.out, prompts, model_dir, work, args.shard, args.step)
    with journal or contextlib.nullcontext(), interrupt.reliable_ctrl_c():
        from gpt2_tf import load, stream

        model, enc = load(model_dir, step=args.step, **engine)
        enc = apply_allow_special(args, enc)
        settings["draft"] = load_draft(draft, model, model_dir, args)
        if journal is None and len(prompts) == args.nsamples == 1 and not args.json:
            print_stream(prompts[0] or "", stream(model, enc, prompts[0], **settings))
        else:
            show_progress = args.file is not None
            batch.write_samples(
                model, enc, prompts, settings, journal=journal, as_json=args.json, show_progress=show_progress
            )
    print_shard_notice(args)


def load_draft(draft: Path | str | None, model: object, model_dir: Path, args: argparse.Namespace) -> object:
    """Load the draft for the engine that runs the model; on LiteRT in int8, which is quicker."""
    from gpt2_tf import load
    from gpt2_tf.generation.engine import as_engine

    if draft in (None, "lookup"):
        return draft
    folder, step = (model_dir, args.step) if draft == "int8" else (draft, None)
    if as_engine(model).name == "tensorflow":
        return load(folder, step=step, engine="tensorflow")[0]
    return load(folder, step=step, engine="litert", weights="int8", threads=args.threads)[0]


def interrupt_hint(args: argparse.Namespace) -> str:
    """After Ctrl-C: how to resume, or how to lose nothing the next time."""
    if args.out is not None:
        return "run the same command again to resume"
    if args.file is not None:
        return "finished samples that waited for an earlier sample are lost; with --out FILE they are kept"
    return ""


def print_stream(prompt: str, pieces: Iterable[str]) -> None:
    """Print a prompt and then each piece of its continuation as soon as it comes."""
    print(escape_for_terminal(prompt), end="", flush=True)
    try:
        for piece in pieces_for_terminal(pieces):
            print(piece, end="", flush=True)
    finally:  # after Ctrl-C too, the shell's prompt starts on a line of its own
        print(flush=True)
