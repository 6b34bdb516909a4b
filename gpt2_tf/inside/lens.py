"""The logit lens: what the model would predict if its blocks ended earlier.

Source: "interpreting GPT: the logit lens" (nostalgebraist, 2020).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from gpt2_tf.hparams import is_whole
from gpt2_tf.model.gpt2 import GPT2
from gpt2_tf.model.interventions import Intervened


class Lens(NamedTuple):
    """The most likely next tokens after each token of a text, for each layer. The most likely comes first.

    Layer 0 reads the embeddings, and layer i the residual stream after i blocks. The last layer is the model's own
    prediction.

    Attributes:
        ids: int32 [n_layer + 1, seq, k].
        probabilities: float32 [n_layer + 1, seq, k].

    Example:
        >>> lens = logit_lens(model, enc.encode("ROMEO:"), k=3)
        >>> lens.probabilities.shape == (model.hparams.n_layer + 1, len(enc.encode("ROMEO:")), 3)
        True
    """

    ids: np.ndarray
    probabilities: np.ndarray


def logit_lens(model: GPT2 | Intervened, ids: Sequence[int], k: int = 5) -> Lens:
    """Map the residual stream after each block to tokens, by `ln_f` and the tied embedding `wte`.

    The logits of one layer at a time are in memory: len(ids) x n_vocab x 4 bytes.

    Args:
        model: a GPT2, with or without interventions.
        ids: the token ids of one text, at most n_ctx.
        k: how many tokens to return for each place, from 1 to n_vocab.

    Raises:
        ValueError: `ids` are not token ids that fit the model, or `k` is out of range.

    Example:
        >>> ids = enc.encode("ROMEO:")
        >>> lens = logit_lens(model, ids)
        >>> [enc.decode([layer[-1, 0]]) for layer in lens.ids][-1]  # after the last layer and the last token
        '\\n'
    """
    n_vocab = model.hparams.n_vocab
    if not is_whole(k, 1, n_vocab):
        raise ValueError(f"k is {k!r}, but must be a whole number from 1 to {n_vocab}, the size of the vocabulary")
    states = model.inspect([ids], "hidden_states").hidden_states
    layers = []
    for state in states:
        logits = model.logits(tf.cast(model.ln_f(state), model.compute_dtype))[0]  # [seq, n_vocab]
        layers.append([part.numpy() for part in tf.math.top_k(tf.nn.softmax(logits), k)])
    probabilities, tokens = (np.stack(part) for part in zip(*layers, strict=True))
    return Lens(tokens, probabilities)
