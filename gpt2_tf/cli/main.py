"""`gpt2-tf`: subcommands that parse and call. Whatever is slow to import is imported inside them."""

import argparse
import contextlib
import io
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from gpt2_tf import __version__
from gpt2_tf.cli.flags import SETTINGS, number
from gpt2_tf.files import interrupt, shard
from gpt2_tf.generation.params import STOP
from gpt2_tf.hparams import OLDER_NAMES, SIZES, canonical_size
from gpt2_tf.pretrained import FORMS

SHAPE = ("n_layer", "n_head", "n_embd", "n_ctx")
BUNDLED_NOTICE = (
    "gpt2-tf: no --model given, so the small bundled model answers; "
    "--model 124M fetches OpenAI's (498 MB) and answers with it"
)
BUNDLED_VOCABULARY_NOTICE = (
    "gpt2-tf: no --model given, so the ids are those of the small bundled model; --model 124M has OpenAI's"
)
BUNDLED_EXPORT_NOTICE = (
    "gpt2-tf: no --model given, so the small bundled model is exported; --model 124M fetches OpenAI's (498 MB)"
)
EXPORT = ("length", "max_length", "max_batch", "temperature", "top_k", "top_p", "seed", "dtype")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit status: 0, or after one line on stderr 1, 2 (wrong usage) or 130 (Ctrl-C)."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed, as by `2>&-`
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    args, unknown = _parser().parse_known_args(argv)
    if unknown:  # said by the command's parser, whose --help has what was meant
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a pipe on Windows can't take every character
    try:
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # as in `gpt2-tf generate | head -1`
        _give_up_stdout()
        return 1
    except KeyboardInterrupt:
        resumes = args.run is download or (args.run in (generate, evaluate) and args.out)
        again = "; run it again and it resumes" if resumes else ""
        if args.run is generate and args.file and not args.out:
            again = "; what was done but waited for a sample before it is lost, which --out keeps"
        if args.run is train and Path(args.out, "run.json").exists():
            again = f"; `gpt2-tf train --out {shlex.quote(args.out)} --init-from resume` goes on"
        print(f"gpt2-tf: interrupted{again}", file=sys.stderr)
        return 130
    except Exception as error:
        if args.debug:
            raise
        print(f"gpt2-tf: error: {_one_line(error)}", file=sys.stderr)
        _give_up_stdout()
        return 1
    return 0


def generate(args: argparse.Namespace) -> None:
    from gpt2_tf.cli import batch
    from gpt2_tf.pretrained.load import find_model_dir, fingerprint, load

    _check_shard(args)
    if args.file is not None:
        texts = batch.read(_file(args.file), "stdin" if args.file == "-" else args.file)
    else:
        texts = [None if args.prompt is None else _text(args.prompt)]
    settings = {**_settings(args), "window": args.window, "num_samples": args.nsamples}
    settings["batch_size"] = args.batch_size if args.draft_model is None else 1
    # What is wrong from here to the record is said before TensorFlow takes its seconds.
    place = find_model_dir(_model(args), args.models_dir)
    draft = args.draft_model
    if draft not in (None, "lookup"):
        draft = find_model_dir(draft, args.models_dir)
    record = None
    if args.out is not None:
        drafts = {"draft": fingerprint(draft) if isinstance(draft, Path) else draft}
        record = batch.begin(args.out, texts, place, settings | drafts, args.shard)
    with record or contextlib.nullcontext(), interrupt.reliable_ctrl_c():
        from gpt2_tf import load, stream

        model, enc = load(place)
        if isinstance(draft, Path):
            draft, _ = load(draft)
        settings["draft"] = draft
        if record is None and len(texts) == args.nsamples == 1 and not args.json:
            _stream(texts[0] or "", stream(model, enc, texts[0], **settings))
        else:
            bar = args.file is not None
            batch.write(model, enc, texts, settings, record=record, as_json=args.json, bar=bar)
    _say_shard(args)


def interactive(args: argparse.Namespace) -> None:
    from gpt2_tf.pretrained.load import find_model_dir, load

    place = find_model_dir(_model(args), args.models_dir)
    with interrupt.reliable_ctrl_c():
        from gpt2_tf import load

        model, enc = load(place)
        from gpt2_tf.cli.interactive import Session, run

    run(Session(model, enc, _settings(args)))


def download(args: argparse.Namespace) -> None:
    from gpt2_tf.pretrained.download import download

    folder = download(args.size, args.models_dir, args.base_url)
    print(folder)


def encode(args: argparse.Namespace) -> None:
    print(*_encoder(args).encode(_text(args.text)))


def decode(args: argparse.Namespace) -> None:
    words = (_text("-") if args.ids == ["-"] else " ".join(args.ids)).split()
    ids = []
    for word in words:
        try:
            ids.append(int(word))
        except ValueError:
            wrong = f"{word[:40]!r} is not a token id; ids are whole numbers, as from `gpt2-tf encode`"
            raise ValueError(wrong) from None
    sys.stdout.buffer.write(_encoder(args).decode_bytes(ids))  # the very bytes, so that encode | decode - is the text
    if sys.stdout.isatty():
        print()


def info(args: argparse.Namespace) -> None:
    from gpt2_tf.pretrained.load import describe

    for key, value in describe("shakespeare" if args.model is None else args.model, args.models_dir).items():
        print(f"{key:<11} {value}")


def prepare(args: argparse.Namespace) -> None:
    from gpt2_tf.data import corpus, prepare

    corpus.find(args.files)  # before a model is fetched
    vocabulary = _encoder(args) if args.model is not None else args.vocab_size
    split = {"val_fraction": args.val_fraction, "val_files": args.val_file or ()}
    prepared = prepare.prepare(args.files, args.out, vocabulary, column=args.column, field=args.field, **split)
    val = "" if prepared.val is None else f" and {len(prepared.val):,} to validate"
    print(f"{args.out}: {len(prepared.train):,} tokens to train{val}, of a vocabulary of {prepared.encoder.n_vocab:,}")


def train(args: argparse.Namespace) -> None:
    import gpt2_tf

    gpt2_tf.GPT2  # noqa: B018 - so that TensorFlow comes in silence
    from gpt2_tf.model import distribute
    from gpt2_tf.training import train

    given = {name: value for name, value in vars(args).items() if value is not None}
    settings = {name: given[name] for name in train.SETTINGS if name in given}
    shape = {name: given[name] for name in SHAPE if name in given}
    data = {name: given[name] for name in ("column", "field") if name in given} | {"val_files": args.val_file or ()}
    strategy = distribute.make_strategy(args.strategy)
    chief = distribute.is_chief(strategy)
    more = [train.tensorboard(args.out)] if args.tensorboard and chief else []
    more += [train.wandb(args.wandb)] if args.wandb is not None and chief else []
    # To stderr Keras is to show how far it is.
    with contextlib.redirect_stdout(sys.stderr), distribute.one_line_worker_errors(strategy):
        train.run(
            args.files,
            args.out,
            init_from=args.init_from,
            models_dir=args.models_dir,
            vocab_size=args.vocab_size,
            shape=shape,
            data=data,
            more=more,
            strategy=strategy,
            **settings,
        )
    if chief:
        print(f"gpt2-tf generate --model {args.out} writes with it", file=sys.stderr)


def evaluate(args: argparse.Namespace) -> None:
    import json

    from gpt2_tf.files.journal import Journal
    from gpt2_tf.pretrained.load import find_model_dir, fingerprint, load, sha256

    _check_shard(args)
    name = "stdin" if args.file == "-" else args.file
    text = _file(args.file)
    settings = {key: getattr(args, key) for key in ("window", "stride", "batch_size") if hasattr(args, key)}
    place = find_model_dir(_model(args), args.models_dir)
    digest = fingerprint(place)
    record = None
    if args.out is not None:
        run = {"task": args.task, "text": sha256(text.encode()), "model": digest, **settings}
        record = Journal(args.out, run, 0, args.shard)
    with record or contextlib.nullcontext(), interrupt.reliable_ctrl_c():
        from gpt2_tf import load

        model, enc = load(place)
        from gpt2_tf.evaluation.report import report

        found = report(model, enc, args.task, text, name, settings, record)
        if found is not None:
            found["model"] = {"name": args.model or "shakespeare", "digest": digest, **found["model"]}
            lines = json.dumps(found, indent=2)
            if record is None:
                print(lines)
            else:
                record.finish([lines])
    _say_shard(args)


def convert(args: argparse.Namespace) -> None:
    from gpt2_tf.pretrained.convert import convert, find_form

    if "keras-nlp" in (args.to, find_form(Path(args.source))):
        from gpt2_tf import GPT2  # noqa: F401 - so that TensorFlow comes in silence
    print(convert(args.source, args.target, args.to, args.models_dir))


def export(args: argparse.Namespace) -> None:
    from gpt2_tf.pretrained.load import find_model_dir, load

    place = find_model_dir(_model(args, BUNDLED_EXPORT_NOTICE), args.models_dir)
    with interrupt.reliable_ctrl_c():
        from gpt2_tf import load

        model, enc = load(place)
        from gpt2_tf.serving.saved_model import export

        given = {name: value for name in EXPORT if (value := getattr(args, name)) is not None}
        print(export(model, enc, args.out, check=args.check, **given))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="gpt2-tf", description="GPT-2 in TensorFlow: sample, train, convert, export.")
    parser.add_argument("--version", action="version", version=f"gpt2-tf {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    debug = argparse.ArgumentParser(add_help=False)
    debug.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")
    models = argparse.ArgumentParser(add_help=False)
    models.add_argument(
        "--model",
        metavar="NAME|DIR",
        help=f"{', '.join(SIZES)}, shakespeare (bundled, the default), hf:NAME of Hugging Face's hub, or a folder",
    )
    models.add_argument("--models-dir", default="models", metavar="DIR", help="where sizes are kept (default: models)")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(run: Callable, help: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        subparser = commands.add_parser(run.__name__, help=help, description=help, parents=[*parents, debug])
        subparser.set_defaults(run=run, parser=subparser)
        return subparser

    settings = argparse.ArgumentParser(add_help=False)
    for name, setting in SETTINGS.items():
        action = "append" if name == "stop" else "store"
        default = None if name == "stop" else setting.default
        flag = f"--{name.replace('_', '-')}"
        settings.add_argument(flag, action=action, type=_typed(setting.parse), default=default, help=setting.help)

    out = argparse.ArgumentParser(add_help=False)
    out.add_argument(
        "--out",
        metavar="FILE",
        help="write here, not to stdout, when all is done; until then FILE.part keeps what is, "
        "and the same command goes on from it after an end before its time",
    )
    out.add_argument(
        "--shard",
        type=_typed(shard.parse_shard),
        default=shard.UNSHARDED,
        metavar="K/N",
        help="do share K, from 0, of N processes with the same --out, here or where its folder is mounted; "
        "the last of them writes it, as one alone would have",
    )

    sub = command(generate, "Continue a prompt, or write without one; the text goes to stdout.", models, settings, out)
    source = sub.add_mutually_exclusive_group()
    source.add_argument("prompt", nargs="?", metavar="PROMPT", help="- reads stdin; none starts from <|endoftext|>")
    source.add_argument("--file", metavar="FILE", help="a prompt a line, each continued; - reads stdin")
    sub.add_argument("--nsamples", type=_typed(number(int, 1)), default=1, help="how many for each prompt (default: 1)")
    sub.add_argument(
        "--batch-size", type=_typed(number(int, 1)), default=16, help="samples computed at a time (default: 16)"
    )
    sub.add_argument(
        "--draft-model",
        metavar="NAME|DIR",
        help="a smaller model guesses several tokens for --model to check at once, which can be quicker; "
        "lookup: guess what came after these words before",
    )
    sub.add_argument(
        "--window", action="store_true", help="go on past the model's window, from the newer half of it when it is full"
    )
    sub.add_argument(
        "--json", action="store_true", help="an object a line: prompt, text, ids, finish_reason and logprobs of each"
    )

    command(interactive, "Write along with the model, line by line; /help there says how.", models, settings)

    sub = command(download, "Fetch OpenAI's files of one size; a second run resumes.")
    sub.add_argument(
        "size", metavar="SIZE", type=_typed(canonical_size), help=f"{', '.join(SIZES)} (once {', '.join(OLDER_NAMES)})"
    )
    sub.add_argument("--models-dir", default="models", metavar="DIR", help="where sizes are kept (default: models)")
    sub.add_argument("--base-url", help="a mirror (default: $GPT2_TF_BASE_URL, else OpenAI's public bucket)")

    sub = command(encode, "Print a text's token ids.", models)
    sub.add_argument("text", metavar="TEXT", help="- reads stdin, to the last byte")

    sub = command(decode, "Print the text of token ids.", models)
    sub.add_argument("ids", nargs="+", metavar="ID", help="- reads stdin")

    sub = command(prepare, "Tokenise texts into a folder to train on; one that is there already is kept.")
    sub.add_argument(
        "files",
        nargs="+",
        metavar="FILES",
        help=".txt (a document each), .csv (a document a row), .jsonl (a line), each also .gz; names, globs or folders",
    )
    sub.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    vocabulary = sub.add_mutually_exclusive_group(required=True)
    vocabulary.add_argument("--model", metavar="NAME|DIR", help=f"whose vocabulary: {', '.join(SIZES)}, or a folder")
    vocabulary.add_argument(
        "--vocab-size", type=_typed(_vocab_size), metavar="N|chars", help="learn N tokens; chars: a token a character"
    )
    sub.add_argument("--models-dir", default="models", metavar="DIR", help="where sizes are kept (default: models)")
    sub.add_argument("--column", help="of a .csv, by its first row (default: its only one)")
    sub.add_argument("--field", default="text", help="of a .jsonl's objects (default: text)")
    validation = sub.add_mutually_exclusive_group()
    validation.add_argument(
        "--val-fraction", type=_typed(number(float, 0, 1)), default=0.0, help="share of the end to validate on"
    )
    validation.add_argument("--val-file", action="append", metavar="FILE", help="texts to validate on; once for each")

    sub = command(train, "Train a model on texts; Ctrl-C stops it, and --init-from resume goes on with it.")
    sub.add_argument("files", nargs="*", metavar="FILES", help="as for prepare, or a folder that it has written")
    sub.add_argument("--out", required=True, metavar="DIR", help="the run's folder, in which the model will be")
    sub.add_argument(
        "--init-from",
        default="124M",
        metavar="NAME|DIR",
        help=f"the model to train on: {', '.join(SIZES)}, or a folder; scratch: new weights; resume: go on with the "
        "run in DIR, by its own settings (default: 124M)",
    )
    sub.add_argument("--models-dir", default="models", metavar="DIR", help="where sizes are kept (default: models)")
    for name, parse, help in (
        ("steps", number(int, 1), "optimizer steps (default: 1000); to resume, more than the run's make it longer"),
        ("batch-size", number(int, 1), "rows a step (default: 4)"),
        ("window", number(int, 1), "tokens a row (default: 256, or the model's n_ctx if that is less)"),
        (
            "learning-rate",
            number(float, 0, above=True),
            "at its highest (default: 5e-5, and 1e-3 from scratch or of adapters)",
        ),
        ("warmup-steps", number(int, 0), "until then it rises, and then falls to a tenth (default: a tenth of all)"),
        ("weight-decay", number(float, 0), "of matrices, not of biases and gains (default: 0.1)"),
        ("clip-norm", number(float, 0), "of all gradients together; 0 is off (default: 1)"),
        ("dropout", number(float, 0, 1), "share of values zeroed (default: 0)"),
        ("grad-accumulation", number(int, 1), "read a batch in so many parts, which takes less memory (default: 1)"),
        (
            "lora-rank",
            number(int, 1),
            "train adapters of this rank, and not the weights: beside c_attn, attn/c_proj and mlp/c_proj",
        ),
        ("save-every", number(int, 1), "steps (default: 500)"),
        ("eval-every", number(int, 1), "steps (default: 250)"),
        ("sample-every", number(int, 1), "steps (default: 250)"),
        ("patience", number(int, 1), "stop after so many evaluations without a lower val_loss (default: never)"),
        ("seed", number(int, 0, 2**31 - 1), "the same seed gives the same run (default: 0)"),
        ("n-layer", number(int, 1), "of new weights (default: 12)"),
        ("n-head", number(int, 1), "of new weights (default: 12)"),
        ("n-embd", number(int, 1), "of new weights (default: 768)"),
        ("n-ctx", number(int, 1), "of new weights (default: 1024)"),
    ):
        sub.add_argument(f"--{name}", type=_typed(parse), help=help)
    sub.add_argument("--precision", choices=("float32", "bfloat16", "float16"), help="to compute in (default: float32)")
    sub.add_argument(
        "--remat",
        action="store_true",
        default=None,
        help="compute twice instead of remembering: less memory, more time",
    )
    sub.add_argument(
        "--documents", action="store_true", default=None, help="a document a row, padded, not packed windows"
    )
    sub.add_argument("--vocab-size", type=_typed(_vocab_size), metavar="N|chars", help="of new weights, as for prepare")
    sub.add_argument("--column", help="of a .csv, by its first row (default: its only one)")
    sub.add_argument("--field", help="of a .jsonl's objects (default: text)")
    validation = sub.add_mutually_exclusive_group()
    validation.add_argument(
        "--val-fraction",
        type=_typed(number(float, 0, 1)),
        help="share of the end to validate on (default: 0.1)",
    )
    validation.add_argument("--val-file", action="append", metavar="FILE", help="texts to validate on; once for each")
    sub.add_argument(
        "--strategy",
        choices=("mirrored", "multi-worker"),
        help="tf.distribute's: all GPUs of this machine, or the workers that TF_CONFIG names (default: one device)",
    )
    sub.add_argument("--tensorboard", action="store_true", help="log for TensorBoard too, in DIR/tensorboard")
    sub.add_argument("--wandb", metavar="PROJECT", help="log to Weights & Biases too; needs the extra wandb")

    sub = command(evaluate, "Measure a model on a file; the numbers, and all that repeats them, are JSON on stdout.")
    tasks = sub.add_subparsers(dest="task", metavar="TASK", required=True)
    for task, help, file in (
        ("perplexity", "Of a text: per token, word and byte.", "a text; - reads stdin"),
        ("lambada", "Predict last words.", 'as OpenAI\'s lambada_test.jsonl, {"text": "..."} a line; - reads stdin'),
        (
            "choice",
            "Choose the likeliest of several continuations.",
            '{"context": "...", "choices": ["...", "..."], "answer": 0} a line, and maybe "ending": "..."; '
            "- reads stdin",
        ),
    ):
        of_task = tasks.add_parser(task, help=help, description=help, parents=[models, out, debug])
        of_task.set_defaults(parser=of_task)
        of_task.add_argument("file", metavar="FILE", help=file)
        if task == "perplexity":
            whole = _typed(number(int, 1))
            of_task.add_argument("--window", type=whole, help="tokens read at a time (default: the model's n_ctx)")
            of_task.add_argument("--stride", type=whole, help="how far the window moves (default: half of it)")
        of_task.add_argument(
            "--batch-size", type=_typed(number(int, 1)), default=8, help="rows computed at a time (default: 8)"
        )

    command(info, "Say what a model is: its size, its files.", models)

    sub = command(
        convert, "Write a model's files in another form: for transformers, OpenAI's code, KerasNLP and so on."
    )
    sub.add_argument("source", metavar="FROM", help="as --model elsewhere, or a folder of KerasNLP's")
    sub.add_argument("target", metavar="TO", help="a folder that isn't there yet")
    sub.add_argument("--to", choices=FORMS, help="(default: hf from OpenAI's form, openai from any other)")
    sub.add_argument("--models-dir", default="models", metavar="DIR", help="where sizes are kept (default: models)")

    sub = command(export, "Write a SavedModel that takes text and gives text, for TensorFlow Serving.", models)
    sub.add_argument("out", metavar="OUT", help="a folder; OUT/1 is written, or the next number")
    for name in ("length", "temperature", "top_k", "top_p", "seed"):
        setting = SETTINGS[name]
        help = f"where a request doesn't say: {setting.help}" if name != "seed" else "likewise (default: 0)"
        sub.add_argument(f"--{name.replace('_', '-')}", type=_typed(setting.parse), help=help)
    whole = _typed(number(int, 1))
    sub.add_argument("--max-length", metavar="N", type=whole, help="new tokens at most (default: the model's window)")
    sub.add_argument("--max-batch", metavar="N", type=whole, help="texts at a time at most (default: 16)")
    sub.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the weights (default: float32)")
    sub.add_argument("--check", action="store_true", help="load it without this package, and compare the answers")
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"gpt2-tf: error: {message}; `{self.prog} --help` shows the usage\n")


def _typed(parse: Callable[[str], object]) -> Callable[[str], object]:
    """An argparse type that says what `parse` has against a text."""

    def typed(text: str) -> object:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return typed


def _vocab_size(text: str) -> int | str:
    try:
        return text if text == "chars" else number(int, 257)(text)
    except ValueError as error:
        raise ValueError(f"{error}, or chars") from None


def _settings(args: argparse.Namespace) -> dict[str, object]:
    settings = {name: getattr(args, name) for name in SETTINGS}
    settings["stop"] = STOP if args.stop is None else tuple(string for string in args.stop if string)
    return settings


def _check_shard(args: argparse.Namespace) -> None:
    if args.shard.count > 1 and args.out is None:
        args.parser.error("--shard needs --out FILE, the same for all shards, beside which each keeps its share")
    if args.shard.count > 1 and getattr(args, "seed", 0) is None:
        args.parser.error("--shard needs --seed N, the same for all shards, as they are one run")


def _say_shard(args: argparse.Namespace) -> None:
    if args.out is not None and not os.path.exists(args.out):
        print(f"gpt2-tf: shard {args.shard} is done; {args.out} comes with the last of them", file=sys.stderr)


def _model(args: argparse.Namespace, notice: str = BUNDLED_NOTICE) -> str:
    if args.model is None:
        print(notice, file=sys.stderr)
        return "shakespeare"
    return args.model


def _encoder(args: argparse.Namespace):
    from gpt2_tf.pretrained.load import load_encoder

    return load_encoder(_model(args, BUNDLED_VOCABULARY_NOTICE), args.models_dir)


def _text(argument: str) -> str:
    """The argument, or all of stdin for "-"."""
    # Bytes of an argument that aren't UTF-8 come as lone surrogates, and would go on as U+FFFD.
    return _file("-") if argument == "-" else _decoded(argument.encode(errors="surrogateescape"), "the text")


def _file(name: str) -> str:
    """All of a file, or of stdin for "-"."""
    if name == "-":
        return _decoded(sys.stdin.buffer.read(), "stdin")
    with open(name, "rb") as file:
        return _decoded(file.read(), name)


def _decoded(content: bytes, what: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{what} is not UTF-8: byte {content[error.start]:#04x} at offset {error.start}; convert it first"
        ) from None


def _stream(prompt: str, pieces: Iterable[str]) -> None:
    print(prompt, end="", flush=True)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    finally:  # also after a Ctrl-C
        print(flush=True)


def _give_up_stdout() -> None:
    """Drops what stdout won't take (it is gone, or its disk is full): Python would try again at exit, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    message = " ".join(str(error).split())
    if isinstance(error, ValueError | OSError | ImportError):
        return message
    return f"{type(error).__name__}: {message} (--debug shows where)"
