"""Checks that Keras computes with TensorFlow. `gpt2.py` imports this module before all others that use Keras."""

import keras

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"gpt2_tf needs Keras on TensorFlow, but its backend here is {keras.backend.backend()!r}; "
        "set the environment variable KERAS_BACKEND=tensorflow before Keras is imported"
    )
