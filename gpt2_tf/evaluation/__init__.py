"""How well a model predicts text: perplexity, LAMBADA, multiple choice, and EleutherAI's harness."""

from gpt2_tf.lazy import public_names

public_names(
    __name__,
    {
        "perplexity": "gpt2_tf.evaluation.perplexity:perplexity",
        "lambada": "gpt2_tf.evaluation.lambada:lambada",
        "choice": "gpt2_tf.evaluation.multiple_choice:choice",
    },
)
