"""GPT-2 in TensorFlow and Keras, faithful to OpenAI's release."""

import contextlib
import importlib
import os
import sys

__version__ = "0.1.0"

_HOMES = {
    "HParams": "gpt2_tf.hparams",
    "GPT2": "gpt2_tf.model",
    "sample_sequence": "gpt2_tf.sample",
    "generate": "gpt2_tf.text",
    "stream": "gpt2_tf.text",
    "score": "gpt2_tf.text",
    "Completion": "gpt2_tf.text",
    "beam_search": "gpt2_tf.beam",
    "load": "gpt2_tf.folder",
    "to_keras_nlp": "gpt2_tf.keras_nlp",
    "from_keras_nlp": "gpt2_tf.keras_nlp",
}
__all__ = sorted(_HOMES)

# A process that this one starts inherits the 3, which asks for no noise there either.
_noise_wanted = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") != "3"
os.environ.setdefault("KERAS_BACKEND", "tensorflow")


def __getattr__(name: str):
    """Imports a public name when it is first asked for, so that `import gpt2_tf` is quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'gpt2_tf' has no attribute {name!r}")
    backend = os.environ.get("KERAS_BACKEND")
    # Said here, as Keras would only say that it finds no jax; `gpt2_tf.model` says it of a Keras imported before.
    if backend != "tensorflow" and "keras" not in sys.modules and name != "HParams":
        raise ImportError(f"gpt2_tf needs Keras on TensorFlow: KERAS_BACKEND is {backend!r}, set it to tensorflow")
    with _without_tensorflow_noise():
        if name == "load":  # it would import TensorFlow when it is called, and not in silence
            importlib.import_module("gpt2_tf.model")
        return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__():
    return sorted({*globals(), *__all__})


@contextlib.contextmanager
def _without_tensorflow_noise():
    """Drops what TensorFlow prints while it is imported, before it obeys TF_CPP_MIN_LOG_LEVEL; errors are raised."""
    if _noise_wanted or "tensorflow" in sys.modules or sys.__stderr__ is None:
        yield
        return
    sys.__stderr__.flush()
    stderr = os.dup(2)
    with open(os.devnull, "wb") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
