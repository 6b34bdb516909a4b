"""A random model and a batch for it, shared by the tests of the model."""

import numpy as np
import pytest
from oracles.random_model import HPARAMS, random_model


@pytest.fixture(scope="module")
def model():
    return random_model(HPARAMS, 0.1)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(1).integers(0, HPARAMS.n_vocab, [4, HPARAMS.n_ctx])


@pytest.fixture(scope="module")
def batch(tokens):
    """Tokens and targets; the rows have 48, 40, 3 and 10 targets, then padding."""
    targets = np.roll(tokens, -1, axis=1)
    for row, length in enumerate((48, 40, 3, 10)):
        targets[row, length:] = -1
    return tokens, targets
