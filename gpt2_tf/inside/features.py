"""A vector per text, from the hidden states of one layer, for another model to learn from."""

from collections.abc import Sequence

import numpy as np

from encoder import Encoder
from gpt2_tf.files import interrupt
from gpt2_tf.generation.generate import check_vocabulary, list_texts
from gpt2_tf.hparams import is_whole
from gpt2_tf.model.gpt2 import GPT2
from gpt2_tf.model.inspection import right_pad
from gpt2_tf.model.interventions import Intervened

POOLS = ("last", "mean")


def features(
    model: GPT2 | Intervened,
    enc: Encoder,
    texts: str | Sequence[str],
    *,
    layer: int | None = None,
    pool: str = "last",
    batch_size: int = 16,
) -> np.ndarray:
    """Return one vector per text.

    Args:
        model: a GPT2, with or without interventions.
        enc: the model's vocabulary.
        texts: one text or several, each of 1 to n_ctx tokens.
        layer: a layer of `Inspection.hidden_states`, from 0 (the embeddings) to n_layer (the stream after the last
            block). None, the default, takes the last layer after `ln_f`, from which the logits are computed.
        pool: "last" (the default) takes the vector of the last token, which has read the whole text. "mean" takes the
            mean over the tokens.
        batch_size: how many texts are computed together, at least 1. Texts of similar length share a batch.

    Returns:
        float32 [len(texts), n_embd].

    Raises:
        TypeError: a text is not a str.
        ValueError: a text is empty or longer than the model's window, or a setting is out of range.

    Example:
        >>> features(model, enc, ["Good night", "O Romeo, Romeo!"], layer=2, pool="mean").shape
        (2, 256)
    """
    check_vocabulary(model, enc)
    texts = [texts] if isinstance(texts, str) else list_texts("texts", texts)
    n_layer, n_ctx = model.hparams.n_layer, model.hparams.n_ctx
    if layer is not None and not is_whole(layer, 0, n_layer):
        raise ValueError(f"layer is {layer!r}, but must be a whole number from 0 to {n_layer}, or None")
    if pool not in POOLS:
        raise ValueError(f"pool is {pool!r}, but must be {' or '.join(map(repr, POOLS))}")
    if not is_whole(batch_size, 1, 2**31 - 1):
        raise ValueError(f"batch_size is {batch_size!r}, but must be a whole number of at least 1")
    rows = []
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise TypeError(f"text {number} is {text!r:.60}, but must be a str")
        rows.append(enc.encode(text))
        if not 1 <= len(rows[-1]) <= n_ctx:
            raise ValueError(f"text {number} has {len(rows[-1]):,} tokens, but must have 1 to {n_ctx:,}")
    wanted = None if layer is None else "embed" if layer == 0 else f"h{layer - 1}"
    found = np.empty([len(rows), model.hparams.n_embd], np.float32)
    by_length = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    for first in range(0, len(rows), batch_size):
        interrupt.raise_dropped_ctrl_c()
        numbers = by_length[first : first + batch_size]
        states = _states([rows[number] for number in numbers], model, wanted)
        for number, state in zip(numbers, states, strict=True):
            state = state[: len(rows[number])]  # [tokens, n_embd]
            found[number] = state[-1] if pool == "last" else state.mean(axis=0, dtype=np.float32)
    return found


def _states(rows: Sequence[Sequence[int]], model: GPT2 | Intervened, wanted: str | None) -> np.ndarray:
    """The hidden states at the place `wanted`, or after `ln_f` for None: [batch, seq, n_embd], right-padded."""
    tokens, _ = right_pad(rows, model.hparams)
    states = []

    def keep(*names_and_x):
        *names, x = names_and_x
        if names == [wanted]:
            states.append(x)
        return x

    last, _ = model.hidden_states(tokens, tap=keep)
    return (states[0] if wanted else last).numpy()
