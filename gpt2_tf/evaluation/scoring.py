"""Scores of rows of tokens, which all measures are made of: computed in batches, and kept in a journal."""

import math
from collections.abc import Collection, Sequence

import numpy as np

from encoder import Encoder
from gpt2_tf.files import progress
from gpt2_tf.files.journal import Journal
from gpt2_tf.files.shard import UNSHARDED
from gpt2_tf.generation.likelihood import Likelihood, Row, score_in_batches
from gpt2_tf.hparams import is_whole
from gpt2_tf.model.gpt2 import GPT2


def continuation_row(enc: Encoder, context: str, continuation: str) -> Row:
    """Both together, the continuation scored; white space between them is its, as the harness has it."""
    ids = enc.encode(context + continuation)
    before = enc.encode(context.rstrip())
    if not before:
        return Row([enc.end_of_text, *ids], len(ids))
    return Row(ids, len(ids) - len(before))


def checked_row(model: GPT2, row: Row, where: str) -> Row:
    n_ctx = model.hparams.n_ctx
    if len(row.ids) > n_ctx + 1:
        raise ValueError(
            f"{where} has {len(row.ids):,} tokens, but the model reads at most {n_ctx:,}, and the last is not read; "
            "shorten its beginning"
        )
    if row.count < 1:
        raise ValueError(f"{where} has a continuation without a token of its own; put the space before it, not after")
    return row


def score_rows(
    model: GPT2,
    rows: Sequence[Row],
    batch_size: int,
    bar: bool,
    record: Journal | None,
    never: Collection[int] = (),
) -> list[Likelihood] | None:
    """Of each row, with those in the record; None where other shards of it aren't done yet."""
    if not is_whole(batch_size, 1, 2**31 - 1):
        raise ValueError(f"batch_size is {batch_size!r}, but must be a whole number, at least 1")
    done, shard = (frozenset(), UNSHARDED) if record is None else (frozenset(record.results), record.shard)
    numbered = score_in_batches(model, rows, batch_size, never, done, shard)
    if bar:
        numbered = progress.bar(numbered, initial=len(done), total=shard.n_rows(len(rows), batch_size), unit="row")
    if record is None:
        found = dict(numbered)
    else:
        for number, score in numbered:
            record.add(number, {name: values.tolist() for name, values in score._asdict().items()})
        if (kept := record.collect(len(rows))) is None:
            return None
        found = {number: _score(**fields) for number, fields in kept.items()}
    return [found[number] for number in range(len(rows))]


def _score(logprobs: list[float], greedy: list[bool], filtered: list[bool]) -> Likelihood:
    """From a record, to the last bit."""
    return Likelihood(np.array(logprobs, np.float32), np.array(greedy), np.array(filtered))


def perplexity_of(nats: float, count: int) -> float | None:
    """Perplexity; None where a float has no number for it."""
    return math.exp(nats / count) if count and nats / count < 700 else None
