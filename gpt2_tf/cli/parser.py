"""The argument parser of `gpt2-tf`: argparse, with errors in plain English and suggestions for misspelt words."""

import argparse
import difflib
import itertools
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence

from gpt2_tf.files.terminal import escape_control_characters

# What argparse says, and what stands in its place. `\1` is a flag or the name of a positional argument.
PLAIN_ENGLISH = [
    (r"argument ([^:]+): expected one argument", r"\1 needs a value"),
    (r"argument ([^:]+): expected at least one argument", r"\1 needs at least one value"),
    (r"argument ([^:]+): not allowed with argument (.+)", r"give \2 or \1, not both"),
    (r"argument ([^:]+): ignored explicit argument (.+)", r"\1 takes no value, but \2 is given"),
    (r"one of the arguments (.+) is required", lambda match: f"give {' or '.join(match[1].split())}"),
    (r"the following arguments are required: ([^,]+)", r"\1 is missing"),
    (r"the following arguments are required: (.+)", r"these are missing: \1"),
    (r"ambiguous option: (\S+) could match (.+)", r"\1 is short for more than one flag: \2"),
    (r"argument ([^:]+): (is .+)", r"\1 \2"),
    (r"argument ([^:]+): (.+)", r"\1: \2"),
]


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors take one line and say what to do.

    argparse has no public list of a parser's flags and groups, so this class reads private attributes. The tests of the
    messages would fail if a Python had others.

    Args:
        takes_text: whether a positional argument is free text, so that errors explain quotes and `--`. Default: False.
        options: what `argparse.ArgumentParser` takes.
    """

    def __init__(self, *, takes_text: bool = False, **options):
        super().__init__(formatter_class=HelpFormatter, **options)
        self.takes_text = takes_text
        self.commands: dict[str, Parser] = {}
        self.words: list[str] = []

    def add_commands(self, metavar: str) -> argparse._SubParsersAction:
        """Add subparsers; `metavar` is what the help calls them, such as COMMAND."""
        name = metavar.lower()
        # Without `prog`, argparse would put this parser's arguments before the command in each usage line.
        commands = self.add_subparsers(title=f"{name}s", metavar=metavar, dest=name, required=True, prog=self.prog)
        self.commands = commands.choices
        return commands

    def format_help(self) -> str:
        # argparse puts its own group, with -h, before the groups of a command's flags.
        groups = self._action_groups
        self._action_groups = [*(group for group in groups if group is not self._optionals), self._optionals]
        return super().format_help()

    def parse_known_args(self, args=None, namespace=None):
        self.words = list(sys.argv[1:] if args is None else args)  # `error` looks for misspelt flags in them
        return super().parse_known_args(args, namespace)

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            choices = list(map(str, action.choices))
            close = suggestion(str(value), choices)
            if not self.commands:
                raise argparse.ArgumentError(action, f"is {value!r}, but must be {list_words(choices)}{close}")
            message = f"there is no {action.metavar.lower()} {value!r}{close or f'; expected {list_words(choices)}'}"
            if "generate" in choices and not close:
                message = join(message, f"to continue a text, write {self.prog} generate {quoted(value)}")
            raise argparse.ArgumentError(None, message)

    def error(self, message: str):
        """Print one line and exit with status 2. Where no command is given, print the help instead."""
        # A misspelt flag takes its value's place among the positional arguments, so it explains most other errors.
        if unknown_flag := self.unknown_flag():
            message = unknown_flag
        elif self.commands and message.startswith("the following arguments are required"):
            self.print_help(sys.stderr)
            self.exit(2)
        line = join(escape_control_characters(plain_english(message)), f"`{self.prog} --help` shows the usage")
        self.exit(2, f"gpt2-tf: error: {line}\n")

    def unknown_flag(self) -> str | None:
        """Describe the first word that looks like a flag but is not one. Return None if there is no such word."""
        for before, word in self._flag_words():
            name = word.partition("=")[0]
            if self._is_flag(name):
                continue
            if command := next((command for command, parser in self.commands.items() if parser._is_flag(name)), None):
                return f"{name} belongs after the command, as in `{self.prog} {command} {name}`"
            if (flag := self._option_string_actions.get(before)) and flag.nargs is None:
                return f"{before} needs a value; if {word!r} is the value, write {before}={word}"
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            close = suggestion(name, flags)
            message = f"there is no flag {name}{close}"
            if self.takes_text and not (close and name.startswith("--")):
                message = join(message, f"put -- before a text that begins with -: {self.prog} -- {quoted(word)}")
            return message
        return None

    def unexpected_words(self, words: Sequence[str], args: argparse.Namespace) -> None:
        """Report words that were left over after parsing as an error."""
        text = " ".join(words)
        positionals = [action.dest for action in self._get_positional_actions()]
        if not positionals:
            self.error(f"unexpected {quoted(text)}; `{self.prog}` takes flags only, such as --model NAME")
        if not self.takes_text:
            self.error(f"unexpected {quoted(text)}; put quotes around a name with spaces")
        whole = f"{getattr(args, positionals[0])} {text}"
        self.error(f"unexpected {quoted(text)}; put quotes around a text with spaces: {self.prog} {quoted(whole)}")

    def _flag_words(self) -> Iterator[tuple[str, str]]:
        """Each word that looks like a flag, after the word before it. A command ends the program's own flags."""
        for before, word in itertools.pairwise(["", *self.words]):
            if word == "--" or (self.commands and not word.startswith("-")):
                return
            if word.startswith("-") and word != "-" and not self._negative_number_matcher.match(word):
                yield before, word

    def _is_flag(self, word: str) -> bool:
        """Whether a word is a flag of this parser, or the beginning of one, which argparse takes too."""
        flags = self._option_string_actions
        return word in flags or (word.startswith("--") and any(flag.startswith(word) for flag in flags))


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help with the examples as they are written, and room for the names of flags."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28)
        self._action_max_length = 15  # the command `interactive` with its indent, which argparse does not count


def add_command(
    commands: argparse._SubParsersAction,
    name: str,
    run: Callable[[argparse.Namespace], None],
    *,
    summary: str,
    usage: str,
    examples: str,
    takes_text: bool = False,
    interrupt_hint: Callable[[argparse.Namespace], str] = lambda args: "",
) -> Parser:
    """Add one command's parser, and return it for its flags.

    Args:
        commands: what `Parser.add_commands` returned.
        run: called with the parsed arguments; raises an exception where it fails.
        summary: one sentence for both helps, the program's and the command's.
        usage: the command's arguments for the usage line.
        examples: command lines that end the command's help, one per line.
        takes_text: whether a positional argument is free text.
        interrupt_hint: after Ctrl-C, says what is left of the work and how to resume. Default: nothing.
    """
    prog = f"{commands._prog_prefix} {name}"
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        usage=f"{prog} {usage}",
        epilog=f"examples:\n{textwrap.indent(examples, '  ')}",
        takes_text=takes_text,
    )
    add_debug_flag(parser, default=argparse.SUPPRESS)  # the program's own --debug stays
    parser.set_defaults(run=run, parser=parser, interrupt_hint=interrupt_hint)
    return parser


def add_debug_flag(parser: argparse.ArgumentParser, **options) -> None:
    """Add `--debug`, which the program and each command take."""
    help = "show the traceback of an error (default: one line)"
    parser.add_argument("--debug", action="store_true", help=help, **options)


def plain_english(message: str) -> str:
    """An error of argparse in this program's words.

    Example:
        >>> plain_english("argument --length: expected one argument")
        '--length needs a value'
    """
    for pattern, words in PLAIN_ENGLISH:
        if match := re.fullmatch(pattern, message, re.DOTALL):
            return match.expand(words) if isinstance(words, str) else words(match)
    return message


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean WORD?" for the most similar known word, or "" if no known word is similar.

    Example:
        >>> suggestion("--topk", ["--top-k", "--seed"])
        '; did you mean --top-k?'
        >>> suggestion("colour", ["--top-k", "--seed"])
        ''
    """
    by_name = {name.lstrip("-"): name for name in known}  # the dashes of flags would make all of them similar
    close = difflib.get_close_matches(word.lower().lstrip("-"), by_name, n=1, cutoff=0.7)
    return f"; did you mean {by_name[close[0]]}?" if close else ""


def join(first: str, second: str) -> str:
    """Two clauses of an error, with a semicolon unless the first one is a question.

    Example:
        >>> join("there is no flag -x", "see --help"), join("did you mean -y?", "see --help")
        ('there is no flag -x; see --help', 'did you mean -y? see --help')
    """
    return f"{first} {second}" if first.endswith("?") else f"{first}; {second}"


def list_words(words: Sequence[str]) -> str:
    """Words in a sentence.

    Example:
        >>> list_words(["a", "b", "c"])
        'a, b or c'
    """
    return " or ".join([*([", ".join(words[:-1])] if words[1:] else []), words[-1]])


def quoted(text: str) -> str:
    """A text in quotes as a shell takes it, at most 60 characters of it."""
    text = textwrap.shorten(text, 60, placeholder=" ...")
    return shlex.quote(text) if set(text) & set('"$`\\!') else f'"{text}"'
