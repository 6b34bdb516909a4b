"""Wrong usage: one line that says what is wrong, what fits and what was probably meant."""

import argparse
from collections.abc import Iterator

import pytest
from oracles.command_line import assert_error

from gpt2_tf.cli.main import COMMANDS, build_parser
from gpt2_tf.cli.parser import Parser


def parsers(parser: Parser) -> Iterator[Parser]:
    """A parser and the parsers of its commands."""
    yield parser
    for command in parser.commands.values():
        yield from parsers(command)


USAGE = {
    "unknown command": (
        ["compose"],
        [
            "there is no command 'compose'; expected generate, interactive, download, info, encode, decode, prepare, "
            'train, evaluate, inspect, convert or export; to continue a text, write gpt2-tf generate "compose"',
        ],
    ),
    "misspelt command": (["generat", "x"], ["there is no command 'generat'; did you mean generate? `gpt2-tf --help`"]),
    "help of a misspelt command": (["help", "trian"], ["did you mean train?"]),
    "text without a command": (["To be, or"], ['to continue a text, write gpt2-tf generate "To be, or"']),
    "unknown flag": (["generate", "--colour", "3"], ["there is no flag --colour; put -- before a text that begins"]),
    "misspelt flag": (
        ["generate", "--topk", "40", "x"],
        ["there is no flag --topk; did you mean --top-k? `gpt2-tf ge"],
    ),
    "misspelt flag with =": (["generate", "--max_length=9"], ["no flag --max_length; did you mean --length?"]),
    "misspelt flag and a missing argument": (["encode", "--modle", "124M"], ["--modle; did you mean --model?"]),
    "misspelt flag of the program": (["--verison"], ["there is no flag --verison; did you mean --version?"]),
    "flag before the command": (
        ["--model", "124M", "generate", "x"],
        ["--model belongs after the command, as in `gpt2-tf generate --model`"],
    ),
    "ambiguous flag": (["generate", "--top", "3"], ["--top is short for more than one flag: --top-k, --top-p"]),
    "text like a flag": (
        ["encode", "-hello"],
        ["there is no flag -hello", 'put -- before a text that begins with -: gpt2-tf encode -- "-hello"'],
    ),
    "value like a flag": (
        ["generate", "x", "--stop", "-x"],
        ["--stop needs a value; if '-x' is the value, write --stop=-x"],
    ),
    "switch with a value": (["generate", "--json=yes"], ["--json takes no value, but 'yes' is given"]),
    "flag without its value": (["generate", "--length"], ["--length needs a value"]),
    "second prompt": (
        ["generate", "To", "be"],
        ['unexpected "be"; put quotes around a text with spaces: gpt2-tf generate "To be"'],
    ),
    "encode nothing": (["encode"], ["TEXT is missing", "`gpt2-tf encode --help`"]),
    "decode nothing": (["decode"], ["ID is missing"]),
    "negative temperature": (
        ["generate", "--temperature", "-1"],
        ["--temperature is '-1', but must be a number from 0 to 3.4e+38"],
    ),
    "temperature nan": (
        ["generate", "--temperature", "nan"],
        ["--temperature is 'nan', but must be a number from 0 to 3.4e+38"],
    ),
    "temperature inf": (
        ["generate", "--temperature", "inf"],
        ["--temperature is 'inf', but must be a number from 0 to 3.4e+38"],
    ),
    "temperature word": (
        ["generate", "--temperature", "hot"],
        ["--temperature is 'hot', but must be a number from 0 to 3.4e+38"],
    ),
    "top_p 0": (["generate", "--top-p", "0"], ["--top-p is '0', but must be a number above 0 and at most 1"]),
    "top_p 1.5": (["generate", "--top-p", "1.5"], ["--top-p is '1.5', but must be a number above 0 and at most 1"]),
    "top_p nan": (["generate", "--top-p", "nan"], ["--top-p is 'nan', but must be a number above 0 and at most 1"]),
    "negative top_k": (["generate", "--top-k", "-1"], ["--top-k is '-1', but must be a whole number of at least 0"]),
    "top_k half": (["generate", "--top-k", "2.5"], ["--top-k is '2.5', but must be a whole number of at least 0"]),
    "length 0": (["generate", "--length", "0"], ["--length is '0', but must be a whole number of at least 1"]),
    "nsamples 0": (["generate", "--nsamples", "0"], ["--nsamples is '0', but must be a whole number of at least 1"]),
    "batch_size 0": (
        ["generate", "--batch-size", "0"],
        ["--batch-size is '0', but must be a whole number of at least 1"],
    ),
    "min_p 2": (["generate", "--min-p", "2"], ["--min-p is '2', but must be a number from 0 to 1"]),
    "penalty 0": (
        ["generate", "--repetition-penalty", "0"],
        ["--repetition-penalty is '0', but must be a number from 1e-06 to 1e+06"],
    ),
    "ngram half": (
        ["generate", "--no-repeat-ngram", ".5"],
        ["--no-repeat-ngram is '.5', but must be a whole number of at least 0"],
    ),
    "min_length -1": (
        ["generate", "--min-length", "-1"],
        ["--min-length is '-1', but must be a whole number of at least 0"],
    ),
    "stop escape": (["generate", "--stop", r"a\d"], [r"--stop: unknown escape \d in a\d", r"\n, \r, \t, or \\"]),
    "stop not UTF-8": (
        ["generate", "--stop", "a\udcff"],
        [r"--stop is 'a\udcff', which is not UTF-8", "convert it first"],
    ),
    "export to nowhere": (["export"], ["DIR is missing", "`gpt2-tf export --help`"]),
    "export max_length 0": (
        ["export", "x", "--max-length", "0"],
        ["--max-length is '0', but must be a whole number of at least 1"],
    ),
    "export in halves": (
        ["export", "x", "--dtype", "float16"],
        ["--dtype is 'float16', but must be float32 or bfloat16; did you mean bfloat16?"],
    ),
    "prompt and file": (["generate", "x", "--file", "f"], ["give PROMPT or --file, not both"]),
    "shard of nothing": (["generate", "--shard", "4/4"], ["the shard is '4/4', but must be INDEX/COUNT"]),
    "shard of stdout": (["generate", "--shard", "0/4", "--seed", "1"], ["--shard needs --out FILE, the same for all"]),
    "shard without a seed": (
        ["generate", "--shard", "0/4", "--out", "o"],
        ["--shard needs --seed N, the same for all"],
    ),
    "evaluate a shard": (
        ["evaluate", "lambada", "f", "--shard", "0/4"],
        ["--shard needs --out FILE, the same for all"],
    ),
    "unknown task": (["evaluate", "taste", "f"], ["there is no task 'taste'; expected perplexity, lambada or choice"]),
    "evaluate no file": (["evaluate", "lambada"], ["FILE is missing", "`gpt2-tf evaluate lambada --help`"]),
    "window 0": (
        ["evaluate", "perplexity", "f", "--window", "0"],
        ["--window is '0', but must be a whole number of at least 1"],
    ),
    "stride of lambada": (
        ["evaluate", "lambada", "f", "--stride", "1"],
        ["there is no flag --stride; `gpt2-tf evaluate lambada"],
    ),
    "interactive prompt": (["interactive", "x"], ['unexpected "x"; `gpt2-tf interactive` takes flags only']),
    "seed word": (["generate", "--seed", "x"], ["--seed is 'x', but must be a whole number"]),
    "seed over 64 bits": (
        ["generate", "--seed", str(2**63)],
        [f"--seed is '{2**63}', but must be a whole number from -2^63 to 2^63 - 1"],
    ),
}


@pytest.mark.parametrize(("argv", "parts"), USAGE.values(), ids=USAGE)
def test_wrong_usage(cli, argv, parts):
    assert_error(cli(*argv), 2, *parts, "--help` shows the usage")


@pytest.mark.parametrize(
    ("argv", "begins"),
    [
        ([], "usage: gpt2-tf COMMAND"),
        (["--debug"], "usage: gpt2-tf COMMAND"),
        (["evaluate"], "usage: gpt2-tf evaluate"),
    ],
)
def test_without_a_command_the_help_goes_to_stderr(cli, argv, begins):
    """Stdout stays empty and the status is that of wrong usage, so that a script notices."""
    ran = cli(*argv)
    assert (ran.status, ran.out) == (2, b"")
    assert ran.err.startswith(begins) and "examples:" in ran.err


@pytest.mark.parametrize(("asked", "same"), [(["help"], ["--help"]), (["help", "generate"], ["generate", "--help"])])
def test_the_word_help_is_the_flag(cli, asked, same):
    assert cli(*asked) == cli(*same)


def test_text_after_two_dashes_may_begin_with_a_dash(cli):
    assert cli("encode", "--model", "shakespeare", "--", "-hello").out == cli("encode", "-", stdin=b"-hello").out


@pytest.mark.parametrize("command", ["", *(command.__name__.rpartition(".")[2] for command in COMMANDS)])
def test_each_help_has_a_sentence_a_usage_line_and_examples(cli, command):
    ran = cli(*command.split(), "--help")
    help = ran.out.decode()
    assert (ran.status, ran.err) == (0, "")
    assert help.startswith(f"usage: gpt2-tf {command}")
    assert f"  gpt2-tf {command}" in help.partition("\nexamples:\n")[2]
    assert "None" not in help and "%" not in help


@pytest.mark.parametrize("parser", [*parsers(build_parser())], ids=lambda parser: parser.prog)
def test_each_flag_has_a_default_or_is_required(parser):
    for action in parser._actions:
        if action.option_strings and not isinstance(action, argparse._HelpAction | argparse._VersionAction):
            assert (
                action.required
                or "(default: " in action.help
                or any(action in group._group_actions for group in parser._mutually_exclusive_groups)
            ), action.option_strings
