"""The choice of the next token: the draw, the order of the filters, and what settings it refuses."""

import numpy as np
import pytest
import tensorflow as tf
from oracles import reference

from gpt2_tf.generation.sampler import Text, choice


def choose(*args, **settings):
    """The tokens alone, int [batch]."""
    return choose_and_weigh(*args, **settings)[0]


def choose_and_weigh(logits, noise, tokens=((0,),), start=0, stop=0, count=0, more=(), **settings):
    """int [batch], and log-probabilities; what a row's text is matters only to some settings."""
    logits = np.asarray(logits, np.float32)
    batch = len(logits)
    text = Text(
        tf.constant(np.broadcast_to(tokens, [batch, np.shape(tokens)[1]]), tf.int32),
        *(tf.constant(np.broadcast_to(value, [batch]), tf.int32) for value in (start, stop, count)),
    )
    settings = choice(logits.shape[1], **settings)
    found = settings.token(tf.constant(logits), text, tf.constant(np.broadcast_to(noise, [batch])), more)
    return [tensor.numpy() for tensor in found]


def test_tokens_come_as_often_as_their_probabilities_say():
    """Evenly spread noise gives each token its share, to one part in the count of draws."""
    logits = np.random.default_rng(2).normal(size=50, scale=2)
    n = 100_000
    noise = (np.arange(n) + 0.5) / n
    for temperature in (0.5, 1.0, 2.0):
        drawn = choose(np.tile(logits, [n, 1]), noise, temperature=temperature)
        share = np.bincount(drawn, minlength=50) / n
        np.testing.assert_allclose(share, reference.softmax(logits / temperature), rtol=0, atol=1.5 / n)


def test_the_order_is_temperature_top_k_top_p():
    logits = np.log([[0.4, 0.3, 0.2, 0.1]])
    drawn = set(np.concatenate([choose(logits, u, top_k=3, top_p=0.8) for u in np.linspace(0, 0.999, 300)]))
    assert drawn == {0, 1}  # of the first three 0.44 + 0.33 = 0.78 fits; of all four 0.7, and 0.9 would not
    drawn = set(np.concatenate([choose(logits, u, temperature=0.5, top_p=0.8) for u in np.linspace(0, 0.999, 300)]))
    assert drawn == {0}  # squared: 0.53, 0.83
    drawn = set(np.concatenate([choose(logits, u, temperature=0.5, top_p=0.84) for u in np.linspace(0, 0.999, 300)]))
    assert drawn == {0, 1}


@pytest.mark.parametrize("temperature", [1e-9, 1e-30, 1e-38])
@pytest.mark.parametrize("setting", [{}, {"top_k": 40}, {"top_p": 0.9}])
def test_a_temperature_near_0_is_nearly_greedy(temperature, setting):
    logits = np.random.default_rng(4).normal(-60, 5, size=[5, 300])  # real GPT-2's are of that order
    np.testing.assert_array_equal(
        choose(logits, [0.1, 0.3, 0.5, 0.7, 0.999], temperature=temperature, **setting), logits.argmax(-1)
    )


@pytest.mark.parametrize("noise", [0.0, np.nextafter(1, 0)])
def test_the_ends_of_the_noise_choose_tokens_that_are_kept(noise):
    logits = np.random.default_rng(3).normal(size=[1, 50257], scale=3)
    kept = reference.top_k_kept(logits[0].astype(np.float32), 7)
    assert set(choose(logits, noise, top_k=7)) <= kept
    assert choose(logits, noise) == [0 if noise == 0 else 50256]


UNIFORM = np.linspace(0, 0.999, 200)
SHARES = np.log([0.4, 0.3, 0.2, 0.1])


def drawn(logits=SHARES, **settings):
    """The tokens that may come."""
    return set(choose(np.tile(logits, [len(UNIFORM), 1]), UNIFORM, **settings).tolist())


def test_min_p_comes_after_the_temperature():
    assert drawn(min_p=0.5) == {0, 1, 2}
    assert drawn(min_p=0.51) == {0, 1}
    assert drawn(min_p=0.5, temperature=0.5) == {0, 1}  # squared: 0.16, 0.09, 0.04
    assert drawn(min_p=1) == {0}


def test_a_bias_is_added_before_all_else():
    assert drawn(logit_bias={0: -np.inf}) == {1, 2, 3}
    assert drawn(logit_bias={3: 5.0}, temperature=0) == {3}
    assert drawn(logit_bias={3: 5.0}, top_k=2) == {0, 3}


def test_settings_that_go_by_the_text():
    assert drawn(repetition_penalty=1e6, tokens=[[0, 1]]) == {2, 3}
    assert drawn(repetition_penalty=1e6, tokens=[[0, 1]], start=1) == {0, 2, 3}  # column 0 isn't the row's own
    assert drawn(no_repeat_ngram=2, tokens=[[0, 3, 1, 2, 0]]) == {0, 1, 2}
    assert drawn(no_repeat_ngram=2, tokens=[[0, 3, 1, 2, 0]], start=1) == {0, 1, 2, 3}
    assert drawn(no_repeat_ngram=1, tokens=[[0, 3]]) == {1, 2}


def test_until_the_least_length_nothing_stops_the_text():
    stops = [[-1, 1, 0, 0], [0, 0, -1, 0]]  # 0 stops it, and 2 after 1
    assert drawn(stops=stops, min_length=3, count=2) == {1, 2, 3}
    assert drawn(stops=stops, min_length=3, count=2, stop=1) == {0, 1, 3}
    assert drawn(stops=stops, min_length=3, count=3) == {0, 1, 2, 3}
    rows = choose(np.tile(SHARES, [2, 1]), 0.1, stops=stops, min_length=3, count=[2, 3])
    assert rows.tolist() == [1, 0]


def test_filters_of_ones_own_come_before_the_temperature():
    def without_0_where_likely(logits):
        return tf.where(logits > np.log(0.35), -np.inf, logits)

    assert drawn(more=[without_0_where_likely], temperature=0) == {1}
    assert drawn(more=[without_0_where_likely], temperature=100) == {1, 2, 3}
    assert drawn(more=[without_0_where_likely, lambda logits: logits[:, ::-1]], top_k=1) == {2}


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("broken", [[-np.inf] * 4, [0, 0, np.inf, 0], [np.nan] * 4])
def test_a_row_with_no_token_left_is_marked_and_its_neighbours_are_not(temperature, broken):
    rows = [np.log([0.1, 0.7, 0.1, 0.1]), SHARES]

    def breaks_the_second(logits):
        return tf.where([[False], [True]], tf.constant(broken, tf.float32), logits)

    _, logprobs = choose_and_weigh(rows, 0.5, more=[breaks_the_second], temperature=temperature)
    np.testing.assert_allclose(logprobs, [np.log(0.7), np.inf], rtol=1e-6)
    assert np.isnan(choose_and_weigh([[np.nan] * 4], 0.5, temperature=temperature)[1])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"min_p": -0.1}, r"min_p is -0.1, but must be 0 \(off\) to 1"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"temperature": 1e39}, r"temperature is 1e\+39, but must be at least 0 .* and at most 3.4e\+38"),
        ({"repetition_penalty": 0}, r"repetition_penalty is 0, but must be 1e-06 to 1e\+06 \(1 is off\)"),
        ({"repetition_penalty": 1e-45}, "repetition_penalty is 1e-45"),
        ({"repetition_penalty": 1e7}, "repetition_penalty is 10000000.0"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty is nan"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram is -1, but must be a whole number, 0"),
        ({"no_repeat_ngram": 2.5}, "no_repeat_ngram is 2.5"),
        ({"min_length": -1}, "min_length is -1, but must be a whole number, 0"),
        ({"logit_bias": {4: 1.0}}, "logit_bias has 1.0 for 4, but must have ids from 0 to 3"),
        ({"logit_bias": {0: float("nan")}}, "logit_bias has nan for 0"),
        ({"logit_bias": {0: float("inf")}}, "logit_bias has inf for 0"),
        ({"logit_bias": {0: 1e39}}, r"logit_bias has 1e\+39 for 0, but must have .* numbers up to 3.4e\+38"),
    ],
)
def test_wrong_settings_say_what_fits(settings, message):
    with pytest.raises(ValueError, match=message):
        choice(4, **settings)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"temperature": "1"}, "temperature is '1', of type str, but must be a number"),
        ({"top_p": None}, "top_p is None, of type NoneType"),
        ({"min_p": [0.1]}, r"min_p is \[0.1\], of type list"),
        ({"repetition_penalty": 1j}, "repetition_penalty is 1j, of type complex"),
        ({"logit_bias": {3: "1"}}, "logit_bias of 3 is '1', of type str"),
    ],
)
def test_what_is_no_number_is_said_with_its_type(settings, message):
    with pytest.raises(TypeError, match=message):
        choice(4, **settings)


def test_scalars_of_numpy_and_tensorflow_are_numbers():
    for scalar in (np.float32, np.float64, np.array, tf.constant):
        assert choice(4, temperature=scalar(0.5), top_p=scalar(0.5)).top_p == 0.5


def test_each_row_may_have_settings_of_its_own():
    logits = np.random.default_rng(7).normal(size=[4, 50], scale=2)
    noise = [0.2, 0.9, 0.6, 0.95]
    columns = {"temperature": [0.0, 1.5, 0.5, 1.0], "top_k": [0, 5, 0, 2], "top_p": [1.0, 0.9, 0.3, 1.0]}
    settings = {name: tf.constant(values)[:, None] for name, values in columns.items()}
    rows = tf.zeros([4], tf.int32)
    token, _ = (
        choice(50)
        ._replace(**settings)
        .token(tf.constant(logits, tf.float32), Text(rows[:, None], rows, rows, rows), tf.constant(noise, tf.float64))
    )
    alone = [
        choose(logits[i : i + 1], noise[i], **{name: values[i] for name, values in columns.items()})[0]
        for i in range(4)
    ]
    assert token.numpy().tolist() == alone
