"""The log-probabilities that every evaluation is computed from: computed in batches, and kept in a journal."""

import math
from collections.abc import Collection, Sequence

import numpy as np

from encoder import Encoder
from gpt2_tf.files import progress
from gpt2_tf.files.journal import Journal
from gpt2_tf.files.shard import UNSHARDED
from gpt2_tf.generation.engine import Engine, Likelihood, Row
from gpt2_tf.generation.likelihood import score_in_batches
from gpt2_tf.hparams import is_whole

MAX_EXPONENT = 700  # exp of more than about 709 is larger than any float64


def continuation_row(enc: Encoder, context: str, continuation: str) -> Row:
    """Return the token ids of a context and its continuation; the continuation's are scored.

    White space between the two belongs to the continuation, as in EleutherAI's harness. An empty context becomes
    `<|endoftext|>`.

    Example:
        >>> row = continuation_row(enc, "my lord", " is dead")
        >>> enc.decode(row.ids[-row.count:])
        ' is dead'
    """
    ids = enc.encode(context + continuation)
    context_length = len(enc.encode(context.rstrip()))
    if not context_length:
        return Row([enc.end_of_text, *ids], len(ids))
    return Row(ids, len(ids) - context_length)


def check_row(row: Row, n_ctx: int, where: str) -> None:
    """Raise ValueError unless the row fits a window of `n_ctx` tokens and has a token to score.

    Args:
        row: from `continuation_row`.
        n_ctx: the model's window, in tokens.
        where: the file and the number in it, for the error message.

    Example:
        >>> check_row(Row([1, 2, 3], count=1), n_ctx=2, where="examples.jsonl: passage 1")
    """
    if len(row.ids) > n_ctx + 1:
        raise ValueError(
            f"{where} has {len(row.ids):,} tokens, but must have at most {n_ctx + 1:,} (the model's window, and the "
            "last token, which the model only predicts); remove text from its beginning"
        )
    if row.count < 1:
        raise ValueError(
            f"{where} has a continuation whose first letters belong to the context's last token; put the space between "
            "them at the beginning of the continuation"
        )


def score_rows(
    engine: Engine,
    rows: Sequence[Row],
    *,
    batch_size: int,
    bar: bool = False,
    journal: Journal | None = None,
    excluded: Collection[int] = (),
) -> list[Likelihood] | None:
    """Score all rows, in order.

    Args:
        engine: the model to evaluate.
        rows: token ids, at most n_ctx + 1 per row.
        batch_size: rows per batch, at least 1; affects speed and memory only.
        bar: whether to show a progress bar on stderr.
        journal: keeps each row's scores as they are computed. Rows that it already holds are not computed again.
        excluded: token ids that `Likelihood.filtered` leaves out.

    Returns:
        One Likelihood per row. None when other shards of the journal have not finished.

    Raises:
        ValueError: `batch_size` is out of range, or the model's logits are not finite.

    Example:
        >>> from gpt2_tf.generation.engine import as_engine
        >>> (scores,) = score_rows(as_engine(model), [Row([10, 20, 30], count=2)], batch_size=8)
        >>> scores.logprobs.shape
        (2,)
    """
    if not is_whole(batch_size, 1, 2**31 - 1):
        raise ValueError(f"batch_size is {batch_size!r}, but must be a whole number of at least 1")
    done, shard = ((), UNSHARDED) if journal is None else (frozenset(journal.results), journal.shard)
    numbered = score_in_batches(engine, rows, batch_size, excluded, done, shard)
    if bar:
        numbered = progress.bar(numbered, initial=len(done), total=shard.n_rows(len(rows), batch_size), unit="row")
    if journal is None:
        scores = dict(numbered)
    else:
        for number, score in numbered:
            journal.add(number, {name: values.tolist() for name, values in score._asdict().items()})
        results = journal.collect(len(rows))
        if results is None:
            return None
        scores = {number: _from_journal(**fields) for number, fields in results.items()}
    return [scores[number] for number in range(len(rows))]


def _from_journal(logprobs: list[float], greedy: list[bool], filtered: list[bool]) -> Likelihood:
    """The same Likelihood, to the last bit: JSON keeps every float32 exactly."""
    return Likelihood(np.array(logprobs, np.float32), np.array(greedy), np.array(filtered))


def perplexity_of(nats: float, count: int) -> float | None:
    """exp(nats / count); None where `count` is 0 or the result is larger than any float.

    Args:
        nats: a negative log-likelihood.
        count: the number of tokens, words or bytes that it is for.

    Example:
        >>> perplexity_of(6.0, 3) == math.exp(2)
        True
        >>> perplexity_of(6.0, 0) is None
        True
    """
    return math.exp(nats / count) if count and nats / count < MAX_EXPONENT else None
