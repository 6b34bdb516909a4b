"""How likely given texts are: `score` for texts, `score_in_batches` for rows of token ids."""

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from encoder import Encoder
from gpt2_tf.files import interrupt
from gpt2_tf.files.shard import UNSHARDED, Shard
from gpt2_tf.generation.engine import Engine, Likelihood, Row, as_engine
from gpt2_tf.generation.generate import check_vocabulary, encode_prompt, list_texts
from gpt2_tf.hparams import is_whole

if TYPE_CHECKING:
    from gpt2_tf.model.gpt2 import GPT2

BATCH_SIZE = 8


def score(
    model: "GPT2 | Engine",
    enc: Encoder,
    texts: str | Sequence[str],
    contexts: str | Sequence[str] | None = None,
    *,
    batch_size: int = BATCH_SIZE,
) -> list[list[float]]:
    """Return the natural log-probability of each token of each text.

    Args:
        model: a GPT2 or an Engine.
        enc: the model's vocabulary.
        texts: one text or several. A text's tokens are those of `enc.encode`.
        contexts: what precedes each text and is not scored. None is `<|endoftext|>` alone.
        batch_size: how many texts are computed together, at least 1; it changes only the speed.

    Raises:
        ValueError: an empty context, or more tokens than the model's window.

    Example:
        >>> (logprobs,) = score(model, enc, " I am.", "ROMEO:")
        >>> len(logprobs) == len(enc.encode(" I am.")), max(logprobs) <= 0
        (True, True)
    """
    engine = as_engine(model)
    check_vocabulary(engine, enc)
    texts = [texts] if isinstance(texts, str) else list_texts("texts", texts)
    contexts = [contexts] if isinstance(contexts, str) else contexts
    contexts = [None] * len(texts) if contexts is None else list_texts("contexts", contexts)
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"a text is {text!r:.60}, but must be a str")
    if not is_whole(batch_size, 1, 2**31 - 1):
        raise ValueError(f"batch_size is {batch_size!r}, but must be a whole number of at least 1")
    if len(contexts) != len(texts):
        raise ValueError(f"there are {len(texts)} texts, but {len(contexts)} contexts; give one context per text")
    targets = [enc.encode(text) for text in texts]
    rows = [encode_prompt(enc, context) + ids for context, ids in zip(contexts, targets, strict=True)]
    n_ctx = engine.hparams.n_ctx
    for row in rows:
        if len(row) > n_ctx + 1:
            raise ValueError(
                f"a context and its text have {len(row):,} tokens together, but must have at most {n_ctx + 1:,} "
                "(the model's window and the last token, which is not read); shorten the context"
            )
    scores = dict(
        score_in_batches(engine, [Row(row, len(ids)) for row, ids in zip(rows, targets, strict=True)], batch_size)
    )
    return [scores[number].logprobs.tolist() for number in range(len(rows))]


def score_in_batches(
    model: "GPT2 | Engine",
    rows: Sequence[Row],
    batch_size: int = BATCH_SIZE,
    excluded: Collection[int] = (),
    done: Collection[int] = (),
    shard: Shard = UNSHARDED,
) -> Iterator[tuple[int, Likelihood]]:
    """Score rows of token ids in batches of similar length, longest rows first. Yield each row's number and scores.

    A batch that holds a row of `done` is computed whole, so that each row keeps its neighbours and its exact numbers.

    Args:
        model: a GPT2 or an Engine.
        rows: token ids, at most n_ctx + 1 per row.
        batch_size: how many rows are computed together.
        excluded: token ids that `Likelihood.filtered` does not count.
        done: the numbers of the rows that are not yielded, because they are already known.
        shard: the share of the rows that this process computes.

    Raises:
        ValueError: a row of more than n_ctx + 1 tokens, or logits that are not finite.

    Example:
        >>> rows = [Row(enc.encode("ROMEO:"), 1), Row(enc.encode("O Romeo, Romeo!"), 3)]
        >>> {number: scores.logprobs.shape for number, scores in score_in_batches(model, rows)}
        {1: (3,), 0: (1,)}
    """
    engine = as_engine(model)
    n_ctx = engine.hparams.n_ctx
    if rows and (longest := max(len(row.ids) for row in rows)) > n_ctx + 1:
        raise ValueError(f"a row has {longest:,} tokens, but must have at most {n_ctx + 1:,}, the model's n_ctx + 1")
    by_length = sorted(range(len(rows)), key=lambda number: -len(rows[number].ids))
    for first in shard.batch_starts(len(rows), batch_size):
        numbers = by_length[first : first + batch_size]
        if all(number in done for number in numbers):
            continue
        interrupt.raise_dropped_ctrl_c()
        batch = engine.likelihoods([rows[number] for number in numbers], excluded)
        for number, likelihood in zip(numbers, batch, strict=True):
            if number not in done:
                yield number, likelihood
