"""The network against the NumPy float64 reference, on small random models."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from oracles.random_model import HPARAMS, arrays, random_model, reference_outputs

from gpt2_tf import GPT2, HParams, sample_sequence
from gpt2_tf.model.gpt2 import Block, attention_mask

# Logits of about 1, float32 against float64: 1e-5 is about a hundred roundings.
TOLERANCE = 1e-5


def test_logits_and_present_equal_the_reference(model, tokens):
    logits, present = reference_outputs(model, tokens)
    result = model.forward(tokens)
    np.testing.assert_allclose(result["logits"], logits, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(result["present"], present, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(model(tokens), logits, rtol=0, atol=TOLERANCE)
    assert result["logits"].dtype == tf.float32


@pytest.mark.parametrize("n_head, n_embd, n_layer", [(1, 8, 1), (8, 8, 2), (3, 48, 2), (2, 34, 5)])
def test_other_sizes_equal_the_reference(n_head, n_embd, n_layer):
    model = random_model(HParams(n_vocab=257, n_ctx=9, n_embd=n_embd, n_head=n_head, n_layer=n_layer), 0.1)
    tokens = np.random.default_rng(2).integers(0, 257, [2, 9])
    np.testing.assert_allclose(model(tokens), reference_outputs(model, tokens)[0], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("cuts", [[1], [47], [20, 21], list(range(1, 48))])
def test_logits_with_a_cache_equal_logits_without(model, tokens, cuts):
    whole = model.forward(tokens)
    past, logits = None, []
    for piece in np.split(tokens, cuts, axis=1):
        result = model.forward(piece, past)
        assert result["present"].shape[4] == piece.shape[1]  # OpenAI's `present` holds the new tokens only
        past = result["present"] if past is None else tf.concat([past, result["present"]], axis=4)
        logits.append(result["logits"])
    np.testing.assert_allclose(tf.concat(logits, 1), whole["logits"], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(past, whole["present"], rtol=0, atol=TOLERANCE)


def test_no_token_attends_to_later_tokens(model, tokens):
    changed = tokens.copy()
    changed[:, 30:] = (changed[:, 30:] + 1) % HPARAMS.n_vocab
    before, after = model(tokens).numpy(), model(changed).numpy()
    np.testing.assert_array_equal(before[:, :30], after[:, :30])
    assert np.abs(before[:, 30:] - after[:, 30:]).max() > 0.1


def test_weights_have_openais_names_and_shapes():
    shapes = {variable.path: tuple(variable.shape) for variable in random_model(HPARAMS, 0.1).weights}
    v, c, e = HPARAMS.n_vocab, HPARAMS.n_ctx, HPARAMS.n_embd
    wanted = {"model/wte": (v, e), "model/wpe": (c, e), "model/ln_f/g": (e,), "model/ln_f/b": (e,)}
    for i in range(HPARAMS.n_layer):
        for norm in ("ln_1", "ln_2"):
            wanted |= {f"model/h{i}/{norm}/g": (e,), f"model/h{i}/{norm}/b": (e,)}
        for dense, nx, nf in (
            ("attn/c_attn", e, 3 * e),
            ("attn/c_proj", e, e),
            ("mlp/c_fc", e, 4 * e),
            ("mlp/c_proj", 4 * e, e),
        ):
            wanted |= {f"model/h{i}/{dense}/w": (1, nx, nf), f"model/h{i}/{dense}/b": (nf,)}
    assert shapes == wanted


def test_initial_weights_have_the_papers_deviations():
    model = GPT2(HParams(n_vocab=500, n_ctx=200, n_embd=128, n_head=4, n_layer=8))
    values = arrays(model)
    for name, value in values.items():
        if name.endswith("/b"):
            assert not value.any()
        elif name.endswith("/g"):
            assert (value == 1).all()
        else:
            stdev = 0.01 if name == "model/wpe" else 0.02 / 4 if "c_proj" in name else 0.02
            # The standard deviation of n draws has a relative error of 1 / sqrt(2 n). Allow five times that.
            assert value.std() == pytest.approx(stdev, rel=5 / np.sqrt(2 * value.size)), name
    assert not np.array_equal(values["model/h0/mlp/c_fc/w"], values["model/h1/mlp/c_fc/w"])


@pytest.fixture(params=["argument", "global"])
def mixed(request):
    """A model of mixed precision, set by its argument or by Keras's global policy, which stays set during the test."""
    if request.param == "argument":
        yield random_model(HPARAMS, 0.1, dtype="mixed_bfloat16")
        return
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield random_model(HPARAMS, 0.1)
    keras.config.set_dtype_policy(before)


def test_mixed_precision_computes_in_bfloat16_and_answers_in_float32(mixed, model, tokens):
    assert {variable.dtype for variable in mixed.weights} == {"float32"}
    layers = {layer.name: layer.compute_dtype for layer in mixed._flatten_layers(include_self=False)}
    assert {name for name, dtype in layers.items() if dtype == "float32"} == {"ln_1", "ln_2", "ln_f"}
    logits = mixed(tokens)
    assert logits.dtype == mixed.forward(tokens)["logits"].dtype == tf.float32
    assert mixed.hidden_states(tokens)[0].dtype == tf.bfloat16
    np.testing.assert_array_equal(mixed.forward(tokens)["logits"], logits)
    error = np.abs(logits - model(tokens)).max()
    assert 1e-3 < error < 0.2  # bfloat16 has 8 bits, so the logits must differ a little
    assert sample_sequence(mixed, length=5, context=[1, 2], seed=1).shape == [1, 7]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_other_dtypes_sample(dtype):
    assert sample_sequence(
        random_model(HPARAMS, 0.1, dtype=dtype), length=5, context=[1, 2], top_k=3, top_p=0.9
    ).shape == [1, 7]


def test_float64_equals_the_reference(tokens):
    """No step computes in float32: 1e-12 allows the roundings of float64 only."""
    model = random_model(HPARAMS, 0.1, dtype="float64")
    np.testing.assert_allclose(model(tokens), reference_outputs(model, tokens)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("place", ["embedding", "scores", "attention", "mlp"])
def test_each_dropout_is_applied_in_training_only(tokens, place):
    model = GPT2(dataclasses.replace(HPARAMS, dropout=0.5), w_init_stdev=0.2)
    rates = [model, *(block.attn for block in model.h), *(block.mlp for block in model.h)]
    for layer in rates[1:]:
        layer.dropout = 0
    if place != "embedding":
        model.hparams = dataclasses.replace(HPARAMS, dropout=1e-9)  # drops nothing, but a seed is drawn
    if place == "mlp":
        model.h[1].mlp.dropout = 0.5
    elif place != "embedding":
        # The attention has two dropouts. That of the projection shows as zeros in the output.
        model.h[1].attn.dropout = 0.5
        x = tf.random.stateless_normal([4, 48, 60], [1, 2])
        out, _ = model.h[1].attn(x, attention_mask(48, 48), seed=tf.constant([3, 4]))
        share = np.mean(out.numpy() == 0)
        assert share == pytest.approx(0.5, abs=0.03)  # 11,520 values: 0.03 is six standard deviations
        kept, _ = model.h[1].attn(x, attention_mask(48, 48))
        alone = np.where(out.numpy() == 0, 0, 2 * kept)
        assert np.abs(out - alone).max() > 0.01  # the scores were dropped too
    assert np.abs(model(tokens, training=True) - model(tokens)).max() > 0.01
    np.testing.assert_array_equal(model(tokens, training=False), model(tokens))


def test_blocks_and_steps_draw_different_dropout(tokens, monkeypatch):
    model = GPT2(dataclasses.replace(HPARAMS, dropout=0.5), w_init_stdev=0.2)
    seeds = []
    call = Block.call

    def noted(block, *args, seed, **kwargs):
        seeds.append(tuple(seed.numpy()))
        return call(block, *args, seed=seed, **kwargs)

    monkeypatch.setattr(Block, "call", noted)
    model(tokens, training=True)
    model(tokens, training=True)
    assert len(set(seeds)) == len(seeds) == 6


def test_every_weight_has_a_gradient(model, tokens):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(tokens)))
    for variable, gradient in zip(
        model.trainable_weights, tape.gradient(loss, [v.value for v in model.trainable_weights]), strict=True
    ):
        assert gradient is not None and np.abs(gradient).max() > 0, variable.path


def test_a_sequence_longer_than_the_window_is_an_error(model):
    with pytest.raises(ValueError, match="49 tokens are more than the model's window, n_ctx 48"):
        model.forward(np.zeros([1, 49], np.int32))
    past = model.forward(np.zeros([1, 40], np.int32))["present"]
    with pytest.raises(ValueError, match="49 tokens are more than"):
        model.forward(np.zeros([1, 9], np.int32), past)


def test_a_sequence_longer_than_the_window_is_an_error_in_a_graph(model):
    """Without the check, the slice of `wpe` would be empty, and adding an empty tensor raises no error."""

    @tf.function(input_signature=[tf.TensorSpec([1, None], tf.int32), tf.TensorSpec([1, 3, 2, 5, None, 12])])
    def forward(tokens, past):
        return model.forward(tokens, past)["logits"]

    past = model.forward(np.zeros([1, 48], np.int32))["present"]
    assert forward(np.zeros([1, 1], np.int32), past[..., :47, :]).shape == [1, 1, 311]
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"more tokens than the model.*window"):
        forward(np.zeros([1, 1], np.int32), past)


@pytest.mark.parametrize("tokens", [[1, 2], [[0.5]], [[[1]]]])
def test_tokens_must_be_integers_of_two_axes(model, tokens):
    with pytest.raises(ValueError, match=r"must be integers \[batch, seq\]"):
        model.forward(tokens)


def test_gpt2_takes_hparams_only():
    with pytest.raises(TypeError, match=r"GPT2 takes HParams, not '124M'; to load a model by its name"):
        GPT2("124M")
