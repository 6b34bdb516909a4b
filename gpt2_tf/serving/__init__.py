"""Serving: write a model as something that answers requests without this package.

    saved_model.py         `export`: write a SavedModel, for TensorFlow Serving and for TensorFlow in any language
    signatures.py          the functions of a SavedModel: their inputs, outputs and errors
    generate_graph.py      the graph that continues prompts
    compare.py             check that an export answers as the model does
    tensorflow_serving.py  batching parameters and warm-up requests

Public name: `export`.
"""

from gpt2_tf.lazy import public_names

public_names(__name__, {"export": "gpt2_tf.serving.saved_model:export"})
