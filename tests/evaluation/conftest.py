"""Log-probabilities from two independent implementations, for the same weights as the fixture `lively`."""

import warnings
from collections.abc import Callable

import numpy as np
import pytest
from oracles import reference


@pytest.fixture
def model(lively):
    return lively


@pytest.fixture(scope="session")
def numpy_logprobs(lively) -> Callable:
    """By NumPy in float64: ids -> the log-probabilities of each next token, [seq, n_vocab]."""
    weights = {variable.path: variable.numpy() for variable in lively.weights}
    return lambda ids: np.log(reference.softmax(reference.forward(weights, lively.hparams.n_head, ids)[0]))


@pytest.fixture(scope="session")
def transformers_logprobs(lively, enc, tmp_path_factory) -> Callable:
    """By transformers on PyTorch: ids -> the log-probabilities of each next token, [seq, n_vocab]."""
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra [peers]")
    transformers = pytest.importorskip("transformers", reason="transformers is in the extra [peers]")
    folder = tmp_path_factory.mktemp("hf")
    lively.save_pretrained(folder, enc)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own imports warn
        peer = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()

    def logprobs(ids):
        with torch.no_grad():
            return torch.log_softmax(peer(torch.tensor([list(ids)])).logits[0].double(), -1).numpy()

    return logprobs
