"""LAMBADA: how well a model predicts the last word of a passage."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from encoder import Encoder
from gpt2_tf.evaluation.scoring import check_row, continuation_row, perplexity_of, score_rows
from gpt2_tf.files.journal import Journal
from gpt2_tf.generation.engine import Engine, Row, as_engine
from gpt2_tf.generation.generate import check_vocabulary
from gpt2_tf.generation.likelihood import BATCH_SIZE

if TYPE_CHECKING:
    from gpt2_tf.model.gpt2 import GPT2

# The English list of NLTK's stopwords corpus as of 2019, without the endings of contractions.
STOP_WORDS = """
i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself it its
itself they them their theirs themselves what which who whom this that these those am is are was were be been being have
has had having do does did doing a an the and but if or because as until while of at by for with about against between
into through during before after above below to from up down in out on off over under again further then once here there
when where why how all any both each few more most other some such no nor not only own same so than too very can will
just don should now
"""


def lambada(
    model: "GPT2 | Engine",
    enc: Encoder,
    texts: Sequence[str],
    *,
    batch_size: int = BATCH_SIZE,
    bar: bool = False,
    journal: Journal | None = None,
    name: str = "texts",
) -> dict[str, Any] | None:
    """Measure how well a model predicts the last word of each passage.

    Others have published several ways to count, so the result has three:

    - `last_word`: as the task `lambada_openai` of EleutherAI's harness. A passage counts as right when each token of
      its last word is the most likely one after the true tokens before it. Its perplexity is exp of the mean of
      -log p(word) over the passages.
    - `last_word_filtered`: the same, but the word's first token may not be a stop word, so a more likely stop word is
      no mistake. The GPT-2 paper says in section 3.3 that its accuracies use a stop-word filter. OpenAI published
      neither the code nor the list; this list is NLTK's.
    - `last_token`: only the passage's last token is scored. Others found that this comes near the paper's accuracies:
      openai/gpt-2 issue 131, EleutherAI/lm-evaluation-harness issue 356.

    Args:
        model: the model to evaluate, a GPT2 or an Engine.
        enc: its encoder, of the same vocabulary.
        texts: passages of at least two words, at most n_ctx + 1 tokens each.
        batch_size: passages per batch, at least 1; affects speed and memory only. Default: 8.
        bar: whether to show a progress bar on stderr.
        journal: keeps each passage's scores, so that a killed run resumes and several processes share a run.
        name: what error messages call the texts, such as the name of their file.

    Returns:
        `texts`: how many. `last_word` and `last_token`: `accuracy`, 0 to 1, and `perplexity`. `last_word_filtered`:
        `accuracy`. The result is None when other shards of the journal have not finished.

    Raises:
        ValueError: a passage has fewer than two words or too many tokens, with its number; or `texts` is empty.

    Source: "Language Models are Unsupervised Multitask Learners" (Radford et al., 2019), section 3.3; "The LAMBADA
    dataset" (Paperno et al., 2016).

    Example:
        >>> from gpt2_tf import evaluation
        >>> result = evaluation.lambada(model, enc, ["How now, my lord", "God save the king"])
        >>> result["texts"], sorted(result)
        (2, ['last_token', 'last_word', 'last_word_filtered', 'texts'])
    """
    engine = as_engine(model)
    check_vocabulary(engine, enc)
    rows = []
    for number, text in enumerate(texts, start=1):
        where = f"{name}: passage {number}"
        row = _last_word_row(enc, text, where)
        check_row(row, engine.hparams.n_ctx, where)
        rows.append(row)
    if not rows:
        raise ValueError(f"{name} is empty, so there is nothing to score; give at least one passage")
    stop_words = {ids[0] for word in STOP_WORDS.split() if len(ids := enc.encode(f" {word}")) == 1}
    scores = score_rows(engine, rows, batch_size=batch_size, bar=bar, journal=journal, excluded=stop_words)
    if scores is None:
        return None
    word_logprobs = [score.logprobs.sum(dtype=np.float64) for score in scores]
    last_logprobs = [float(score.logprobs[-1]) for score in scores]
    filtered = [score.filtered[0] and score.greedy[1:].all() for score in scores]
    return {
        "texts": len(rows),
        "last_word": {
            "accuracy": float(np.mean([score.greedy.all() for score in scores])),
            "perplexity": perplexity_of(-sum(word_logprobs), len(rows)),
        },
        "last_word_filtered": {"accuracy": float(np.mean(filtered))},
        "last_token": {
            "accuracy": float(np.mean([score.greedy[-1] for score in scores])),
            "perplexity": perplexity_of(-sum(last_logprobs), len(rows)),
        },
    }


def _last_word_row(enc: Encoder, text: str, where: str) -> Row:
    """Return the passage's token ids; the last word's are scored."""
    context, _, word = text.rpartition(" ")
    if not context.strip() or not word.strip():
        raise ValueError(f"{where} must end in a space and a word, but ends in {text[-40:]!r}")
    return continuation_row(enc, context, f" {word}")
