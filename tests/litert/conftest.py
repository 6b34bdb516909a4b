"""The same models on both engines."""

from typing import NamedTuple

import pytest

import gpt2_tf
from encoder import Encoder

pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert, which has no wheel for this machine")


class Pair(NamedTuple):
    """A model on TensorFlow and on LiteRT, and its encoder."""

    model: object
    engine: object
    enc: Encoder


@pytest.fixture(scope="session")
def bundled() -> Pair:
    """The bundled model: 1,024 tokens, n_ctx 256."""
    model, enc = gpt2_tf.load("shakespeare")
    return Pair(model, gpt2_tf.load("shakespeare", engine="litert")[0], enc)


@pytest.fixture(scope="session")
def small(lively, enc, tmp_path_factory) -> Pair:
    """A model with random weights: 260 tokens, n_ctx 32."""
    folder = tmp_path_factory.mktemp("small") / "model"
    lively.save_checkpoint(folder)
    enc.save(folder)
    return Pair(lively, gpt2_tf.load(folder, engine="litert")[0], enc)
