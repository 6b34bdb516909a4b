"""`gpt2-tf inspect`: what the model computes for a text."""

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpt2_tf.cli.flags import (
    add_allow_special_flag,
    add_model_flags,
    apply_allow_special,
    argument_type,
    model_name,
)
from gpt2_tf.cli.inputs import read_argument
from gpt2_tf.cli.parser import add_command
from gpt2_tf.cli.terminal import escape_for_terminal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from encoder import Encoder
    from gpt2_tf.model.gpt2 import GPT2

EXAMPLES = """\
gpt2-tf inspect "O Romeo, Romeo! wherefore art thou Romeo?"
gpt2-tf inspect "O Romeo, Romeo!" --lens --png lens.png
gpt2-tf inspect "O Romeo, Romeo!" --attention 2.1 --json"""
TOP = 5  # tokens per place that --lens --json prints
View = tuple[dict[str, Any], list[list[str]], "Callable[[], Figure]"]  # for --json, for a table, for --png


def layer_and_head(text: str) -> tuple[int, int]:
    """The value of `--attention`.

    Example:
        >>> layer_and_head("2.1")
        (2, 1)
        >>> layer_and_head("2")
        Traceback (most recent call last):
        ValueError: is '2', but must be LAYER.HEAD, two numbers from 0, such as 2.1
    """
    layer, _, head = text.partition(".")
    if not (layer.isdecimal() and head.isdecimal()):
        raise ValueError(f"is {text!r}, but must be LAYER.HEAD, two numbers from 0, such as 2.1")
    return int(layer), int(head)


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command `inspect`."""
    parser = add_command(
        commands,
        "inspect",
        run,
        summary="Show what a model computes for a text: surprise, attention, or the prediction of each layer.",
        usage="TEXT [--surprise | --lens | --attention L.H] [flags]",
        examples=EXAMPLES,
        takes_text=True,
    )
    parser.add_argument("text", metavar="TEXT", help="text to read; - reads all of stdin")
    add_allow_special_flag(parser)
    group = parser.add_argument_group("view")
    views = group.add_mutually_exclusive_group()
    views.add_argument(
        "--surprise",
        action="store_true",
        help="show how unexpected each token is: its negative log-probability in nats, and its rank among all tokens, "
        "1 for the most likely one; the first token follows <|endoftext|> (default)",
    )
    views.add_argument(
        "--lens",
        action="store_true",
        help="show which token each layer would predict next, after each token (default: off)",
    )
    views.add_argument(
        "--attention",
        type=argument_type(layer_and_head),
        metavar="L.H",
        help="show what head H of block L attends to, both counted from 0 (default: off)",
    )
    output = parser.add_argument_group("output").add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one JSON object with all numbers (default: a table)")
    output.add_argument(
        "--png", metavar="FILE", help="draw the view into FILE, which needs the extra plot (default: a table)"
    )
    add_model_flags(parser)


def run(args: argparse.Namespace) -> None:
    """Print the view, or write its picture."""
    text = read_argument(args.text)
    if not text:
        raise ValueError("the text is empty; give at least one character")
    if args.png is not None:
        from gpt2_tf.inside.figures import check_matplotlib

        check_matplotlib()  # before TensorFlow is imported and the weights are read, which takes seconds
    from gpt2_tf import load

    model, enc = load(model_name(args), args.models_dir, args.step)
    enc = apply_allow_special(args, enc)
    if args.attention is not None:
        numbers, rows, draw = attention_view(model, enc, text, *args.attention)
    else:
        numbers, rows, draw = (lens_view if args.lens else surprise_view)(model, enc, text)
    if args.png is not None:
        from gpt2_tf.files.png import write_png

        write_png(draw(), args.png)
    elif args.json:
        print(json.dumps(numbers))
    else:
        print(escape_for_terminal(table(rows)))


def surprise_view(model: "GPT2", enc: "Encoder", text: str) -> View:
    """The surprise and the rank of each token."""
    from gpt2_tf.inside import surprise
    from gpt2_tf.inside.figures import surprise_figure, token_labels

    found = surprise(model, enc, text)
    labels = token_labels(enc, found.ids)
    numbers = {"tokens": labels, **{name: values.tolist() for name, values in found._asdict().items()}}
    rows = [["nats", "rank", "token"]]
    rows += [
        [f"{nats:.2f}", str(rank), label] for nats, rank, label in zip(found.nats, found.ranks, labels, strict=True)
    ]
    return numbers, rows, lambda: surprise_figure(enc, found)


def lens_view(model: "GPT2", enc: "Encoder", text: str) -> View:
    """The most likely next token after each token, for each layer."""
    from gpt2_tf.inside import logit_lens
    from gpt2_tf.inside.figures import layer_names, lens_figure, token_labels

    ids = enc.encode(text)
    lens = logit_lens(model, ids, min(TOP, enc.n_vocab))
    labels, layers = token_labels(enc, ids), layer_names(model.hparams.n_layer)
    numbers = {
        "tokens": labels,
        "ids": ids,
        "layers": layers,
        "top_tokens": [[token_labels(enc, top) for top in layer] for layer in lens.ids],
        "top_ids": lens.ids.tolist(),
        "probabilities": lens.probabilities.tolist(),
    }
    columns = [labels, *(token_labels(enc, layer) for layer in lens.ids[..., 0])]
    rows = [["token", *layers], *map(list, zip(*columns, strict=True))]
    return numbers, rows, lambda: lens_figure(enc, ids, lens)


def attention_view(model: "GPT2", enc: "Encoder", text: str, layer: int, head: int) -> View:
    """What one head attends to. The table has the three tokens that each token attends to most."""
    from gpt2_tf.inside.figures import attention_figure, token_labels

    n_layer, n_head = model.hparams.n_layer, model.hparams.n_head
    if layer >= n_layer or head >= n_head:
        raise ValueError(
            f"--attention is {layer}.{head}, but the model has the blocks 0 to {n_layer - 1}, and in each the heads 0 "
            f"to {n_head - 1}"
        )
    ids = enc.encode(text)
    labels = token_labels(enc, ids)
    weights = model.inspect([ids], "attentions").attentions[layer, 0, head]
    numbers = {"tokens": labels, "ids": ids, "layer": layer, "head": head, "weights": weights.tolist()}
    rows = [["token", "attends to"]]
    for label, row in zip(labels, weights, strict=True):
        most = [place for place in row.argsort()[::-1][:3] if row[place] > 0]
        rows.append([label, ", ".join(f"{labels[place]} ({place}) {row[place]:.2f}" for place in most)])
    return numbers, rows, lambda: attention_figure(enc, ids, weights)


def table(rows: list[list[str]]) -> str:
    """Rows as lines, in columns that are wide enough. The last column is not padded.

    Example:
        >>> print(table([["nats", "token"], ["12.50", " lord"]]))
        nats   token
        12.50   lord
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[-1] = 0
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
