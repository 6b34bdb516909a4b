"""Perplexity of a text, by windows that overlap."""

import math
from collections.abc import Sequence

import numpy as np

from encoder import Encoder
from gpt2_tf.evaluation.scoring import perplexity_of, score_rows
from gpt2_tf.files.journal import Journal
from gpt2_tf.generation.generate import check_vocabulary
from gpt2_tf.generation.likelihood import BATCH_SIZE, Row
from gpt2_tf.hparams import is_whole
from gpt2_tf.model.gpt2 import GPT2


def perplexity(
    model: GPT2,
    enc: Encoder,
    text: str,
    *,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = BATCH_SIZE,
    bar: bool = False,
    record: Journal | None = None,
) -> dict[str, float | None] | None:
    """How unlikely a text is after `<|endoftext|>`, each of its tokens scored once.

    `nats` is its negative log-likelihood; perplexity is exp(nats / count) per token, per word (what is between white
    space) and per byte of UTF-8, or None where a float can't hold it or the count is 0. The paper doesn't say how its
    windows overlap; `stride` = `window` is the harness's rolling likelihood.

    Args:
        window: tokens read at a time; None takes n_ctx.
        stride: how far the window moves: a token is predicted from at least `window` - `stride` tokens before it, or
            from all there are; None takes half of the window.
        batch_size: windows computed at a time.
        bar: show on stderr how far it is.
        record: keeps each window's scores as they come, so that a run that was killed goes on, and processes share one
            by its shards; where theirs aren't done yet, None comes back.

    Raises:
        ValueError: an argument out of its range, or an empty text.
    """
    check_vocabulary(model, enc)
    window, stride = window_and_stride(model.hparams.n_ctx, window, stride)
    if not text:
        raise ValueError("the text is empty, so there is nothing to score")
    rows = windows([enc.end_of_text, *enc.encode(text)], window, stride)
    scores = score_rows(model, rows, batch_size, bar, record)
    if scores is None:
        return None
    nats = -sum(float(score.logprobs.sum(dtype=np.float64)) for score in scores)
    counts = {"token": sum(row.count for row in rows), "word": len(text.split()), "byte": len(text.encode())}
    return {
        "nats": nats,
        **{f"{unit}s": count for unit, count in counts.items()},
        **{f"{unit}_perplexity": perplexity_of(nats, count) for unit, count in counts.items()},
        "bits_per_byte": nats / math.log(2) / counts["byte"],
    }


def window_and_stride(n_ctx: int, window: int | None, stride: int | None) -> tuple[int, int]:
    """Both, where they are None by default; ValueError where one is out of its range."""
    window = n_ctx if window is None else window
    if not is_whole(window, 1, n_ctx):
        raise ValueError(f"window is {window!r}, but must be a whole number, 1 to the model's n_ctx, {n_ctx}")
    stride = max(1, window // 2) if stride is None else stride
    if not is_whole(stride, 1, window):
        raise ValueError(f"stride is {stride!r}, but must be a whole number, 1 to window, {window}")
    return window, stride


def windows(ids: Sequence[int], window: int, stride: int) -> list[Row]:
    """Rows that score all ids but the first once: a whole window's, then `stride` at a time, after all that fits."""
    ids = np.asarray(ids, np.int32)
    ends = [*range(window + 1, len(ids), stride), len(ids)] if len(ids) > 1 else []
    begins = [1, *ends[:-1]]
    return [Row(ids[max(0, end - window - 1) : end], end - begin) for begin, end in zip(begins, ends, strict=True)]
