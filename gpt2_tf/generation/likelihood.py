"""Token ids -> how likely each of a row's last ones is after those before it."""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from gpt2_tf.files.shard import UNSHARDED, Shard
from gpt2_tf.generation.decoding import check_finite, pad
from gpt2_tf.model import loss
from gpt2_tf.model.gpt2 import GPT2

BATCH_SIZE = 8


class Row(NamedTuple):
    """Token ids, int [seq], and how many at their end are scored: at most seq - 1."""

    ids: Sequence[int] | np.ndarray
    count: int


class Likelihood(NamedTuple):
    """Of each scored token of a row, [count]."""

    logprobs: np.ndarray  # float32, nats
    greedy: np.ndarray  # bool: no token is likelier
    filtered: np.ndarray  # bool: none is but those of `never`, and it is none of them


def likelihoods(
    model: GPT2,
    rows: Sequence[Row],
    batch_size: int = BATCH_SIZE,
    never: Collection[int] = (),
    done: Collection[int] = (),
    shard: Shard = UNSHARDED,
) -> Iterator[tuple[int, Likelihood]]:
    """Each row's number and likelihood, longest rows first; `batch_size` of like length are computed at a time.

    Rows whose numbers are `done` are left out, and those that aren't the shard's; what they come to depends on neither.

    Raises:
        ValueError: a row of more than n_ctx + 1 tokens, the last of which is not read; logits that are no numbers.
    """
    n_ctx, scorer = model.hparams.n_ctx, model.traced(_scorer)
    if rows and (longest := max(len(row.ids) for row in rows)) > n_ctx + 1:
        raise ValueError(f"{longest:,} tokens are given, but the model reads at most {n_ctx:,}, and not the last")
    mask = np.zeros(model.hparams.n_vocab, bool)
    mask[list(never)] = True
    by_length = sorted(range(len(rows)), key=lambda number: -len(rows[number].ids))
    for first in shard.batch_starts(len(rows), batch_size):
        numbers = by_length[first : first + batch_size]
        if all(number in done for number in numbers):
            continue
        tokens, start = pad([rows[number].ids for number in numbers])
        counts = np.array([rows[number].count for number in numbers], np.int32)
        found = [values.numpy() for values in scorer(tokens, start, *map(tf.constant, (counts, mask)))]
        check_finite(found[0])
        ends = np.cumsum(counts)[:-1]
        batch = map(Likelihood, *(np.split(values, ends) for values in found))
        yield from ((number, score) for number, score in zip(numbers, batch, strict=True) if number not in done)


def _scorer(model: GPT2) -> tf.types.experimental.PolymorphicFunction:
    """tokens, int32 [batch, seq], each row's start and count, and `never` -> `loss.likelihood`'s, row after row."""
    rows = tf.TensorSpec([None], tf.int32)
    never = tf.TensorSpec([model.hparams.n_vocab], tf.bool)

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, None], tf.int32), rows, rows, never])
    def score(tokens, start, count, never):
        h, _ = model.hidden_states(tokens[:, :-1], pad_lengths=start)
        seq = tf.shape(h)[1]
        scored = tf.range(seq) >= seq - count[:, None]  # [batch, seq - 1]
        return loss.likelihood(
            tf.boolean_mask(h, scored), model.tied_embedding(), tf.boolean_mask(tokens[:, 1:], scored), never
        )

    return score
