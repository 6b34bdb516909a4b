"""Sampling against the reference and against probabilities known beforehand."""

import random

import numpy as np
import pytest
import reference
import tensorflow as tf

from encoder import Encoder
from gpt2_tf import GPT2, HParams, generate, sample_sequence
from gpt2_tf.sample import Choice, decode_one_token, prefill, uniform

HPARAMS = HParams(n_vocab=260, n_ctx=32, n_embd=40, n_head=4, n_layer=2)
CONTEXT = [7, 250, 31]


@pytest.fixture(scope="module")
def model():
    """Random weights, larger than initial ones, so that the likeliest token changes from step to step."""
    rng = np.random.default_rng(0)
    model = GPT2(HPARAMS, w_init_stdev=0)
    for variable in model.weights:
        variable.assign(rng.normal(1 if variable.name == "g" else 0, 0.3, variable.shape))
    return model


def weights(model):
    return {variable.path: variable.numpy() for variable in model.weights}


def sample(model, length=20, context=CONTEXT, **kwargs):
    return sample_sequence(model, length=length, context=context, **kwargs).numpy()


@pytest.mark.parametrize("setting", [{"temperature": 0}, {"top_k": 1}, {"top_p": 1e-6}])
def test_greedy_is_the_references(model, setting):
    expected = reference.greedy(weights(model), HPARAMS.n_head, CONTEXT, 20)
    assert len(set(expected)) > 5
    assert sample(model, **setting).tolist() == [expected]


def test_cached_logits_are_the_uncached(model):
    """1e-5: float32 in another order, on logits of about 3."""
    tokens = np.random.default_rng(1).integers(0, HPARAMS.n_vocab, [3, HPARAMS.n_ctx])
    uncached = model(tokens).numpy()
    logits, past = prefill(model, tokens[:, :5])
    np.testing.assert_allclose(logits, uncached[:, 4], rtol=0, atol=1e-5)
    for i in range(5, HPARAMS.n_ctx):
        logits, past = decode_one_token(model, tokens[:, i], past)
        np.testing.assert_allclose(logits, uncached[:, i], rtol=0, atol=1e-5)


def test_shape_dtype_and_the_context_stays(model):
    tokens = sample_sequence(model, length=4, context=[CONTEXT, CONTEXT[::-1]])
    assert tokens.dtype == tf.int32 and tokens.shape == [2, 7]
    assert tokens[:, :3].numpy().tolist() == [CONTEXT, CONTEXT[::-1]]
    tokens = sample_sequence(model, length=4, start_token=259, batch_size=3)
    assert tokens.shape == [3, 5] and set(tokens[:, 0].numpy()) == {259}
    assert sample(model, batch_size=2).shape == (2, 23)
    assert (sample(model, length=30).shape, sample(model, length=1).shape) == ((1, 33), (1, 4))


def test_a_seed_gives_the_same_text_and_another_another(model):
    assert np.array_equal(sample(model, seed=1, batch_size=3), sample(model, seed=1, batch_size=3))
    assert not np.array_equal(sample(model, seed=1), sample(model, seed=2))
    assert not np.array_equal(sample(model), sample(model))
    random.seed(5)
    first = sample(model)
    random.seed(5)
    assert np.array_equal(first, sample(model))  # None draws from Python's random, which Keras seeds too


def test_a_row_depends_on_the_seed_and_its_number_alone(model):
    wide = sample(model, seed=3, batch_size=8)
    assert len({tuple(row) for row in wide.tolist()}) == 8
    for batch_size in (1, 2, 5):
        assert np.array_equal(sample(model, seed=3, batch_size=batch_size), wide[:batch_size])
    assert np.array_equal(sample(model, seed=3, batch_size=2, length=9), wide[:2, :12])


def test_the_noise_is_uniform_and_rows_are_apart():
    noise = uniform(tf.constant(1, tf.int64), tf.range(200, dtype=tf.int64), 500).numpy()
    assert noise.dtype == np.float64 and noise.min() >= 0 and noise.max() < 1
    # A mean of n uniform numbers deviates by sqrt(1 / 12 n); five times that.
    assert abs(noise.mean() - 0.5) < 5 * np.sqrt(1 / 12 / noise.size)
    assert len(np.unique(noise)) == noise.size
    other_seed = uniform(tf.constant(2, tf.int64), tf.range(200, dtype=tf.int64), 500).numpy()
    for a, b in ((noise[:-1], noise[1:]), (noise[:, :-1], noise[:, 1:]), (noise, other_seed)):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)


def test_each_step_and_row_has_its_own_noise():
    """Where all tokens are as likely, noise u chooses token u n_vocab."""
    flat = GPT2(HPARAMS, w_init_stdev=0)
    noise = uniform(tf.constant(3, tf.int64), tf.range(4, dtype=tf.int64), 20).numpy()
    tokens = sample(flat, seed=3, batch_size=4)[:, len(CONTEXT) :]
    np.testing.assert_array_equal(tokens, np.floor(noise * HPARAMS.n_vocab))


def choose(logits, noise, temperature=1.0, top_k=0, top_p=1.0):
    choice = Choice(tf.constant(temperature), tf.constant(top_k), tf.constant(top_p))
    return choice.token(tf.constant(logits, tf.float32), tf.constant(noise, tf.float64)).numpy()


def test_tokens_come_as_often_as_their_probabilities_say():
    """Evenly spread noise gives each token its share, to one part in the count of draws."""
    logits = np.random.default_rng(2).normal(size=50, scale=2)
    n = 100_000
    noise = (np.arange(n) + 0.5) / n
    for temperature in (0.5, 1.0, 2.0):
        drawn = choose(np.tile(logits, [n, 1]), noise, temperature)
        share = np.bincount(drawn, minlength=50) / n
        np.testing.assert_allclose(share, reference.softmax(logits / temperature), rtol=0, atol=1.5 / n)


def test_the_order_is_temperature_top_k_top_p():
    logits = np.log([[0.4, 0.3, 0.2, 0.1]])
    drawn = set(np.concatenate([choose(logits, [u], 1.0, 3, 0.8) for u in np.linspace(0, 0.999, 300)]))
    assert drawn == {0, 1}  # of the first three 0.44 + 0.33 = 0.78 fits; of all four 0.7, and 0.9 would not
    drawn = set(np.concatenate([choose(logits, [u], 0.5, 0, 0.8) for u in np.linspace(0, 0.999, 300)]))
    assert drawn == {0}  # squared: 0.53, 0.83
    drawn = set(np.concatenate([choose(logits, [u], 0.5, 0, 0.84) for u in np.linspace(0, 0.999, 300)]))
    assert drawn == {0, 1}


@pytest.mark.parametrize("temperature", [1e-9, 1e-30, 1e-38])
@pytest.mark.parametrize("setting", [{}, {"top_k": 40}, {"top_p": 0.9}])
def test_a_temperature_near_0_is_nearly_greedy(temperature, setting):
    logits = np.random.default_rng(4).normal(-60, 5, size=[5, 300])  # real GPT-2's are of that order
    np.testing.assert_array_equal(
        choose(logits, [0.1, 0.3, 0.5, 0.7, 0.999], temperature, **setting), logits.argmax(-1)
    )


@pytest.mark.parametrize("noise", [0.0, np.nextafter(1, 0)])
def test_the_ends_of_the_noise_choose_tokens_that_are_kept(noise):
    logits = np.random.default_rng(3).normal(size=[1, 50257], scale=3)
    kept = reference.top_k_kept(logits[0].astype(np.float32), 7)
    assert set(choose(logits, [noise], 1.0, 7)) <= kept
    assert choose(logits, [noise]) == [0 if noise == 0 else 50256]


def test_one_trace_serves_all_lengths_and_settings(model, monkeypatch):
    sample(model)

    def traced(*args):
        raise AssertionError("the model was traced again")

    monkeypatch.setattr(GPT2, "hidden", traced)
    for kwargs in ({}, {"length": 3}, {"batch_size": 4}, {"context": [1] * 9}, {"top_k": 5}, {"top_p": 0.5, "seed": 1}):
        sample(model, **kwargs)
    with pytest.raises(AssertionError, match="traced again"):
        sample(GPT2(HPARAMS))


def test_many_models_sample_without_a_warning(capfd):
    """TensorFlow warns of retracing where one function is traced five times."""
    for _ in range(6):
        sample(GPT2(HPARAMS))
    assert "retracing" not in capfd.readouterr().err


def test_a_model_is_freed_with_its_loop(model):
    import gc
    import weakref

    other = GPT2(HPARAMS)
    sample(other)
    alive = weakref.ref(other)
    del other
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"length": 0}, "length is 0, but must be 1 to 30: the model's window is 32 tokens, and the prompt has 3"),
        ({"length": 31}, "length is 31, but must be 1 to 30"),
        ({"length": 2.5}, "length is 2.5, but must be 1 to 30"),
        ({"top_k": 2.5}, r"top_k is 2.5, but must be 0 \(off\) to 260"),
        ({"context": [1] * 33}, "the prompt has 33 tokens, but the model reads at most 32; shorten it"),
        ({"context": [260]}, "token id 260 is out of range: the vocabulary's ids are 0 to 259"),
        ({"context": [3, -1]}, "token id -1 is out of range"),
        ({"context": []}, r"context is float64 \[1, 0\], but must be whole numbers"),
        ({"context": [0.5]}, "context is float64"),
        ({"context": None}, "give either a context or a start_token"),
        ({"start_token": 1}, "give either a context or a start_token"),
        ({"context": [[1], [2]], "batch_size": 3}, "context has 2 rows, but batch_size is 3"),
        ({"temperature": -0.1}, "temperature is -0.1, but must be at least 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": -1}, r"top_k is -1, but must be 0 \(off\) to 260"),
        ({"top_k": 261}, r"top_k is 261, but must be 0 \(off\) to 260"),
        ({"top_p": 0}, r"top_p is 0, but must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"seed": 2**63}, "seed is 9223372036854775808, but must be a whole number of 64 bits"),
        ({"seed": 0.5}, "seed is 0.5"),
    ],
)
def test_wrong_arguments_say_what_fits(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        sample(model, **arguments)


# generate: with a vocabulary of bytes and one merge, that fits the model's 260 ids


@pytest.fixture(scope="module")
def enc(tmp_path_factory):
    from encoder.train import train

    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "text").write_text("the then them " * 3)
    return train([folder / "text"], 260, folder)


def test_generate_is_sample_sequence_with_text(model, enc):
    completions = generate(model, enc, ["them", "e"], length=6, num_samples=2, seed=4, temperature=0)
    assert [c.prompt for c in completions] == ["them", "them", "e", "e"]
    for c in completions:
        expected = reference.greedy(weights(model), HPARAMS.n_head, enc.encode(c.prompt), 6)[-6:]
        assert (c.ids, c.text, c.finish_reason) == (expected, enc.decode(expected), "length")


def test_the_batch_size_changes_nothing(model, enc):
    whole = generate(model, enc, ["them", "e"], length=6, num_samples=5, seed=4)
    assert len({tuple(c.ids) for c in whole}) == 10
    for batch_size in (1, 2, 3, 7):
        assert generate(model, enc, ["them", "e"], length=6, num_samples=5, seed=4, batch_size=batch_size) == whole
    assert generate(model, enc, "them", length=6, num_samples=2, seed=4) == whole[:2]


def test_without_a_length_it_is_100_or_what_fits(model, enc):
    assert [len(c.ids) for c in generate(model, enc, ["e", "x" * 32], seed=1)] == [32, 1]
    long = GPT2(HParams(n_vocab=260, n_ctx=300, n_embd=4, n_head=1, n_layer=1), w_init_stdev=0)
    (completion,) = generate(long, enc, "e", seed=1)
    assert len(completion.ids) == 100 or completion.finish_reason == "stop"


def test_no_prompt_starts_from_end_of_text(model, enc):
    (completion,) = generate(model, enc, length=6, temperature=0)
    assert completion.prompt == ""
    expected = reference.greedy(weights(model), HPARAMS.n_head, [enc.end_of_text], 6)[1:]
    assert completion.ids == expected


def test_generate_stops_at_end_of_text(enc):
    """A model that writes 65, 66, 67, <|endoftext|>, whatever it read: its positions alone decide."""
    model = GPT2(HParams(n_vocab=260, n_ctx=8, n_embd=260, n_head=1, n_layer=1), w_init_stdev=0)
    model.wte.assign(np.eye(260) * 1e-3)
    model.ln_f.g.assign(np.ones(260) * 1e3)
    for variable in model.weights:
        if variable.name == "g" and "ln_f" not in variable.path:
            variable.assign(np.ones(260))
    wpe = np.zeros([8, 260])
    wpe[range(8), [65, 66, 67, enc.end_of_text, 68, 68, 68, 68]] = 1
    model.wpe.assign(wpe)
    (completion,) = generate(model, enc, enc.decode([0]), length=7, temperature=0)
    assert completion.ids == [65, 66, 67]
    assert (completion.text, completion.finish_reason) == (enc.decode([65, 66, 67]), "stop")


def test_generate_says_what_is_wrong(model, enc, tmp_path):
    with pytest.raises(ValueError, match="the prompt is empty; leave it out"):
        generate(model, enc, ["e", ""])
    with pytest.raises(ValueError, match="the prompt has 100,000 tokens, but the model reads at most 32; shorten it"):
        generate(model, enc, "x" * 100_000)
    for name in ("num_samples", "batch_size"):
        with pytest.raises(ValueError, match=f"{name} is 0, but must be at least 1"):
            generate(model, enc, "e", **{name: 0})
    with pytest.raises(ValueError, match="the vocabulary has 260 tokens, but the model 261"):
        generate(GPT2(HParams(n_vocab=261, n_ctx=8, n_embd=4, n_head=1, n_layer=1)), enc, "e")


def test_text_of_another_vocabulary_stays_whole(model, enc):
    assert isinstance(enc, Encoder)
    (completion,) = generate(model, enc, "größer 😀", length=3, temperature=0)
    assert completion.prompt + completion.text == "größer 😀" + enc.decode(completion.ids)
