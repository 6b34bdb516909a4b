"""The sampler: the draw, and the order of the filters."""

import numpy as np
import pytest
import tensorflow as tf
from oracles import reference

from gpt2_tf.generation.params import SamplingParams
from gpt2_tf.generation.sampler import History, make_sampler


def sample(*args, **settings):
    """Return the sampled tokens, int [batch]."""
    return sample_with_logprobs(*args, **settings)[0]


def sample_with_logprobs(
    logits, noise, tokens=((0,),), pad_length=0, stop_state=0, n_new=0, filters=(), stop_table=None, **settings
):
    """Return the sampled tokens and their log-probabilities, [batch] each. Most settings ignore the text so far."""
    logits = np.asarray(logits, np.float32)
    batch = len(logits)
    history = History(
        tf.constant(np.broadcast_to(tokens, [batch, np.shape(tokens)[1]]), tf.int32),
        *(tf.constant(np.broadcast_to(value, [batch]), tf.int32) for value in (pad_length, stop_state, n_new)),
    )
    sampler = make_sampler(SamplingParams(**settings), logits.shape[1], stop_table)
    noise = tf.constant(np.broadcast_to(noise, [batch]))
    return [tensor.numpy() for tensor in sampler.sample_token(tf.constant(logits), history, noise, filters)]


def test_tokens_are_as_frequent_as_their_probabilities():
    """Evenly spread noise gives each token its share, to one part in the count of draws."""
    logits = np.random.default_rng(2).normal(size=50, scale=2)
    n = 100_000
    noise = (np.arange(n) + 0.5) / n
    for temperature in (0.5, 1.0, 2.0):
        tokens = sample(np.tile(logits, [n, 1]), noise, temperature=temperature)
        share = np.bincount(tokens, minlength=50) / n
        np.testing.assert_allclose(share, reference.softmax(logits / temperature), rtol=0, atol=1.5 / n)


UNIFORM = np.linspace(0, 0.999, 300)
LOGITS = np.log([0.4, 0.3, 0.2, 0.1])


def possible(logits=LOGITS, **settings):
    """Return the set of tokens that the sampler can draw: one row per value of the noise, in one call."""
    return set(sample(np.tile(logits, [len(UNIFORM), 1]), UNIFORM, **settings).tolist())


def test_the_order_is_temperature_top_k_top_p():
    # Of the three tokens that top-k keeps, two have 0.44 + 0.33 = 0.78. Of all four they have 0.7, and three have 0.9.
    assert possible(top_k=3, top_p=0.8) == {0, 1}
    # A temperature of 0.5 squares the probabilities: one token has 0.53, two have 0.83.
    assert possible(temperature=0.5, top_p=0.8) == {0}
    assert possible(temperature=0.5, top_p=0.84) == {0, 1}


@pytest.mark.parametrize("temperature", [1e-9, 1e-30, 1e-38])
@pytest.mark.parametrize("setting", [{}, {"top_k": 40}, {"top_p": 0.9}])
def test_a_temperature_near_0_is_nearly_greedy(temperature, setting):
    logits = np.random.default_rng(4).normal(-60, 5, size=[5, 300])  # like real GPT-2's
    np.testing.assert_array_equal(
        sample(logits, [0.1, 0.3, 0.5, 0.7, 0.999], temperature=temperature, **setting), logits.argmax(-1)
    )


@pytest.mark.parametrize("noise", [0.0, np.nextafter(1, 0)])
def test_the_extremes_of_the_noise_sample_tokens_that_are_kept(noise):
    logits = np.random.default_rng(3).normal(size=[1, 50257], scale=3)
    kept = reference.top_k_kept(logits[0].astype(np.float32), 7)
    assert set(sample(logits, noise, top_k=7)) <= kept
    assert sample(logits, noise) == [0 if noise == 0 else 50256]


def test_min_p_comes_after_the_temperature():
    assert possible(min_p=0.5) == {0, 1, 2}
    assert possible(min_p=0.51) == {0, 1}
    assert possible(min_p=0.5, temperature=0.5) == {0, 1}  # squared: 0.16, 0.09, 0.04
    assert possible(min_p=1) == {0}


def test_logit_bias_comes_before_all_filters():
    assert possible(logit_bias={0: -np.inf}) == {1, 2, 3}
    assert possible(logit_bias={3: 5.0}, temperature=0) == {3}
    assert possible(logit_bias={3: 5.0}, top_k=2) == {0, 3}


def test_repetition_settings_look_at_the_rows_own_tokens():
    assert possible(repetition_penalty=1e6, tokens=[[0, 1]]) == {2, 3}
    assert possible(repetition_penalty=1e6, tokens=[[0, 1]], pad_length=1) == {0, 2, 3}  # column 0 isn't the row's own
    assert possible(no_repeat_ngram=2, tokens=[[0, 3, 1, 2, 0]]) == {0, 1, 2}
    assert possible(no_repeat_ngram=2, tokens=[[0, 3, 1, 2, 0]], pad_length=1) == {0, 1, 2, 3}
    assert possible(no_repeat_ngram=1, tokens=[[0, 3]]) == {1, 2}


def test_before_min_length_no_token_that_stops_is_sampled():
    stop_table = [[-1, 1, 0, 0], [0, 0, -1, 0]]  # 0 stops it, and 2 after 1
    assert possible(stop_table=stop_table, min_length=3, n_new=2) == {1, 2, 3}
    assert possible(stop_table=stop_table, min_length=3, n_new=2, stop_state=1) == {0, 1, 3}
    assert possible(stop_table=stop_table, min_length=3, n_new=3) == {0, 1, 2, 3}
    rows = sample(np.tile(LOGITS, [2, 1]), 0.1, stop_table=stop_table, min_length=3, n_new=[2, 3])
    assert rows.tolist() == [1, 0]


def test_extra_filters_come_before_the_temperature():
    def without_0_where_likely(logits):
        return tf.where(logits > np.log(0.35), -np.inf, logits)

    assert possible(filters=[without_0_where_likely], temperature=0) == {1}
    assert possible(filters=[without_0_where_likely], temperature=100) == {1, 2, 3}
    assert possible(filters=[without_0_where_likely, lambda logits: logits[:, ::-1]], top_k=1) == {2}


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("broken", [[-np.inf] * 4, [0, 0, np.inf, 0], [np.nan] * 4])
def test_a_row_without_a_token_gets_inf_and_its_neighbours_do_not(temperature, broken):
    rows = [np.log([0.1, 0.7, 0.1, 0.1]), LOGITS]

    def breaks_the_second(logits):
        return tf.where([[False], [True]], tf.constant(broken, tf.float32), logits)

    _, logprobs = sample_with_logprobs(rows, 0.5, filters=[breaks_the_second], temperature=temperature)
    np.testing.assert_allclose(logprobs, [np.log(0.7), np.inf], rtol=1e-6)
    assert np.isnan(sample_with_logprobs([[np.nan] * 4], 0.5, temperature=temperature)[1])


def test_each_row_may_have_settings_of_its_own():
    logits = np.random.default_rng(7).normal(size=[4, 50], scale=2)
    noise = [0.2, 0.9, 0.6, 0.95]
    columns = {"temperature": [0.0, 1.5, 0.5, 1.0], "top_k": [0, 5, 0, 2], "top_p": [1.0, 0.9, 0.3, 1.0]}
    settings = {name: tf.constant(values)[:, None] for name, values in columns.items()}
    sampler = make_sampler(SamplingParams(), 50)._replace(**settings)
    zeros = tf.zeros([4], tf.int32)
    history = History(zeros[:, None], zeros, zeros, zeros)
    token, _ = sampler.sample_token(tf.constant(logits, tf.float32), history, tf.constant(noise, tf.float64))
    alone = [
        sample(logits[i : i + 1], noise[i], **{name: values[i] for name, values in columns.items()})[0]
        for i in range(4)
    ]
    assert token.numpy().tolist() == alone
