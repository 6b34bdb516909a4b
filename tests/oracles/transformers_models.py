"""Small models in Hugging Face's form, for comparing with the transformers library."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gpt2_tf import GPT2, HParams

HPARAMS = HParams(n_vocab=260, n_ctx=40, n_embd=48, n_head=4, n_layer=3)


def random_tokens(seed: int = 1) -> np.ndarray:
    """Return random token ids that fill the context: [2, n_ctx]."""
    return np.random.default_rng(seed).integers(0, HPARAMS.n_vocab, [2, HPARAMS.n_ctx])


def transformers_logits(peer) -> np.ndarray:
    """Return the logits of a model of the transformers library for `random_tokens()`: [2, n_ctx, n_vocab]."""
    import torch

    with torch.no_grad():
        return peer(torch.tensor(random_tokens())).logits.numpy()


def assert_same_weights(one: GPT2, other: GPT2) -> None:
    for old, new in zip(one.weights, other.weights, strict=True):
        np.testing.assert_array_equal(old, new)


def edit_json(path: Path, **changed) -> None:
    """Change some values of a file's JSON object."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def rewrite_weights(folder: Path, change: Callable[[dict], None]) -> None:
    """Let the safetensors library save a folder's weights again, after `change` has edited the dict of arrays."""
    library = pytest.importorskip("safetensors.numpy", reason="safetensors comes with transformers, in [peers]")
    tensors = library.load_file(folder / "model.safetensors")
    change(tensors)
    library.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
