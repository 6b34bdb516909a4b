"""A model -> something that answers requests: a SavedModel for TensorFlow Serving."""

from gpt2_tf.lazy import public_names

public_names(__name__, {"export": "gpt2_tf.serving.saved_model:export"})
