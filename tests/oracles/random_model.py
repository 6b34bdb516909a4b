"""Models with random weights, and a check that a model is freed."""

import gc
import weakref
from collections.abc import Callable

import numpy as np

from gpt2_tf import GPT2, HParams
from oracles import reference

# No two sizes are equal, so that a mix-up of two axes fails.
HPARAMS = HParams(n_vocab=311, n_ctx=48, n_embd=60, n_head=5, n_layer=3)


def random_model(hparams: HParams, stdev: float = 0.3, seed: int | np.random.Generator = 0, **kwargs) -> GPT2:
    """Make a model whose every weight matters: gains and biases differ from 1 and 0.

    The default `stdev` is larger than that of new weights, so that the most likely token depends on the context.
    """
    rng = np.random.default_rng(seed)
    model = GPT2(hparams, w_init_stdev=0, **kwargs)
    for variable in model.weights:
        variable.assign(rng.normal(1 if variable.name == "g" else 0, stdev, variable.shape))
    return model


def is_freed_after(use: Callable[[GPT2], object], hparams: HParams, **kwargs) -> bool:
    """Make a model, use it and drop it. Returns whether its memory was freed."""
    model = random_model(hparams, **kwargs)
    use(model)
    alive = weakref.ref(model)
    del model
    gc.collect()
    return alive() is None


def arrays(model: GPT2) -> dict[str, np.ndarray]:
    """Return the values of the model's weights by their paths."""
    return {variable.path: variable.numpy() for variable in model.weights}


def reference_outputs(model: GPT2, tokens: np.ndarray) -> list[np.ndarray]:
    """Return the reference's logits and presents for tokens [batch, seq] and the model's weights."""
    rows = [reference.forward(arrays(model), model.hparams.n_head, row) for row in tokens]
    return [np.stack(part) for part in zip(*rows, strict=True)]
