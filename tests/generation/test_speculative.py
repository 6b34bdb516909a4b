"""Guesses change nothing but the time: against the same text without them, and against exact probabilities."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import reference
from oracles.random_model import random_model

from gpt2_tf import GPT2, HParams, generate
from gpt2_tf.generation.decoding import Noise, extend
from gpt2_tf.generation.sampler import choice
from gpt2_tf.generation.speculative import Draft, look_up, reader


@pytest.fixture
def model(lively):
    return lively


@pytest.fixture(scope="module")
def draft():
    """A model of one block, whose first weights are `lively`'s, so that its guesses are sometimes right."""
    return random_model(HParams(n_vocab=260, n_ctx=32, n_embd=40, n_head=4, n_layer=1))


@given(text=st.lists(st.integers(0, 3), min_size=1, max_size=30), n=st.integers(1, 20))
def test_look_up_is_what_followed_the_latest_time(text, n):
    guesses = look_up(text, 0, n)
    assert len(guesses) <= min(n, 8)
    if not guesses:
        assert text[-1] not in text[:-1]
        return
    places = {}
    for size in range(1, min(3, len(text) - 1) + 1):
        places[size] = [i for i in range(size, len(text)) if text[i - size : i] == text[-size:]]
    size = max(size for size, found in places.items() if found)
    at = places[size][-1]
    assert guesses == text[at : at + min(n, 8)]


SETTINGS = [
    {"temperature": 0},
    {},
    {"temperature": 0.5, "top_k": 7, "min_p": 0.1},
    {"top_p": 0.8, "repetition_penalty": 1.3, "no_repeat_ngram": 2},
    {"temperature": 0, "stop": ["e", 3, "\n"], "min_length": 9},
    {"temperature": 0.3, "window": True, "length": 90, "stop": ()},
    {"temperature": 0.5, "filters": [lambda logits: logits * 1.5]},
]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("which", ["lookup", "itself", "another"])
def test_the_text_is_the_one_without_guesses(model, draft, enc, setting, which):
    guesser = {"lookup": "lookup", "itself": model, "another": draft}[which]
    setting = {"length": 22, **setting}
    prompts = ["them then the", "e"]
    for plain, guessed in zip(
        generate(model, enc, prompts, seed=7, num_samples=2, **setting),
        generate(model, enc, prompts, seed=7, num_samples=2, draft=guesser, **setting),
        strict=True,
    ):
        assert guessed[:4] == plain[:4]
        np.testing.assert_allclose(guessed.logprobs, plain.logprobs, rtol=0, atol=1e-5)


def passes(model, guess, length=20):
    """How many times the model is asked for `length` tokens."""
    asked = []
    noise = Noise(1, [0])
    settings = choice(model.hparams.n_vocab)
    guess = guess(model, settings, noise)
    for pieces in extend(model, [[5, 6]], settings, [length], noise, guess=guess):
        asked.append(len(pieces[0].ids))
    assert sum(asked) == length
    return len(asked)


def test_right_guesses_save_passes(model):
    assert passes(model, lambda *_: lambda *_: []) == 20
    assert passes(model, Draft) == 4  # five tokens a pass
    wrong = passes(model, lambda *_: lambda text, done, n: [0] * min(n, 3))
    assert wrong >= 18


def test_a_draft_reads_only_what_is_new(monkeypatch, model):
    """Its cache goes on from the last guesses that were right."""
    read = []
    traced = GPT2.traced

    def counting(self, build, *arguments):
        function = traced(self, build, *arguments)
        if build is not reader:
            return function
        return lambda tokens, past, start: read.append(tokens.shape[1] - 1) or function(tokens, past, start)

    monkeypatch.setattr(GPT2, "traced", counting)
    passes(model, Draft)
    # The context; then it finds all read but its last token, whose successor the check has written.
    assert read == [1, 1, 1, 1]


@pytest.mark.slow
def test_sampled_tokens_have_the_models_distribution():
    """Chi-square over all texts of three tokens: its mean is their number less 1, its deviation sqrt(2 that)."""
    rng = np.random.default_rng(0)
    hparams = HParams(n_vocab=4, n_ctx=8, n_embd=8, n_head=2, n_layer=1)
    model, draft = (random_model(hparams, seed=rng) for _ in range(2))
    weights = {variable.path: variable.numpy() for variable in model.weights}
    probability = {}
    for text in product(range(4), repeat=3):
        logits, _ = reference.forward(weights, 2, [1, *text])
        probability[text] = reference.softmax(logits[:3])[range(3), list(text)].prod()
    n = 3000
    settings = choice(4)
    counts = dict.fromkeys(probability, 0)
    passed = 0
    for row in range(n):
        text, noise = [], Noise(1, [row])
        for pieces in extend(model, [[1]], settings, [3], noise, guess=Draft(draft, settings, noise)):
            text += pieces[0].ids
            passed += 1
        counts[tuple(text)] += 1
    assert 1.2 * n < passed < 2.9 * n  # some guesses are right, some are wrong
    chi_square = sum((counts[text] - n * p) ** 2 / (n * p) for text, p in probability.items())
    assert abs(chi_square - 63) < 4 * np.sqrt(2 * 63)


def test_wrong_drafts_say_what_fits(model, enc):
    with pytest.raises(ValueError, match="draft is 'lokup', but must be a model, 'lookup', or None"):
        generate(model, enc, "e", draft="lokup")
    other = GPT2(HParams(n_vocab=261, n_ctx=8, n_embd=4, n_head=1, n_layer=1))
    with pytest.raises(ValueError, match="the draft model has 261 tokens, but the vocabulary 260"):
        generate(model, enc, "e", draft=other)
