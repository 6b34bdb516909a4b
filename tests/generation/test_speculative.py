"""Proposals change only the speed: against the same text without them, and against exact probabilities."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import reference
from oracles.random_model import random_model

from gpt2_tf import GPT2, HParams, generate
from gpt2_tf.generation.decoding import extend_rows
from gpt2_tf.generation.noise import UniformNoise
from gpt2_tf.generation.params import SamplingParams
from gpt2_tf.generation.prompt_lookup import prompt_lookup
from gpt2_tf.generation.sampler import make_sampler
from gpt2_tf.generation.speculative import DraftModel, build_prefill


@pytest.fixture
def model(lively):
    return lively


@pytest.fixture(scope="module")
def draft():
    """A model of one block, whose first weights are `lively`'s, so that its proposals are sometimes right."""
    return random_model(HParams(n_vocab=260, n_ctx=32, n_embd=40, n_head=4, n_layer=1))


@given(text=st.lists(st.integers(0, 3), min_size=1, max_size=30), n=st.integers(1, 20))
def test_prompt_lookup_proposes_what_followed_the_last_occurrence(text, n):
    proposals = prompt_lookup(text, 0, n)
    assert len(proposals) <= min(n, 8)
    if not proposals:
        assert text[-1] not in text[:-1]
        return
    places = {}
    for size in range(1, min(3, len(text) - 1) + 1):
        places[size] = [i for i in range(size, len(text)) if text[i - size : i] == text[-size:]]
    size = max(size for size, found in places.items() if found)
    at = places[size][-1]
    assert proposals == text[at : at + min(n, 8)]


SETTINGS = [
    {"temperature": 0},
    {},
    {"temperature": 0.5, "top_k": 7, "min_p": 0.1},
    {"top_p": 0.8, "repetition_penalty": 1.3, "no_repeat_ngram": 2},
    {"temperature": 0, "stop": ["e", 3, "\n"], "min_length": 9},
    {"temperature": 0.3, "window": True, "length": 90, "stop": ()},
    {"temperature": 0.5, "filters": [lambda logits: logits * 1.5]},
]


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("which", ["lookup", "itself", "another"])
def test_the_text_is_the_same_as_without_proposals(model, draft, enc, setting, which):
    proposer = {"lookup": "lookup", "itself": model, "another": draft}[which]
    setting = {"length": 22, **setting}
    prompts = ["them then the", "e"]
    for plain, proposed in zip(
        generate(model, enc, prompts, seed=7, num_samples=2, **setting),
        generate(model, enc, prompts, seed=7, num_samples=2, draft=proposer, **setting),
        strict=True,
    ):
        assert proposed[:4] == plain[:4]
        np.testing.assert_allclose(proposed.logprobs, plain.logprobs, rtol=0, atol=1e-5)


def count_passes(model, make_proposer, length=20):
    """Count the forward passes of the model that it takes to write `length` tokens."""
    tokens_per_pass = []
    noise = UniformNoise(1, [0])
    sampler = make_sampler(SamplingParams(), model.hparams.n_vocab)
    proposer = make_proposer(model, sampler, noise)
    for chunks in extend_rows(model, [[5, 6]], sampler, [length], noise, proposer=proposer):
        tokens_per_pass.append(len(chunks[0].ids))
    assert sum(tokens_per_pass) == length
    return len(tokens_per_pass)


def test_right_proposals_save_passes(model):
    assert count_passes(model, lambda *_: lambda *_: []) == 20
    assert count_passes(model, DraftModel) == 4  # five tokens per pass
    wrong = count_passes(model, lambda *_: lambda text, n_new, n: [0] * min(n, 3))
    assert wrong >= 18


def test_a_draft_model_runs_only_new_tokens(monkeypatch, model):
    """Its cache is kept up to the last right proposal."""
    n_run = []
    traced = GPT2.traced

    def counting(self, build, *arguments):
        function = traced(self, build, *arguments)
        if build is not build_prefill:
            return function
        return lambda tokens, *args: n_run.append(tokens.shape[1] - 1) or function(tokens, *args)

    monkeypatch.setattr(GPT2, "traced", counting)
    count_passes(model, DraftModel)
    # First the context. After each verification, everything but the newest two tokens is in the cache.
    assert n_run == [1, 1, 1, 1]


@pytest.mark.slow
def test_sampled_tokens_have_the_models_distribution():
    """Chi-square over all 64 texts of three tokens has mean 63 and standard deviation sqrt(2 x 63)."""
    rng = np.random.default_rng(0)
    hparams = HParams(n_vocab=4, n_ctx=8, n_embd=8, n_head=2, n_layer=1)
    model, draft = (random_model(hparams, seed=rng) for _ in range(2))
    weights = {variable.path: variable.numpy() for variable in model.weights}
    probability = {}
    for text in product(range(4), repeat=3):
        logits, _ = reference.forward(weights, 2, [1, *text])
        probability[text] = reference.softmax(logits[:3])[range(3), list(text)].prod()
    n = 1500
    sampler = make_sampler(SamplingParams(), 4)
    counts = dict.fromkeys(probability, 0)
    n_passes = 0
    for row in range(n):
        text, noise = [], UniformNoise(1, [row])
        proposer = DraftModel(draft, sampler, noise)
        for chunks in extend_rows(model, [[1]], sampler, [3], noise, proposer=proposer):
            text += chunks[0].ids
            n_passes += 1
        counts[tuple(text)] += 1
    assert 1.2 * n < n_passes < 2.9 * n  # some proposals are right, some are wrong
    chi_square = sum((counts[text] - n * p) ** 2 / (n * p) for text, p in probability.items())
    assert abs(chi_square - 63) < 4 * np.sqrt(2 * 63)


def test_an_invalid_draft_is_an_error(model, enc):
    with pytest.raises(ValueError, match="draft is 'lokup', but must be a model, 'lookup', or None"):
        generate(model, enc, "e", draft="lokup")
    other = GPT2(HParams(n_vocab=261, n_ctx=8, n_embd=4, n_head=1, n_layer=1))
    with pytest.raises(ValueError, match="the draft model has 261 tokens, but the vocabulary 260"):
        generate(model, enc, "e", draft=other)
