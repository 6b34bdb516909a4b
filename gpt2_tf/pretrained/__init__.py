"""Pretrained models: a name or folder -> the model and its encoder; conversion between the forms of a model's folder.

    load         find a model by its name, load it, describe it
    download     OpenAI's files
    convert      one form of a model's folder -> another
    keras_nlp    KerasNLP's GPT-2 (now KerasHub's) <-> ours

Public names: `load`, `load_encoder`, `convert`, `to_keras_nlp`, `from_keras_nlp`.
"""

from gpt2_tf.lazy import public_names

public_names(
    __name__,
    {
        "load": "gpt2_tf.pretrained.load:load",
        "load_encoder": "gpt2_tf.pretrained.load:load_encoder",
        "convert": "gpt2_tf.pretrained.convert:convert",
        "to_keras_nlp": "gpt2_tf.pretrained.keras_nlp:to_keras_nlp",
        "from_keras_nlp": "gpt2_tf.pretrained.keras_nlp:from_keras_nlp",
    },
)

# The forms of a model's folder that `convert` reads and writes.
FORMS = ("openai", "hf", "gpt-2-simple", "keras-nlp")
