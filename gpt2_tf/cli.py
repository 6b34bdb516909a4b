"""`gpt2-tf`: subcommands that parse and call. Whatever is slow to import is imported inside them."""

import argparse
import contextlib
import io
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence

from gpt2_tf import __version__
from gpt2_tf.hparams import OLDER_NAMES, SIZES, canonical_size

BUNDLED_NOTICE = (
    "gpt2-tf: no --model given, so the small bundled model answers; "
    "--model 124M fetches OpenAI's (498 MB) and answers with it"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit status: 0, or after one line on stderr 1, 2 (wrong usage) or 130 (Ctrl-C).

    While text is generated, Ctrl-C ends the process without a line.
    """
    args = _parser().parse_args(argv)
    if sys.stderr is None:  # closed, as by `2>&-`: without this, print would take stdout
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a pipe on Windows can't take every character
    try:
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # as in `gpt2-tf generate | head -1`
        _give_up_stdout()
        return 1
    except KeyboardInterrupt:
        print("gpt2-tf: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if args.debug:
            raise
        print(f"gpt2-tf: error: {_one_line(error)}", file=sys.stderr)
        _give_up_stdout()
        return 1
    return 0


def generate(args: argparse.Namespace) -> None:
    prompt = _text(args.prompt) if args.prompt is not None else None
    from gpt2_tf import folder

    place = folder.find(_model(args), args.models_dir)  # what is wrong here is said before TensorFlow takes its seconds
    from gpt2_tf import generate, load

    model, enc = load(place)
    with _ended_by_ctrl_c():
        completions = generate(
            model,
            enc,
            prompt,
            length=args.length,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            num_samples=args.nsamples,
            seed=args.seed,
            batch_size=args.batch_size,
        )
    for i, completion in enumerate(completions, start=1):
        if args.nsamples > 1:
            print(f"======== SAMPLE {i} ========")
        print(completion.prompt + completion.text)


def download(args: argparse.Namespace) -> None:
    import download_model

    folder = download_model.download(args.size, args.models_dir, args.base_url)
    print(folder)


def encode(args: argparse.Namespace) -> None:
    print(*_encoder(args).encode(_text(args.text)))


def decode(args: argparse.Namespace) -> None:
    words = _text("-").split() if args.ids == ["-"] else args.ids
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
    from gpt2_tf import folder

    for key, value in folder.describe(_model(args), args.models_dir).items():
        print(f"{key:<11} {value}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="gpt2-tf", description="GPT-2 in TensorFlow: sample, download, encode, decode.")
    parser.add_argument("--version", action="version", version=f"gpt2-tf {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    debug = argparse.ArgumentParser(add_help=False)
    debug.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")
    models = argparse.ArgumentParser(add_help=False)
    models.add_argument(
        "--model", metavar="NAME|DIR", help=f"{', '.join(SIZES)}, shakespeare (bundled, the default), or a folder"
    )
    models.add_argument("--models-dir", default="models", metavar="DIR", help="where sizes are kept (default: models)")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(run: Callable, help: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        subparser = commands.add_parser(run.__name__, help=help, description=help, parents=[*parents, debug])
        subparser.set_defaults(run=run)
        return subparser

    sub = command(generate, "Continue a prompt, or write without one; the text goes to stdout.", models)
    sub.add_argument("prompt", nargs="?", metavar="PROMPT", help="- reads stdin; none starts from <|endoftext|>")
    sub.add_argument("--length", type=_number(int, 1), help="new tokens at most (default: 100, or what fits)")
    sub.add_argument(
        "--temperature", type=_number(float, 0), default=1.0, help="0 takes the likeliest token each time (default: 1)"
    )
    sub.add_argument("--top-k", type=_number(int, 0), default=0, help="keep the k likeliest tokens (default: 0, all)")
    sub.add_argument(
        "--top-p",
        type=_number(float, 0, 1, above=True),
        default=1.0,
        help="keep the likeliest tokens of this probability together (default: 1, all)",
    )
    sub.add_argument("--seed", type=_number(int, -(2**63), 2**63 - 1), help="the same seed gives the same text")
    sub.add_argument("--nsamples", type=_number(int, 1), default=1, help="how many to write (default: 1)")
    sub.add_argument("--batch-size", type=_number(int, 1), help="samples computed at a time (default: all)")

    sub = command(download, "Fetch OpenAI's files of one size; a second run resumes.")
    sub.add_argument("size", metavar="SIZE", type=_size, help=f"{', '.join(SIZES)} (once {', '.join(OLDER_NAMES)})")
    sub.add_argument("--models-dir", default="models", metavar="DIR", help="where sizes are kept (default: models)")
    sub.add_argument("--base-url", help="a mirror (default: $GPT2_TF_BASE_URL, else OpenAI's public bucket)")

    sub = command(encode, "Print a text's token ids.", models)
    sub.add_argument("text", metavar="TEXT", help="- reads stdin, to the last byte")

    sub = command(decode, "Print the text of token ids.", models)
    sub.add_argument("ids", nargs="+", metavar="ID", help="- reads stdin")

    command(info, "Say what a model is: its size, its files.", models)
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"gpt2-tf: error: {message}; `{self.prog} --help` shows the usage\n")


def _size(text: str) -> str:
    try:
        return canonical_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _number(kind: type, least: float, most: float = math.inf, *, above: bool = False) -> Callable:
    """An argparse type: a finite number from `least` (not itself where `above`) to `most`."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (least < value if above else least <= value) or not value <= most or value == math.inf:
            limits = f"{'above' if above else 'at least'} {least}" + f" and at most {most}" * (most != math.inf)
            noun = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is given, but it must be {noun} {limits}")
        return value

    return parse


def _model(args: argparse.Namespace) -> str:
    if args.model is None:
        print(BUNDLED_NOTICE, file=sys.stderr)
        return "shakespeare"
    return args.model


def _encoder(args: argparse.Namespace):
    from encoder import Encoder
    from gpt2_tf import folder

    return Encoder.from_folder(folder.find(_model(args), args.models_dir, folder.VOCABULARY))


def _text(argument: str) -> str:
    """The argument, or all of stdin for "-"."""
    # Bytes of an argument that aren't UTF-8 come as lone surrogates, and would go on as U+FFFD.
    content = sys.stdin.buffer.read() if argument == "-" else argument.encode(errors="surrogateescape")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{'stdin' if argument == '-' else 'the text'} is not UTF-8: byte {content[error.start]:#04x} "
            f"at offset {error.start}; convert it first"
        ) from None


@contextlib.contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    """Lets Ctrl-C end the process at once: Python itself would wait until TensorFlow's whole loop is done."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


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
