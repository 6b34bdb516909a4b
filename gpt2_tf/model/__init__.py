"""The network: GPT-2, its loss, its key/value cache, LoRA adapters, and training on several devices.

    gpt2            the layers and the model, on one page
    ops             their arithmetic, as TensorFlow's kernels run it fastest
    kv_cache        keys and values of the tokens that were read
    taps            the named places inside the forward pass
    inspection      what is computed at these places, as arrays
    interventions   functions that change it
    loss            cross-entropy, without all logits in memory
    training_step   compile, and a step of `fit` and `evaluate`
    lora            adapters beside frozen weights
    persistence     OpenAI's, Hugging Face's and Keras's files
    backend         the check that Keras computes with TensorFlow
    summary         the table of `model.summary()`
    traces          traced graphs of a model
    distribute      several devices or machines

Public names: `GPT2`, `cross_entropy`.
"""

from gpt2_tf.lazy import public_names

public_names(__name__, {"GPT2": "gpt2_tf.model.gpt2:GPT2", "cross_entropy": "gpt2_tf.model.loss:cross_entropy"})
