"""Models of random weights, and what becomes of them."""

import gc
import weakref
from collections.abc import Callable

import numpy as np

from gpt2_tf import GPT2, HParams


def random_model(hparams: HParams, stdev: float = 0.3, seed: int | np.random.Generator = 0, **kwargs) -> GPT2:
    """Larger weights than fresh ones, so that texts differ in likelihood and the context matters."""
    rng = np.random.default_rng(seed)
    model = GPT2(hparams, w_init_stdev=0, **kwargs)
    for variable in model.weights:
        variable.assign(rng.normal(1 if variable.name == "g" else 0, stdev, variable.shape))
    return model


def is_freed_after(use: Callable[[GPT2], object], hparams: HParams) -> bool:
    """Whether nothing holds a model that was made, used and let go."""
    model = random_model(hparams)
    use(model)
    alive = weakref.ref(model)
    del model
    gc.collect()
    return alive() is None
