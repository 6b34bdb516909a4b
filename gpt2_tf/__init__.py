"""GPT-2 in TensorFlow and Keras, faithful to OpenAI's release.

The packages, from the bottom up. A package imports only from those above it in this list; its `__init__` says more.

    hparams, files                        sizes of a model; atomic writes, locks, journals, progress bars
    data, weights                         text -> batches; OpenAI's and Hugging Face's files
    model                                 the network
    generation                            logits -> text
    litert                                the model on LiteRT, without TensorFlow
    pretrained                            names and folders -> models
    training, evaluation, serving         fine-tuning; benchmarks; exported models
    inside                                what is computed inside the model
    cli                                   the command `gpt2-tf`
"""

from gpt2_tf import former_names, keras_objects
from gpt2_tf.lazy import public_names

__version__ = "0.1.0"

public_names(
    __name__,
    {
        "HParams": "gpt2_tf.hparams:HParams",
        "GPT2": "gpt2_tf.model.gpt2:GPT2",
        "SamplingParams": "gpt2_tf.generation.params:SamplingParams",
        "sample_sequence": "gpt2_tf.generation.sample_sequence:sample_sequence",
        "generate": "gpt2_tf.generation.generate:generate",
        "stream": "gpt2_tf.generation.generate:stream",
        "score": "gpt2_tf.generation.likelihood:score",
        "Completion": "gpt2_tf.generation.generate:Completion",
        "beam_search": "gpt2_tf.generation.beam_search:beam_search",
        "load": "gpt2_tf.pretrained.load:load",
        "to_keras_nlp": "gpt2_tf.pretrained.keras_nlp:to_keras_nlp",
        "from_keras_nlp": "gpt2_tf.pretrained.keras_nlp:from_keras_nlp",
    },
)
former_names.install()
keras_objects.install()
