"""LAMBADA: how well a model predicts the last word of a text."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from encoder import Encoder
from gpt2_tf.evaluation.scoring import checked_row, continuation_row, perplexity_of, score_rows
from gpt2_tf.files.journal import Journal
from gpt2_tf.generation.generate import check_vocabulary
from gpt2_tf.generation.likelihood import BATCH_SIZE
from gpt2_tf.model.gpt2 import GPT2

# The English list of NLTK's stopwords corpus, as it was in 2019, but for the ends of contractions.
STOP_WORDS = """
i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself it its
itself they them their theirs themselves what which who whom this that these those am is are was were be been being have
has had having do does did doing a an the and but if or because as until while of at by for with about against between
into through during before after above below to from up down in out on off over under again further then once here there
when where why how all any both each few more most other some such no nor not only own same so than too very can will
just don should now
"""


def lambada(
    model: GPT2,
    enc: Encoder,
    texts: Sequence[str],
    *,
    batch_size: int = BATCH_SIZE,
    bar: bool = False,
    record: Journal | None = None,
    name: str = "texts",
) -> dict[str, Any] | None:
    """How well the last word of each text is predicted, in the ways that have been published.

    `last_word` is the harness's `lambada_openai`: right where each token of the word is the likeliest after the true
    ones before it; its perplexity is exp of the mean over texts of -log p(word). `last_word_filtered` is right where it
    is so once the tokens that are a stop word are left out for the word's first; the paper says of its accuracies that
    such a filter helped ("Language Models are Unsupervised Multitask Learners", 3.3). OpenAI published neither code
    nor list; this list is NLTK's. `last_token` scores the text's last token alone, which others found to come near the
    paper's accuracies (openai/gpt-2 issue 131, EleutherAI/lm-evaluation-harness issue 356).

    Raises:
        ValueError: a text without two words, or longer than n_ctx + 1 tokens; `name` and its number are in it.
    """
    check_vocabulary(model, enc)
    rows = []
    for number, text in enumerate(texts, start=1):
        context, _, word = text.rpartition(" ")
        if not context.strip() or not word.strip():
            raise ValueError(f"{name}: line {number} must end in a space and a word, but ends in {text[-40:]!r}")
        rows.append(checked_row(model, continuation_row(enc, context, f" {word}"), f"{name}: line {number}"))
    if not rows:
        raise ValueError(f"{name} is empty, so there is nothing to score")
    never = {ids[0] for word in STOP_WORDS.split() if len(ids := enc.encode(f" {word}")) == 1}
    scores = score_rows(model, rows, batch_size, bar, record, never)
    if scores is None:
        return None
    sums = [score.logprobs.sum(dtype=np.float64) for score in scores]
    right = [score.filtered[0] and score.greedy[1:].all() for score in scores]
    return {
        "texts": len(rows),
        "last_word": {
            "accuracy": float(np.mean([score.greedy.all() for score in scores])),
            "perplexity": perplexity_of(-sum(sums), len(rows)),
        },
        "last_word_filtered": {"accuracy": float(np.mean(right))},
        "last_token": {
            "accuracy": float(np.mean([score.greedy[-1] for score in scores])),
            "perplexity": perplexity_of(-sum(float(score.logprobs[-1]) for score in scores), len(rows)),
        },
    }
