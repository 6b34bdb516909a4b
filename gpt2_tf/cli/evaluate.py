"""`gpt2-tf evaluate`: measure a model on a file."""

import argparse
import contextlib
import json

from gpt2_tf.cli.flags import (
    BUNDLED,
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
from gpt2_tf.cli.inputs import read_file, read_plain_text
from gpt2_tf.cli.parser import add_command
from gpt2_tf.cli.terminal import print_notice
from gpt2_tf.data.text_file import windows_line_ends_notice
from gpt2_tf.files import interrupt

EXAMPLES = """\
gpt2-tf evaluate perplexity book.txt --model 124M --window 1024 --stride 512
gpt2-tf evaluate lambada lambada_test.jsonl --model 124M"""
TASKS = {  # task: what it measures, what FILE holds, an example
    "perplexity": (
        "Measure how well a model predicts a text: perplexity per token, per word and per byte.",
        "text in UTF-8; - reads stdin",
        "gpt2-tf evaluate perplexity book.txt --model 124M --window 1024 --stride 512",
    ),
    "lambada": (
        "Measure how often a model predicts the last word of a passage.",
        'passages, one JSON object per line: {"text": "..."}, as in OpenAI\'s lambada_test.jsonl; - reads stdin',
        "gpt2-tf evaluate lambada lambada_test.jsonl --model 124M",
    ),
    "choice": (
        "Measure how often a model finds the right continuation the most likely of several.",
        'questions, one JSON object per line: {"context": "...", "choices": ["...", "..."], "answer": 0}, where '
        '"answer" counts from 0, and an optional "ending": "..." follows each choice; - reads stdin',
        "gpt2-tf evaluate choice questions.jsonl --model 124M",
    ),
}


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command `evaluate` and its tasks."""
    parser = add_command(
        commands,
        "evaluate",
        run,
        summary="Measure a model on a file and print the results as JSON.",
        usage="TASK FILE [flags]",
        examples=EXAMPLES,
        interrupt_hint=interrupt_hint,
    )
    tasks = parser.add_commands("TASK")
    for task, (summary, file_help, example) in TASKS.items():
        task_parser = add_command(
            tasks,
            task,
            run,
            summary=summary,
            usage="FILE [flags]",
            examples=example,
            interrupt_hint=interrupt_hint,
        )
        task_parser.add_argument("file", metavar="FILE", help=file_help)
        group = task_parser.add_argument_group("measuring")
        if task == "perplexity":
            group.add_argument(
                "--window",
                type=WHOLE_NUMBER,
                metavar="N",
                help="tokens the model reads at a time, from 1 to its n_ctx (default: n_ctx)",
            )
            group.add_argument(
                "--stride",
                type=WHOLE_NUMBER,
                metavar="N",
                help="tokens the window moves at a time, from 1 to --window; less gives each token more context and "
                "takes longer (default: half of --window)",
            )
        group.add_argument(
            "--batch-size",
            type=WHOLE_NUMBER,
            default=8,
            metavar="N",
            help="rows computed at a time, at least 1; more are faster and take more memory (default: 8)",
        )
        add_allow_special_flag(group)
        add_model_flags(task_parser)
        add_engine_flags(task_parser)
        add_output_flags(task_parser)


def run(args: argparse.Namespace) -> None:
    """Write the results, and everything needed to repeat them, to stdout or to `--out`."""
    from gpt2_tf.files.journal import Journal
    from gpt2_tf.pretrained.load import find_model_dir, fingerprint, sha256

    check_shard(args)
    name = "stdin" if args.file == "-" else args.file
    text = read_plain_text(args.file) if args.task == "perplexity" else read_file(args.file)
    settings = {key: getattr(args, key) for key in ("window", "stride", "batch_size") if hasattr(args, key)}
    model_dir = find_model_dir(model_name(args), args.models_dir)
    engine = engine_settings(args)
    model_fingerprint = fingerprint(model_dir, args.step)
    journal = None
    if args.out is not None:
        work = {"task": args.task, "text": sha256(text.encode()), "model": model_fingerprint, **settings}
        work |= allow_special_setting(args) | weights_setting(args)
        journal = Journal(args.out, work, 0, args.shard)
    with journal or contextlib.nullcontext(), interrupt.reliable_ctrl_c():
        from gpt2_tf import load

        model, enc = load(model_dir, step=args.step, **engine)
        from gpt2_tf.evaluation.report import report

        if args.task == "perplexity" and "\r\n" in text:
            print_notice(windows_line_ends_notice([name]))
        results = report(model, apply_allow_special(args, enc), args.task, text, name, settings, journal)
        if results is not None:  # None where other shards have still to finish
            results["model"] = {"name": args.model or BUNDLED, "digest": model_fingerprint, **results["model"]}
            results["settings"] |= allow_special_setting(args) | weights_setting(args)
            lines = json.dumps(results, indent=2)
            if journal is None:
                print(lines)
            else:
                journal.finish([lines])
    print_shard_notice(args)


def interrupt_hint(args: argparse.Namespace) -> str:
    """After Ctrl-C: how to resume, where there is something to resume from."""
    return "run the same command again to resume" if args.out is not None else ""
