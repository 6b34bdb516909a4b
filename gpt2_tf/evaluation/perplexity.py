"""Perplexity of a text: a window moves over the text, and each token is scored once."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from encoder import Encoder
from gpt2_tf.evaluation.scoring import perplexity_of, score_rows
from gpt2_tf.files.journal import Journal
from gpt2_tf.generation.engine import Engine, Row, as_engine
from gpt2_tf.generation.generate import check_vocabulary
from gpt2_tf.generation.likelihood import BATCH_SIZE
from gpt2_tf.hparams import is_whole

if TYPE_CHECKING:
    from gpt2_tf.model.gpt2 import GPT2


def perplexity(
    model: "GPT2 | Engine",
    enc: Encoder,
    text: str,
    *,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = BATCH_SIZE,
    bar: bool = False,
    journal: Journal | None = None,
) -> dict[str, float | None] | None:
    """Measure how well a model predicts a text.

    The text follows `<|endoftext|>`. Where it is longer than the window, the window moves over it by `stride` tokens,
    and each token is scored once. The GPT-2 paper does not say how its windows overlap. With `stride` = `window` they
    do not, as in `loglikelihood_rolling` of EleutherAI's harness.

    Args:
        model: the model to evaluate, a GPT2 or an Engine.
        enc: its encoder, of the same vocabulary.
        text: at least one character.
        window: tokens that the model reads at once, 1 to n_ctx. Default: n_ctx.
        stride: tokens by which the window moves, 1 to `window`. Default: half of the window. Each token is predicted
            from at least `window` - `stride` tokens before it, or from all of them where there are fewer.
        batch_size: windows per batch, at least 1; affects speed and memory only. Default: 8.
        bar: whether to show a progress bar on stderr.
        journal: keeps each window's scores, so that a killed run resumes and several processes share a run.

    Returns:
        `nats`: the negative log-likelihood of the text. `tokens`, `words`, `bytes`: how many the text has; words are
        separated by white space, bytes are those of UTF-8. `token_perplexity`, `word_perplexity`, `byte_perplexity`:
        exp(nats / count), or None where that is larger than any float or the count is 0. `bits_per_byte`: nats /
        log(2) / bytes. The result is None when other shards of the journal have not finished.

    Raises:
        ValueError: an argument is out of its range, or the text is empty.

    Example:
        >>> from gpt2_tf import evaluation
        >>> result = evaluation.perplexity(model, enc, "What light through yonder window breaks?")
        >>> result["tokens"], result["words"], result["bytes"]
        (16, 6, 40)
        >>> result["token_perplexity"] == math.exp(result["nats"] / 16)
        True
    """
    engine = as_engine(model)
    check_vocabulary(engine, enc)
    window, stride = resolve_window(engine.hparams.n_ctx, window, stride)
    if not text:
        raise ValueError("the text is empty, so there is nothing to score; give at least one character")
    rows = window_rows([enc.end_of_text, *enc.encode(text)], window, stride)
    scores = score_rows(engine, rows, batch_size=batch_size, bar=bar, journal=journal)
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


def resolve_window(n_ctx: int, window: int | None, stride: int | None) -> tuple[int, int]:
    """The window and the stride in tokens, with None replaced by its default.

    Raises:
        ValueError: one of them is out of its range.

    Example:
        >>> resolve_window(1024, None, None)
        (1024, 512)
    """
    window = n_ctx if window is None else window
    if not is_whole(window, 1, n_ctx):
        raise ValueError(f"window is {window!r}, but must be a whole number from 1 to {n_ctx}, the model's n_ctx")
    stride = max(1, window // 2) if stride is None else stride
    if not is_whole(stride, 1, window):
        raise ValueError(f"stride is {stride!r}, but must be a whole number from 1 to {window}, the window")
    return window, stride


def window_rows(ids: Sequence[int], window: int, stride: int) -> list[Row]:
    """Cut a text into overlapping rows, so that each id but the first is scored in exactly one row.

    The first row scores all of its ids; each further row scores the `stride` ids that are new in it.

    Args:
        ids: the token ids of a text, after the token that it follows.
        window: the most ids that the model reads per row; a row has one more, which is only scored.
        stride: ids by which the window moves.

    Example:
        >>> [(row.ids.tolist(), row.count) for row in window_rows(range(8), window=4, stride=2)]
        [([0, 1, 2, 3, 4], 4), ([2, 3, 4, 5, 6], 2), ([3, 4, 5, 6, 7], 1)]
    """
    ids = np.asarray(ids, np.int32)
    ends = [*range(window + 1, len(ids), stride), len(ids)] if len(ids) > 1 else []
    first_scored = [1, *ends[:-1]]
    return [
        Row(ids[max(0, end - window - 1) : end], end - first) for first, end in zip(first_scored, ends, strict=True)
    ]
