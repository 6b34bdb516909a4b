"""The filters against the reference, on random logits."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import reference

from gpt2_tf.generation import logits as filters


def random_logits(seed, n_vocab=50, batch=3):
    return np.random.default_rng(seed).normal(size=[batch, n_vocab], scale=3).astype(np.float32)


def kept(filtered):
    """Return the set of ids that each row keeps."""
    return [set(np.flatnonzero(row > row.dtype.type(np.finfo(row.dtype).min))) for row in filtered.numpy()]


def test_temperature_divides():
    logits = random_logits(0)
    np.testing.assert_array_equal(filters.temperature(logits, np.float32(0.7)), logits / np.float32(0.7))


@settings(deadline=None, max_examples=50, derandomize=True)
@given(seed=st.integers(0, 2**32), k=st.integers(1, 50))
def test_top_k_keeps_the_k_largest(seed, k):
    logits = random_logits(seed)
    filtered = filters.top_k(logits, k)
    assert kept(filtered) == [reference.top_k_kept(row, k) for row in logits]
    assert all(
        (f == row)[sorted(ids)].all() for f, row, ids in zip(filtered.numpy(), logits, kept(filtered), strict=True)
    )


def test_top_k_keeps_all_tokens_as_likely_as_the_kth():
    assert kept(filters.top_k(tf.constant([[1.0, 2.0, 2.0, 3.0, 0.0]]), 2)) == [{1, 2, 3}]


@settings(deadline=None, max_examples=50, derandomize=True)
@given(seed=st.integers(0, 2**32), p=st.floats(0.01, 0.99))
def test_top_p_keeps_tokens_that_sum_to_at_most_p(seed, p):
    logits = random_logits(seed)
    assert kept(filters.top_p(logits, np.float32(p))) == [reference.top_p_kept(row, p) for row in logits]


@pytest.mark.parametrize("scale", [0.1, 4])
def test_top_p_of_a_large_vocabulary(scale):
    """Flat rows keep more than 1,024 tokens, peaked rows fewer; one batch holds both."""
    logits = random_logits(3, n_vocab=5000) / 3 * np.array([[scale], [4], [scale]], np.float32)
    expected = [reference.top_p_kept(row.astype(np.float64), 0.9) for row in logits]
    assert (len(expected[0]) > 1024) == (scale == 0.1) and len(expected[1]) < 1024
    assert kept(filters.top_p(logits, 0.9)) == expected


def test_top_p_drops_the_token_that_crosses_p():
    logits = tf.math.log([[0.5, 0.3, 0.2]])
    assert kept(filters.top_p(logits, 0.79)) == [{0}]  # The paper's nucleus would keep the 0.3 too.
    assert kept(filters.top_p(logits, 0.81)) == [{0, 1}]


def test_top_p_keeps_one_token_at_least():
    assert kept(filters.top_p(tf.math.log([[0.2, 0.7, 0.1]]), 0.01)) == [{1}]


def test_top_p_of_1_keeps_all_tokens_though_the_sum_exceeds_1():
    logits = 5 * random_logits(0, n_vocab=1000, batch=20)
    sorted_probabilities = np.sort(tf.nn.softmax(logits).numpy().astype(np.float64))[:, ::-1]
    assert (np.cumsum(sorted_probabilities, axis=-1)[:, -2] > 1).any()  # so the last token would be masked
    assert kept(filters.top_p(logits, 1.0)) == [set(range(1000))] * 20


@pytest.mark.parametrize("name, value", [("temperature", 0.5), ("top_k", 3), ("top_p", 0.5)])
def test_filters_take_tensors_in_a_graph(name, value):
    logits = random_logits(1)
    filter = getattr(filters, name)
    np.testing.assert_array_equal(tf.function(filter)(logits, tf.constant(value)), filter(logits, value))


TEXTS = st.lists(st.lists(st.integers(0, 5), min_size=7, max_size=7), min_size=3, max_size=3)
PAD_LENGTHS = st.lists(st.integers(0, 6), min_size=3, max_size=3)


def without_padding(texts, pad_lengths):
    return [text[n:] for text, n in zip(texts, pad_lengths, strict=True)]


@settings(deadline=None, max_examples=50, derandomize=True)
@given(seed=st.integers(0, 2**32), p=st.floats(0.01, 1))
def test_min_p_keeps_tokens_that_are_likely_beside_the_most_likely(seed, p):
    logits = random_logits(seed)
    probabilities = reference.softmax(logits.astype(np.float64))
    least = p * probabilities.max(-1, keepdims=True)
    sure = np.abs(probabilities / least - 1) > 1e-5  # float32 may round probabilities near the limit either way
    for row, ids in enumerate(kept(filters.min_p(logits, np.float32(p)))):
        assert {i for i in np.flatnonzero(sure[row]) if i in ids} == set(
            np.flatnonzero(sure[row] & (probabilities >= least)[row])
        )
    assert kept(filters.min_p(tf.constant([[1.0, 3.0, 3.0]]), 1.0)) == [{1, 2}]


@settings(deadline=None, max_examples=50, derandomize=True)
@given(seed=st.integers(0, 2**32), penalty=st.floats(0.1, 10), texts=TEXTS, pad_lengths=PAD_LENGTHS)
def test_repetition_penalty_acts_on_the_rows_own_tokens(seed, penalty, texts, pad_lengths):
    logits = random_logits(seed, n_vocab=6)
    expected = logits.astype(np.float64)
    for row, text in enumerate(without_padding(texts, pad_lengths)):
        for token in set(text):
            expected[row, token] *= 1 / penalty if logits[row, token] > 0 else penalty
    penalized = filters.repetition_penalty(logits, np.float32(penalty), tf.constant(texts), tf.constant(pad_lengths))
    np.testing.assert_allclose(penalized, expected, rtol=1e-6)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(n=st.integers(1, 9), texts=TEXTS, pad_lengths=PAD_LENGTHS)
def test_no_repeat_ngram_masks_tokens_that_would_repeat_a_sequence(n, texts, pad_lengths):
    logits = random_logits(0, n_vocab=6)
    expected = []
    for text in without_padding(texts, pad_lengths):
        ngrams = {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}
        expected.append({token for token in range(6) if (*text[len(text) - n + 1 :], token)[-n:] not in ngrams})
    filtered = filters.no_repeat_ngram(logits, n, tf.constant(texts), tf.constant(pad_lengths))
    assert kept(filtered) == expected


def test_each_row_may_have_its_own_setting():
    logits = random_logits(5, batch=4)
    k, p, t = (
        np.array([[3], [0], [50], [1]]),
        np.float32([[0.9], [1.0], [0.2], [0.5]]),
        np.float32([[1], [2], [3], [4]]),
    )
    for filter, values in ((filters.top_k, k), (filters.top_p, p), (filters.temperature, t), (filters.min_p, p)):
        alone = [filter(row[None], setting)[0] for row, setting in zip(logits, values, strict=True)]
        np.testing.assert_array_equal(filter(logits, values), alone)


def test_top_k_of_0_keeps_all():
    assert kept(filters.top_k(random_logits(6), 0)) == [set(range(50))] * 3
