"""`sample_sequence` and the decode loop: against the reference, and against known probabilities."""

import random

import numpy as np
import pytest
import tensorflow as tf
from oracles import reference
from oracles.random_model import is_freed_after, random_model

from gpt2_tf import GPT2, HParams, sample_sequence
from gpt2_tf.generation.decoding import decode_one_token, left_pad, prefill
from gpt2_tf.generation.noise import NOISE_COLUMNS, UniformNoise, draw_uniform

HPARAMS = HParams(n_vocab=260, n_ctx=32, n_embd=40, n_head=4, n_layer=2)  # the same as `lively` has
CONTEXT = [7, 250, 31]


@pytest.fixture
def model(lively):
    return lively


def weights(model):
    return {variable.path: variable.numpy() for variable in model.weights}


def sample(model, length=20, context=CONTEXT, **kwargs):
    return sample_sequence(model, length=length, context=context, **kwargs).numpy()


@pytest.mark.parametrize("setting", [{"temperature": 0}, {"top_k": 1}, {"top_p": 1e-6}])
def test_greedy_tokens_are_the_references(model, setting):
    expected = reference.greedy(weights(model), HPARAMS.n_head, CONTEXT, 20)
    assert len(set(expected)) > 5
    assert sample(model, **setting).tolist() == [expected]


@pytest.mark.slow
@pytest.mark.parametrize("dtype, atol", [("float32", 1e-5), ("bfloat16", 0.3), ("mixed_bfloat16", 0.3)])
@pytest.mark.parametrize("batch", [1, 3])
def test_cached_logits_are_the_uncached_of_float32(model, dtype, atol, batch):
    """In float32 only the order of sums differs. In bfloat16 the largest difference is 0.24, on logits of up to 9."""
    tokens = np.random.default_rng(1).integers(0, HPARAMS.n_vocab, [batch, HPARAMS.n_ctx])
    uncached = model(tokens).numpy()
    model = model if dtype == "float32" else random_model(HPARAMS, dtype=dtype)
    past = prefill(model, tokens[:, :5])
    worst = 0
    for i in range(4, HPARAMS.n_ctx):
        logits, past = decode_one_token(model, tokens[:, i], past)
        worst = max(worst, abs(tf.cast(logits, tf.float32) - uncached[:, i]).numpy().max())
    assert worst < atol


def test_padded_rows_have_the_same_logits_as_alone(model):
    """Within 1e-5: float32 sums in another order. The tokens in the padding are random and must change nothing."""
    rng = np.random.default_rng(2)
    rows = [rng.integers(0, HPARAMS.n_vocab, n).tolist() for n in (1, 9, 4, 9)]
    tokens, pad_lengths = left_pad(rows)
    assert tokens.shape == [4, 9] and pad_lengths.numpy().tolist() == [8, 0, 5, 0]
    noise = tf.where(tf.range(9) < pad_lengths[:, None], rng.integers(0, HPARAMS.n_vocab, [4, 9]), tokens)
    past = prefill(model, noise, pad_lengths=pad_lengths)
    new = rng.integers(0, HPARAMS.n_vocab, [4, 5])
    read = tokens[:, -1]
    for i in range(5):
        logits, past = decode_one_token(model, read, past, pad_lengths)
        for row, text in enumerate(rows):
            alone = model(np.array([text + new[row, :i].tolist()]))[0, -1]
            np.testing.assert_allclose(logits[row], alone, rtol=0, atol=1e-5)
        read = tf.constant(new[:, i], tf.int32)


def test_shape_and_dtype_and_the_context_is_kept(model):
    tokens = sample_sequence(model, length=4, context=[CONTEXT, CONTEXT[::-1]])
    assert tokens.dtype == tf.int32 and tokens.shape == [2, 7]
    assert tokens[:, :3].numpy().tolist() == [CONTEXT, CONTEXT[::-1]]
    tokens = sample_sequence(model, length=4, start_token=259, batch_size=3)
    assert tokens.shape == [3, 5] and set(tokens[:, 0].numpy()) == {259}
    assert sample(model, batch_size=2).shape == (2, 23)
    assert (sample(model, length=30).shape, sample(model, length=1).shape) == ((1, 33), (1, 4))


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others(model):
    assert np.array_equal(sample(model, seed=1, batch_size=3), sample(model, seed=1, batch_size=3))
    assert not np.array_equal(sample(model, seed=1), sample(model, seed=2))
    assert not np.array_equal(sample(model), sample(model))
    random.seed(5)
    first = sample(model)
    random.seed(5)
    assert np.array_equal(first, sample(model))  # Without a seed, Python's random draws one, which Keras seeds too.


def test_a_row_depends_on_the_seed_and_its_number_alone(model):
    wide = sample(model, seed=3, batch_size=8)
    assert len({tuple(row) for row in wide.tolist()}) == 8
    for batch_size in (1, 2, 5):
        assert np.array_equal(sample(model, seed=3, batch_size=batch_size), wide[:batch_size])
    assert np.array_equal(sample(model, seed=3, batch_size=2, length=9), wide[:2, :12])


def test_the_noise_is_uniform_and_independent_between_rows():
    noise = draw_uniform(1, range(200), 500)
    assert noise.dtype == np.float64 and noise.min() >= 0 and noise.max() < 1
    # The mean of n uniform numbers has standard deviation sqrt(1 / 12 n); five times that is allowed.
    assert abs(noise.mean() - 0.5) < 5 * np.sqrt(1 / 12 / noise.size)
    assert len(np.unique(noise)) == noise.size
    other_seed = draw_uniform(2, range(200), 500)
    for a, b in ((noise[:-1], noise[1:]), (noise[:, :-1], noise[:, 1:]), (noise, other_seed)):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)


def test_a_seed_draws_the_same_noise_in_every_version():
    """TensorFlow's Philox on Linux. Other numbers would change the texts of seeds that people have noted."""
    golden = [
        [0.027906033135913777, 0.8023308951269792, 0.025547004201075474],
        [0.03450368772187762, 0.7541917077600844, 0.45727409088704696],
    ]
    np.testing.assert_array_equal(draw_uniform(1, [0, 5], 3), golden)


@pytest.mark.parametrize("seed", [0, 1, -3, 2**31, -(2**63), 2**63 - 1])
def test_noise_drawn_in_blocks_equals_noise_drawn_at_once(seed):
    """An export draws all of it at once, by `tf.random.stateless_uniform`."""
    rows, n = [0, 5, 2**31 - 1], 3 * NOISE_COLUMNS
    draw = {"dtype": tf.float64, "alg": "philox"}
    whole = np.stack([tf.random.stateless_uniform([n], np.array([seed, row]), **draw) for row in rows])
    for first in (0, 2, 514, 2 * NOISE_COLUMNS):
        np.testing.assert_array_equal(draw_uniform(seed, rows, 50, first), whole[:, first : first + 50])
    noise, first = UniformNoise(seed, rows), 0
    for size in (
        1,
        8,
        3,
        1000,
        8,
        25,
        1,
        *[8] * 40,
        NOISE_COLUMNS - 50,
    ):  # across the ends of blocks, and from odd columns
        np.testing.assert_array_equal(noise.columns(first, first + size), whole[:, first : first + size])
        first += size
    np.testing.assert_array_equal(noise.columns(7, 9), whole[:, 7:9])
    assert noise.drawn.shape == (3, NOISE_COLUMNS)


def test_each_step_and_row_has_its_own_noise():
    """Where all tokens are equally likely, noise u samples token floor(u * n_vocab)."""
    flat = GPT2(HPARAMS, w_init_stdev=0)
    noise = draw_uniform(3, range(4), 20)
    tokens = sample(flat, seed=3, batch_size=4)[:, len(CONTEXT) :]
    np.testing.assert_array_equal(tokens, np.floor(noise * HPARAMS.n_vocab))


def test_one_trace_serves_all_lengths_and_settings(model, forbid_traces):
    """There is one trace for a single row, and one for all larger batches."""
    sample(model)
    sample(model, batch_size=2)

    forbid_traces()
    for kwargs in ({}, {"length": 3}, {"batch_size": 4}, {"context": [1] * 9}, {"top_k": 5}, {"top_p": 0.5, "seed": 1}):
        sample(model, **kwargs)
    with pytest.raises(AssertionError, match="traced again"):
        sample(GPT2(HPARAMS))


@pytest.mark.slow
def test_many_models_sample_without_a_warning(caplog, monkeypatch):
    """TensorFlow logs a retracing warning once one function has been traced five times."""
    monkeypatch.setattr(tf.get_logger(), "propagate", True)
    for _ in range(6):
        sample(GPT2(HPARAMS), length=2)
    assert "retracing" not in caplog.text


@pytest.mark.slow
def test_a_model_is_freed_after_sampling():
    assert is_freed_after(sample, HPARAMS)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"length": 0}, "length is 0, but must be 1 to 30: the model's window is 32 tokens, and the prompt has 3"),
        ({"length": 31}, "length is 31, but must be 1 to 30"),
        ({"length": 2.5}, "length is 2.5, but must be 1 to 30"),
        ({"top_k": 2.5}, r"top_k is 2.5, but must be a whole number of at least 0"),
        ({"context": [1] * 33}, "the prompt has 33 tokens, but the model reads at most 32; shorten it"),
        ({"context": [260]}, "token id 260 is out of range: the vocabulary's ids are 0 to 259"),
        ({"context": [3, -1]}, "token id -1 is out of range"),
        ({"context": []}, r"context is float64 \[1, 0\], but must be whole numbers"),
        ({"context": [0.5]}, "context is float64"),
        ({"context": None}, "give either a context or a start_token"),
        ({"start_token": 1}, "give either a context or a start_token"),
        ({"context": [[1], [2]], "batch_size": 3}, "context has 2 rows, but batch_size is 3"),
        ({"temperature": -0.1}, "temperature is -0.1, but must be a number from 0 to 3.4e"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": -1}, r"top_k is -1, but must be a whole number of at least 0"),
        ({"top_k": 261}, r"top_k is 261, but must be 0 \(off\) to 260"),
        ({"top_p": 0}, r"top_p is 0, but must be a number above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"seed": 2**63}, "seed is 9223372036854775808, but must be a whole number from -2.63 to 2.63 - 1"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"length": None}, "length is None, but must be 1 to 30"),
        ({"context": [[1], [1, 2]]}, "the context's rows have different lengths"),
        ({"batch_size": 0}, "batch_size is 0, but must be a whole number of at least 1"),
    ],
)
def test_wrong_arguments_are_errors_that_say_what_is_expected(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        sample(model, **arguments)
