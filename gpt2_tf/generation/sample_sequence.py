"""OpenAI's `sample_sequence`: token ids in, token ids out, with OpenAI's arguments."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from gpt2_tf.generation.engine import Engine, as_engine
from gpt2_tf.generation.generate import check_length
from gpt2_tf.generation.params import SamplingParams
from gpt2_tf.hparams import HParams, is_whole

if TYPE_CHECKING:
    from gpt2_tf.model.gpt2 import GPT2


def sample_sequence(
    model: "GPT2 | Engine",
    *,
    length: int,
    context: Sequence | np.ndarray | tf.Tensor | None = None,
    start_token: int | None = None,
    batch_size: int | None = None,
    temperature: float = 1,
    top_k: int = 0,
    top_p: float = 1,
    seed: int | None = None,
) -> tf.Tensor:
    """Sample exactly `length` tokens after each row of the context. Nothing stops a row earlier.

    Like OpenAI's, this function knows no vocabulary. So, unlike `generate`, it may sample the unused ids of a padded
    model.

    Args:
        model: a GPT2 or an Engine.
        length: the number of new tokens per row, at least 1; context and new tokens are at most n_ctx + 1 together.
        context: token ids, int [seq] or [batch_size, seq]. Give either a context or a start_token.
        start_token: the id of the token with which each row begins.
        batch_size: the number of rows. Default: the context's number of rows, or 1.
        temperature: divides the logits; at least 0. 0 always takes the most likely token.
        top_k: keep only this many of the most likely tokens; 0 (the default) keeps all.
        top_p: keep the most likely tokens whose probabilities sum to at most this; above 0. 1 (the default) keeps all.
        seed: a whole number of 64 bits. A row's tokens depend on the seed and on the row's number alone. None draws a
            seed from Python's `random`.

    Returns:
        int32 [batch_size, seq + length], with the context.

    Raises:
        TypeError: a setting that must be a number has another type.
        ValueError: an argument outside its range; the message gives the range.

    Source: OpenAI's `src/sample.py`.

    Example:
        >>> tokens = sample_sequence(model, length=2, start_token=enc.end_of_text, batch_size=3, seed=1, top_k=40)
        >>> tokens.shape, tokens.dtype
        (TensorShape([3, 3]), tf.int32)
    """
    if (context is None) == (start_token is None):
        raise ValueError("give either a context or a start_token, and not both")
    if batch_size is not None and not is_whole(batch_size, 1, 2**31 - 1):
        raise ValueError(f"batch_size is {batch_size!r}, but must be a whole number of at least 1")
    try:
        context = np.asarray([start_token] if context is None else context)
    except ValueError:
        raise ValueError(
            "the context's rows have different lengths, but must have the same; `generate` takes any lengths"
        ) from None
    if context.ndim == 1:
        context = np.tile(context, [1 if batch_size is None else batch_size, 1])
    if batch_size is not None and len(context) != batch_size:
        raise ValueError(f"the context has {len(context)} rows, but batch_size is {batch_size}; leave one of them out")
    if context.ndim != 2 or 0 in context.shape or context.dtype.kind not in "iu":
        raise ValueError(
            f"the context is {context.dtype} {list(context.shape)}, but must be whole numbers, [batch_size, seq], "
            "with at least one token per row"
        )
    engine = as_engine(model)
    check_ids(engine.hparams, context)
    check_length(engine.hparams, context.shape[1], length)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed).with_seed()
    rows = context.tolist()
    for chunks in engine.extend(
        context.tolist(),
        params,
        limits=[length] * len(rows),
        row_numbers=range(len(rows)),
        stop_table=np.zeros([1, engine.hparams.n_vocab], np.int32),
    ):
        for chunk in chunks:
            rows[chunk.row] += chunk.ids
    return tf.constant(rows, tf.int32)


def check_ids(hparams: HParams, ids: np.ndarray) -> None:
    """Raise ValueError for an id outside the vocabulary.

    On a GPU, `tf.gather` silently returns zeros for such an id, so the ids are checked before the model runs.

    Example:
        >>> check_ids(model.hparams, np.array([5, 1000000]))
        Traceback (most recent call last):
        ValueError: token id 1000000 is out of range: the vocabulary's ids are 0 to 1023
    """
    wrong = ids[(ids < 0) | (ids >= hparams.n_vocab)]
    if wrong.size:
        raise ValueError(f"token id {wrong[0]} is out of range: the vocabulary's ids are 0 to {hparams.n_vocab - 1}")
