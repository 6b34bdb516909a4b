"""How unexpected each token of a text is."""

from typing import NamedTuple

import numpy as np

from encoder import Encoder
from gpt2_tf.generation.generate import check_vocabulary, encode_prompt
from gpt2_tf.model.gpt2 import GPT2
from gpt2_tf.model.interventions import Intervened


class Surprise(NamedTuple):
    """The surprise of each token of a text.

    Attributes:
        ids: int32 [seq], the token ids of the text.
        nats: float32 [seq], the negative natural log-probability of each token, given all before it.
        ranks: int32 [seq], 1 for the most likely token, 2 for the second, and so on.

    Example:
        >>> found = surprise(model, enc, "my lord")
        >>> enc.decode(found.ids), found.nats.shape == found.ranks.shape
        ('my lord', True)
    """

    ids: np.ndarray
    nats: np.ndarray
    ranks: np.ndarray


def surprise(model: GPT2 | Intervened, enc: Encoder, text: str, context: str | None = None) -> Surprise:
    """Return how unexpected each token of a text is, and its rank among all tokens.

    Args:
        model: a GPT2, with or without interventions.
        enc: the model's vocabulary.
        text: the text, at least one token.
        context: what precedes the text, and has no surprise itself. None is `<|endoftext|>` alone.

    Raises:
        TypeError: the text or the context is not a str.
        ValueError: the text or the context is empty, or they have more than n_ctx + 1 tokens together.

    Example:
        >>> from gpt2_tf import score
        >>> found, (logprobs,) = surprise(model, enc, "my lord"), score(model, enc, "my lord")
        >>> bool(abs(found.nats + logprobs).max() < 1e-4)
        True
    """
    check_vocabulary(model, enc)
    if not isinstance(text, str):
        raise TypeError(f"the text is {text!r:.60}, but must be a str")
    ids = enc.encode(text)
    if not ids:
        raise ValueError("the text is empty; give at least one character")
    row = encode_prompt(enc, context) + ids
    n_ctx = model.hparams.n_ctx
    if len(row) > n_ctx + 1:
        raise ValueError(
            f"the context and the text have {len(row):,} tokens together, but must have at most {n_ctx + 1:,} "
            "(the model's window and the last token, which is not read); shorten them"
        )
    logits = model.inspect([row[:-1]], "logits").logits[0, -len(ids) :]  # [seq, n_vocab]
    target = np.take_along_axis(logits, np.array(ids)[:, None], axis=1)
    # The largest logit is subtracted, so that `exp` cannot overflow.
    top = logits.max(axis=1, keepdims=True)
    total = np.exp(logits - top).sum(axis=1, dtype=np.float64)
    nats = np.log(total) - (target - top)[:, 0]
    ranks = 1 + (logits > target).sum(axis=1)
    return Surprise(np.array(ids, np.int32), nats.astype(np.float32), ranks.astype(np.int32))
