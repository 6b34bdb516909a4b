"""What is computed inside the model, in terms of text: recipes on top of `GPT2.inspect`.

    lens.py         `logit_lens`: what each layer would predict
    attribution.py  `attribute_logit`: how much each head and each MLP adds to a logit
    surprise.py     `surprise`: how unexpected each token of a text is
    features.py     `features`: a vector per text, for another model to learn from
    figures.py      matplotlib figures of attention, lens and surprise; needs the extra `plot`

Public names: `logit_lens`, `attribute_logit`, `surprise`, `features`, and the figures `attention_figure`,
`lens_figure`, `surprise_figure`.
"""

from gpt2_tf.lazy import public_names

public_names(
    __name__,
    {
        "logit_lens": "gpt2_tf.inside.lens:logit_lens",
        "attribute_logit": "gpt2_tf.inside.attribution:attribute_logit",
        "surprise": "gpt2_tf.inside.surprise:surprise",
        "features": "gpt2_tf.inside.features:features",
        "attention_figure": "gpt2_tf.inside.figures:attention_figure",
        "lens_figure": "gpt2_tf.inside.figures:lens_figure",
        "surprise_figure": "gpt2_tf.inside.figures:surprise_figure",
    },
)
