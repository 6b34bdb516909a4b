"""`gpt2-tf interactive`: a session in which a person and the model write one text together, line by line."""

import argparse
import contextlib
import random
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gpt2_tf.cli.flags import (
    add_allow_special_flag,
    add_engine_flags,
    add_model_flags,
    apply_allow_special,
    engine_settings,
    model_name,
)
from gpt2_tf.cli.parser import add_command
from gpt2_tf.cli.sampling_flags import (
    SETTINGS,
    add_sampling_flags,
    change_setting,
    check_name,
    format_settings,
    settings_from_flags,
)
from gpt2_tf.cli.terminal import pieces_for_terminal, print_notice
from gpt2_tf.files import interrupt

if TYPE_CHECKING:
    from encoder import Encoder
    from gpt2_tf.model.gpt2 import GPT2

EXAMPLES = """\
gpt2-tf interactive
gpt2-tf interactive --model 124M --length 50 --top-k 40"""
# A session always slides the model's window, since its text has no end.
SESSION_SETTINGS = tuple(name for name in SETTINGS if name != "window")
WELCOME = "gpt2-tf: type a text and the model continues it; /help lists the commands, Ctrl-D ends the session"
HELP = """\
TEXT              add a line of text, and let the model continue
(an empty line)   let the model continue
//TEXT            add a line that begins with a slash: /TEXT
/reset            forget the text so far
/set              show the sampling settings
/set NAME VALUE   change a setting, as in /set temperature 0.7
/help             show this help
/quit             end the session; quit, exit and Ctrl-D do the same

Ctrl-C stops the model; what it has written so far stays part of the text."""
QUIT = ("/quit", "/exit", "quit", "exit")


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command `interactive`."""
    parser = add_command(
        commands,
        "interactive",
        run,
        summary="Write a text together with the model, line by line.",
        usage="[flags]",
        examples=EXAMPLES,
    )
    add_allow_special_flag(parser)
    add_sampling_flags(parser, SESSION_SETTINGS)
    add_model_flags(parser)
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> None:
    """Load the model and answer lines until the session ends."""
    from gpt2_tf.pretrained.load import find_model_dir

    engine = engine_settings(args)
    model_dir = find_model_dir(model_name(args), args.models_dir)
    with interrupt.reliable_ctrl_c():
        from gpt2_tf import load

        model, enc = load(model_dir, step=args.step, **engine)
    enc = apply_allow_special(args, enc)
    answer_lines(Session(model, enc, settings_from_flags(args, SESSION_SETTINGS)))


class Session:
    """One text that a person and the model write together.

    Attributes:
        text: everything typed and written so far. The model reads as much of its end as fits its window.
        settings: name -> value of the sampling settings, as `/set` shows and changes them.

    Example:
        >>> session = Session(model, enc, {"length": 4, "temperature": 0.0, "seed": 1})
        >>> answer = "".join(session.answer("ROMEO:"))
        >>> session.text == "ROMEO:" + answer
        True
        >>> session.command("/set length 2")
        'length             2'
    """

    def __init__(self, model: "GPT2", enc: "Encoder", settings: Mapping[str, Any]):
        self.model, self.enc, self.settings = model, enc, dict(settings)
        self.text = ""
        self.seeds = random.Random(settings["seed"])

    def answer(self, line: str) -> Iterator[str]:
        """Add a line to the text, then yield the model's continuation in pieces, and add each to the text.

        Raises:
            ValueError: a setting does not fit the model; the text stays as it was.
        """
        from gpt2_tf import stream

        newline = "\n" if self.text and line and not self.text.endswith("\n") else ""
        text = self.text + newline + line
        # With the same seed for each answer, all answers would begin with the same random draws.
        settings = {**self.settings, "seed": self.seeds.getrandbits(63)}
        pieces = stream(self.model, self.enc, text or None, window=True, **settings)
        self.text = text
        for piece in pieces:
            self.text += piece
            yield piece

    def command(self, line: str) -> str:
        """Run a command, a line that begins with a slash, and return its answer.

        Raises:
            ValueError: there is no such command or setting, or the value does not fit; nothing is changed.
        """
        name, _, rest = line.partition(" ")
        rest = rest.lstrip()
        if name == "/set" and rest:
            setting, _, value = rest.partition(" ")
            setting = setting.removeprefix("--").replace("-", "_")
            check_name(self.settings, setting)
            if value:
                change_setting(self.settings, setting, value)
                if setting == "seed":
                    self.seeds.seed(self.settings["seed"])
            return format_settings({setting: self.settings[setting]})
        if name.removeprefix("/").replace("-", "_") in self.settings:
            raise ValueError(f"there is no command {name}; `/set {name.removeprefix('/')} {rest or 'VALUE'}` sets it")
        if rest and name in ("/set", "/reset", "/help"):
            raise ValueError(f"{name} takes nothing after it; /help lists the commands")
        if name == "/set":
            return format_settings(self.settings)
        if name == "/reset":
            self.text = ""
            return "the text so far is forgotten"
        if name == "/help":
            return HELP
        raise ValueError(f"there is no command {name}; /help lists the commands, //{line[1:]} sends it as text")


def answer_lines(session: Session) -> None:
    """Read lines from stdin and answer them until the session ends.

    At a keyboard, Ctrl-C stops an answer. Where stdin is a file or a pipe, Ctrl-C ends the session.
    """
    keyboard = sys.stdin.isatty()
    if keyboard:
        with contextlib.suppress(ImportError):  # Windows has no readline
            import readline  # noqa: F401 - input() then edits the line
        print(WELCOME, file=sys.stderr)
    while True:
        try:
            with interrupt.reliable_ctrl_c():
                line = read_line(keyboard)
                if line is None or line.strip() in QUIT:
                    return
                answer_line(session, line)
        except KeyboardInterrupt:
            print(flush=True)
            if not keyboard:
                raise
        except ValueError as error:
            print_notice(f"error: {error}")


def answer_line(session: Session, line: str) -> None:
    """Run a command, or print the model's continuation of a line of text."""
    if line.startswith("/") and not line.startswith("//"):
        print(session.command(line.rstrip()), file=sys.stderr)
        return
    answer = session.answer(line.removeprefix("/") if line.startswith("//") else line)
    for piece in pieces_for_terminal(answer):
        print(piece, end="", flush=True)
    print(flush=True)


def read_line(keyboard: bool) -> str | None:
    """The next line of stdin without its line ending, or None at the end.

    Args:
        keyboard: whether a person types, who needs to see a prompt.

    Raises:
        ValueError: the bytes are not UTF-8.
    """
    if keyboard and sys.stdout.isatty():
        try:
            return input("> ")
        except EOFError:
            print()
            return None
    if keyboard:
        print("> ", end="", file=sys.stderr, flush=True)
    content = sys.stdin.buffer.readline()
    try:
        return content.decode().rstrip("\r\n") if content else None
    except UnicodeDecodeError as error:
        raise ValueError(f"the line is not UTF-8: byte {content[error.start]:#04x}; convert it first") from None
