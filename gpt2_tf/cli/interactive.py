"""A session at the keyboard: lines in, the model's text out as it is written; the text so far goes along each time."""

import contextlib
import random
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from encoder import Encoder
from gpt2_tf.cli import flags
from gpt2_tf.files import interrupt
from gpt2_tf.generation.generate import stream
from gpt2_tf.model.gpt2 import GPT2

WELCOME = "gpt2-tf: the model goes on from what you type; /help says more, and Ctrl-D ends"
HELP = """\
TEXT              goes to the end of the text so far, as a line of its own, and the model writes on from there
(an empty line)   the model writes on
//TEXT            TEXT that begins with a slash: /TEXT
/reset            forgets the text so far
/set              shows the settings
/set NAME VALUE   changes one, as in /set temperature 0.7
/help             shows this
/quit             ends, as does Ctrl-D; Ctrl-C stops the model's text, and what is there of it stays"""


class Session:
    """`text` is all that was typed and written so far: what the model is given, or of it what its window takes."""

    def __init__(self, model: GPT2, enc: Encoder, values: Mapping[str, Any]):
        """`values` are those of `flags.SETTINGS`."""
        self.model, self.enc, self.values = model, enc, dict(values)
        self.text = ""
        self.seeds = random.Random(values["seed"])

    def answer(self, line: str) -> Iterator[str]:
        """Adds the line to the text, and what the model writes on, in pieces. ValueError leaves the text as it was."""
        between = "\n" if self.text and line and not self.text.endswith("\n") else ""
        text = self.text + between + line
        # One seed would draw the same for each answer.
        values = {**self.values, "seed": self.seeds.getrandbits(63)}
        pieces = stream(self.model, self.enc, text or None, window=True, **values)
        self.text = text
        for piece in pieces:
            self.text += piece
            yield piece

    def command(self, line: str) -> str:
        """Does what a line with a slash asks, and gives what there is to say. ValueError for what can't be done."""
        name, _, rest = line.partition(" ")
        rest = rest.lstrip()
        if name == "/set" and rest:
            setting, _, value = rest.partition(" ")
            setting = setting.removeprefix("--").replace("-", "_")
            if value:
                flags.change(self.values, setting, value)
                if setting == "seed":
                    self.seeds.seed(self.values["seed"])
            flags.find(setting)
            return flags.show({setting: self.values[setting]})
        if rest and name.removeprefix("/").replace("-", "_") in self.values:
            raise ValueError(f"there is no {name}; `/set {name.removeprefix('/')} {rest}` changes the setting")
        if rest:
            raise ValueError(f"{name} takes nothing after it; /help shows the commands")
        if name == "/set":
            return flags.show(self.values)
        if name == "/reset":
            self.text = ""
            return "the text so far is forgotten"
        if name == "/help":
            return HELP
        raise ValueError(f"there is no {name}; /help shows the commands, and //{name[1:]} sends it as text")


def run(session: Session) -> None:
    """Reads lines to the end and answers them. At a keyboard, Ctrl-C stops an answer; elsewhere it ends the session."""
    keyboard = sys.stdin.isatty()
    if keyboard:
        with contextlib.suppress(ImportError):  # Windows has none
            import readline  # noqa: F401 - input() then edits the line
        print(WELCOME, file=sys.stderr)
    while True:
        try:
            with interrupt.reliable_ctrl_c():
                if not _turn(session, keyboard):
                    return
        except KeyboardInterrupt:
            print(flush=True)
            if not keyboard:
                raise
        except ValueError as error:
            print(f"gpt2-tf: error: {error}", file=sys.stderr)


def _turn(session: Session, keyboard: bool) -> bool:
    """Reads a line and does what it asks; False at the end."""
    line = _line(keyboard)
    if line is None or line.strip() == "/quit":
        return False
    if line.startswith("/") and not line.startswith("//"):
        print(session.command(line.rstrip()), file=sys.stderr)
        return True
    for piece in session.answer(line.removeprefix("/") if line.startswith("//") else line):
        print(piece, end="", flush=True)
    print(flush=True)
    return True


def _line(keyboard: bool) -> str | None:
    """The next line without its end, or None where there is none."""
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
