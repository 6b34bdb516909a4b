"""Evaluation: how well a model predicts text.

    perplexity.py       `perplexity`: how well a model predicts each token of a text
    lambada.py          `lambada`: how well it predicts the last word of a passage
    multiple_choice.py  `choice`: which of several continuations it finds most likely
    scoring.py          the log-probabilities that all three are computed from
    examples.py         read files of passages and questions
    report.py           what `gpt2-tf evaluate` prints
    lm_eval.py          the model for EleutherAI's lm-evaluation-harness

Public names: `perplexity`, `lambada`, `choice`.
"""

from gpt2_tf.lazy import public_names

public_names(
    __name__,
    {
        "perplexity": "gpt2_tf.evaluation.perplexity:perplexity",
        "lambada": "gpt2_tf.evaluation.lambada:lambada",
        "choice": "gpt2_tf.evaluation.multiple_choice:choice",
    },
)
