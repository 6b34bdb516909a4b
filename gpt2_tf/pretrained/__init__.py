"""A model's name or folder -> the model and its encoder: downloads, loading, conversion between forms."""

from gpt2_tf.lazy import public_names

public_names(
    __name__,
    {
        "load": "gpt2_tf.pretrained.load:load",
        "convert": "gpt2_tf.pretrained.convert:convert",
        "to_keras_nlp": "gpt2_tf.pretrained.keras_nlp:to_keras_nlp",
        "from_keras_nlp": "gpt2_tf.pretrained.keras_nlp:from_keras_nlp",
    },
)

# The forms of a model's folder that `convert` reads and writes.
FORMS = ("openai", "hf", "gpt-2-simple", "keras-nlp")
