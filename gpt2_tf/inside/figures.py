"""Figures of what is inside the model. They need matplotlib, the extra `plot`."""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from encoder import Encoder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from gpt2_tf.inside.lens import Lens
    from gpt2_tf.inside.surprise import Surprise

MAX_TOKENS = 128  # what has room beside a matrix with a readable label for each token
LINE = 80  # characters per line of a coloured text
CHARACTER = 0.0836, 0.2  # width and height in inches of a character of 10 points, in matplotlib's monospaced font


def token_labels(enc: Encoder, ids: Sequence[int]) -> list[str]:
    r"""Return each token as text on one line, in which a newline is `\n`.

    Example:
        >>> token_labels(enc, enc.encode("my lord\n"))
        ['m', 'y', ' lord', '\\n']
    """
    return [json.dumps(enc.decode([int(id)]), ensure_ascii=False)[1:-1].replace('\\"', '"') for id in ids]


def attention_figure(enc: Encoder, ids: Sequence[int], weights: np.ndarray) -> "Figure":
    """Draw what one head attends to: a row for each token, and a column for each token that it reads.

    Args:
        enc: the model's vocabulary.
        ids: the token ids of the text, at most 128.
        weights: [seq, seq], such as `inside.attentions[layer, 0, head]`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the text is too long for a figure.

    Example:
        >>> ids = enc.encode("O Romeo, Romeo!")
        >>> figure = attention_figure(enc, ids, model.inspect([ids], "attentions").attentions[1, 0, 2])
        >>> figure.axes[0].get_xlabel()
        'token that is read'
    """
    size, labels = 2 + 0.25 * len(ids), token_labels(enc, ids)
    figure, axes = _matrix(weights, 1.5 + size, size, "attention", labels)
    axes.set_yticks(range(len(labels)), labels, fontsize=8, parse_math=False)
    axes.set_ylabel("token that reads")
    return figure


def lens_figure(enc: Encoder, ids: Sequence[int], lens: "Lens") -> "Figure":
    """Draw the most likely next token of each layer, coloured by its probability: a row per layer, the last on top.

    Args:
        enc: the model's vocabulary.
        ids: the token ids of the text, at most 128.
        lens: what `logit_lens` returned for them.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the text is too long for a figure.

    Example:
        >>> from gpt2_tf.inside import logit_lens
        >>> ids = enc.encode("O Romeo, Romeo!")
        >>> figure = lens_figure(enc, ids, logit_lens(model, ids))
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['embed', 'h0', 'h1', 'h2', 'h3']
    """
    probabilities = lens.probabilities[..., 0]  # [n_layer + 1, seq]
    layers = len(probabilities)
    size = 2.5 + 0.7 * len(ids), 1.5 + 0.3 * layers
    figure, axes = _matrix(probabilities, *size, "probability", token_labels(enc, ids))
    axes.set_yticks(range(layers), layer_names(layers - 1), fontsize=8)
    axes.set_ylabel("after")
    axes.invert_yaxis()
    for layer, tokens in enumerate(lens.ids[..., 0]):
        for place, label in enumerate(token_labels(enc, tokens)):
            color = "white" if probabilities[layer, place] > 0.6 else "black"
            axes.text(place, layer, label, ha="center", va="center", fontsize=8, color=color, parse_math=False)
    return figure


def surprise_figure(enc: Encoder, surprise: "Surprise") -> "Figure":
    """Draw a text whose tokens are coloured by their surprise, from white (0 nats) to red (10 nats and more).

    Args:
        enc: the model's vocabulary.
        surprise: what `surprise` returned for the text.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> from gpt2_tf.inside import surprise
        >>> figure = surprise_figure(enc, surprise(model, enc, "O Romeo, Romeo!"))
        >>> "".join(text.get_text() for text in figure.axes[0].texts)
        'O Romeo, Romeo!'
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    places, line, column = [], 0, 0
    for label, nats in zip(token_labels(enc, surprise.ids), surprise.nats, strict=True):
        if column and column + len(label) > LINE:
            line, column = line + 1, 0
        places.append((column, line, label, nats))
        column += len(label)
        if label.endswith("\\n"):
            line, column = line + 1, 0
    width, height = LINE * CHARACTER[0], (line + 1) * CHARACTER[1]  # inches
    bar = 0.7  # inches below the text
    figure = Figure(figsize=(width, height + bar))
    axes = figure.add_axes([0, bar / (height + bar), 1, height / (height + bar)], xlim=(0, LINE), ylim=(line + 1, 0))
    axes.axis("off")
    colors = axes.scatter([], [], c=[], cmap="Reds", vmin=0, vmax=10)
    style = {"fontsize": 10, "family": "monospace", "va": "center", "parse_math": False}
    for column, line, label, nats in places:
        axes.barh(line + 0.5, len(label), height=1, left=column, color=colors.to_rgba(nats))
        axes.text(column, line + 0.5, label, color="white" if nats > 6 else "black", **style)
    scale = figure.add_axes([0.05, 0.45 / (height + bar), 0.9, 0.12 / (height + bar)])
    figure.colorbar(colors, cax=scale, orientation="horizontal", extend="max").set_label("nats", fontsize=8)
    scale.tick_params(labelsize=8)
    return figure


def layer_names(n_layer: int) -> list[str]:
    """Return the names of the layers of the lens: the embeddings, then the blocks.

    Example:
        >>> layer_names(2)
        ['embed', 'h0', 'h1']
    """
    return ["embed", *(f"h{layer}" for layer in range(n_layer))]


def check_matplotlib() -> None:
    """Raise ImportError with the command that installs matplotlib, if it is missing.

    Example:
        >>> check_matplotlib()
    """
    if find_spec("matplotlib") is None:
        raise ImportError("figures need matplotlib: pip install 'gpt2-tf[plot]'")


def _matrix(values: np.ndarray, width: float, height: float, name: str, labels: list[str]) -> "tuple[Figure, Axes]":
    """A figure with a matrix of shares from 0 to 1, and a label for each column. Returns the figure and its axes."""
    check_matplotlib()
    from matplotlib.figure import Figure

    if len(labels) > MAX_TOKENS:
        raise ValueError(f"the text has {len(labels)} tokens, but a figure has room for {MAX_TOKENS}; shorten the text")
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot(xlabel="token that is read")
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    figure.colorbar(image, label=name)
    axes.set_xticks(range(len(labels)), labels, fontsize=8, rotation=90, parse_math=False)
    return figure, axes
