"""`gpt2-tf prepare`: tokenize texts once, into a folder that `gpt2-tf train` reads."""

import argparse

from gpt2_tf.cli.flags import (
    SIZE_NAMES,
    add_models_dir_flag,
    add_text_file_flags,
    add_validation_flags,
    argument_type,
    load_vocabulary,
    vocab_size,
)
from gpt2_tf.cli.parser import add_command

EXAMPLES = """\
gpt2-tf prepare texts/ --out data --model 124M
gpt2-tf prepare book.txt --out data --vocab-size 512 --val-fraction 0.1"""
FILES_HELP = (
    "text to train on: .txt (one document per file), .csv (one per row) or .jsonl (one per line), each also as .gz; "
    "files, globs or folders"
)


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command `prepare`."""
    parser = add_command(
        commands,
        "prepare",
        run,
        summary="Tokenize texts into a folder for training.",
        usage="FILES... --out DIR (--model NAME|DIR | --vocab-size N|chars) [flags]",
        examples=EXAMPLES,
    )
    parser.add_argument("files", nargs="+", metavar="FILES", help=FILES_HELP)
    output = parser.add_argument_group("output and vocabulary")
    output.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="folder to write; a folder that already holds the tokens of these files is kept",
    )
    vocabulary = output.add_mutually_exclusive_group(required=True)
    vocabulary.add_argument(
        "--model",
        metavar="NAME|DIR",
        help=f"model whose vocabulary is used: {SIZE_NAMES} (downloaded if missing), shakespeare, or a folder",
    )
    vocabulary.add_argument(
        "--vocab-size",
        type=argument_type(vocab_size),
        metavar="N|chars",
        help="learn a vocabulary of N tokens from the texts, at least 257; chars makes one token per character",
    )
    add_models_dir_flag(output)
    data = parser.add_argument_group("data")
    add_text_file_flags(data)
    add_validation_flags(data, default="0, no validation")


def run(args: argparse.Namespace) -> None:
    """Print the folder and how many tokens it has."""
    from gpt2_tf.data import corpus, prepare

    corpus.find_text_files(args.files)  # a missing file is reported before a model is downloaded
    vocabulary = load_vocabulary(args) if args.model is not None else args.vocab_size
    prepared = prepare.prepare(
        args.files,
        args.out,
        vocabulary,
        column=args.column,
        field=args.field or "text",
        val_fraction=args.val_fraction or 0.0,
        val_files=args.val_file or (),
    )
    val = "" if prepared.val is None else f" and {len(prepared.val):,} to validate"
    print(f"{args.out}: {len(prepared.train):,} tokens to train{val}, of a vocabulary of {prepared.encoder.n_vocab:,}")
