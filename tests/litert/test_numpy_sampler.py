"""The sampler in NumPy chooses the tokens that the sampler in TensorFlow chooses."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_tf.generation import logits as tensorflow_filters
from gpt2_tf.generation.params import SamplingParams
from gpt2_tf.generation.sampler import History, make_sampler
from gpt2_tf.generation.stop_strings import build_stop_table
from gpt2_tf.litert import logits as numpy_filters
from gpt2_tf.litert.sampler import NumpySampler

N_VOCAB = 50
TOKENS = [bytes([97 + i % 26]) * (1 + i % 2) for i in range(N_VOCAB)]
STOP_TABLE = build_stop_table(TOKENS, ids=[3], strings=[b"ab"])
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0, 1e-50, 1e-20, 0.3, 1, 1.7, 1e6]),
    top_k=st.integers(0, N_VOCAB),
    top_p=st.sampled_from([1e-9, 0.1, 0.5, 0.9, 0.999, 1 - 1e-12, 1]),
    min_p=st.sampled_from([0, 1e-50, 0.01, 0.3, 1]),
    repetition_penalty=st.sampled_from([0.5, 1, 1 + 1e-12, 1.3]),
    no_repeat_ngram=st.integers(0, 4),
    min_length=st.integers(0, 4),
    logit_bias=st.none() | st.dictionaries(st.integers(0, N_VOCAB - 1), st.sampled_from([-float("inf"), -2, 3.5])),
)


def both(params, logits, tokens, stop_state, n_new, noise):
    """Return the token and log-probability of each sampler."""
    logits = np.asarray(logits, np.float32)
    row = History(*(tf.constant([value]) for value in (tokens, 0, stop_state, n_new)))
    sampler = make_sampler(params, N_VOCAB, STOP_TABLE)
    token, logprob = sampler.sample_token(tf.constant(logits[None]), row, tf.constant([noise], tf.float64))
    own = NumpySampler(params, N_VOCAB, STOP_TABLE).sample_token(logits, tokens, stop_state, n_new, noise)
    return (int(token[0]), float(logprob[0])), own


@settings(max_examples=300, deadline=None)
@given(PARAMS, st.integers(0, 2**32 - 1), st.lists(st.integers(0, N_VOCAB - 1), min_size=1, max_size=9), st.booleans())
def test_the_token_is_tensorflows_for_any_settings(params, seed, tokens, ties):
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=rng.choice([0.1, 3, 30]), size=N_VOCAB)
    if ties:
        logits = np.round(logits)
    arguments = (logits, tokens, int(rng.integers(len(STOP_TABLE))), int(rng.integers(6)), float(rng.random()))
    (token, logprob), (own_token, own_logprob) = both(params, *arguments)
    assert own_token == token
    assert own_logprob == pytest.approx(logprob, abs=1e-5, nan_ok=True)  # float32's rounding in a sum of 50 numbers


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("value", [-np.inf, np.nan, np.inf])
def test_logits_that_leave_no_token_have_an_infinite_or_invalid_logprob(value, temperature):
    (_, logprob), (_, own) = both(SamplingParams(temperature=temperature), np.full(N_VOCAB, value), [0], 0, 0, 0.5)
    assert not np.isfinite(logprob) and not np.isfinite(own)


@pytest.mark.parametrize(
    ("name", "setting"), [("top_k", 1), ("top_k", 7), ("top_k", 3000), ("top_p", 0.3), ("top_p", 0.97), ("min_p", 0.1)]
)
def test_a_filter_keeps_the_tokens_that_tensorflows_keeps(name, setting):
    for seed in range(20):
        logits = np.random.default_rng(seed).normal(scale=2, size=3000).astype(np.float32).round(2)  # with ties
        expected = getattr(tensorflow_filters, name)(tf.constant(logits[None]), setting)[0].numpy()
        np.testing.assert_array_equal(getattr(numpy_filters, name)(logits, setting), expected)


def test_a_long_tail_is_sorted_whole_for_top_p():
    logits = np.zeros(3000, np.float32)  # the 1,024 largest hold a third of the probability
    logits[:1000] = 0.5
    expected = tensorflow_filters.top_p(tf.constant(logits[None]), 0.6)[0].numpy()
    np.testing.assert_array_equal(numpy_filters.top_p(logits, 0.6), expected)


def test_a_callers_filter_gets_numpy_arrays():
    params = SamplingParams(temperature=0, filters=lambda logits: np.where(np.arange(N_VOCAB) == 7, 9, logits))
    assert NumpySampler(params, N_VOCAB, STOP_TABLE).sample_token(np.zeros(N_VOCAB, np.float32), [0], 0, 0, 0)[0] == 7
