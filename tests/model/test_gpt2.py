"""The model against the NumPy float64 reference, on small random models."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from oracles import reference

from gpt2_tf import GPT2, HParams, sample_sequence
from gpt2_tf.model.gpt2 import Block, attention_mask
from gpt2_tf.model.loss import cross_entropy
from gpt2_tf.model.ops import dropout

HPARAMS = HParams(n_vocab=311, n_ctx=48, n_embd=60, n_head=5, n_layer=3)
# float32 against float64 on logits of about 1: 1e-5 is a hundred roundings.
TOLERANCE = 1e-5


def random_model(hparams=HPARAMS, seed=0, **kwargs):
    """A model whose every weight matters: gains and biases aren't left at 1 and 0."""
    rng = np.random.default_rng(seed)
    model = GPT2(hparams, w_init_stdev=0, **kwargs)
    for variable in model.weights:
        mean = 1 if variable.name == "g" else 0
        variable.assign(rng.normal(mean, 0.1, variable.shape))
    return model


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(1).integers(0, HPARAMS.n_vocab, [4, HPARAMS.n_ctx])


def weights(model):
    return {variable.path: variable.numpy() for variable in model.weights}


def expected(model, tokens):
    rows = [reference.forward(weights(model), model.hparams.n_head, row) for row in tokens]
    return [np.stack(part) for part in zip(*rows, strict=True)]


def test_logits_and_present_are_the_references(model, tokens):
    logits, present = expected(model, tokens)
    result = model.forward(tokens)
    np.testing.assert_allclose(result["logits"], logits, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(result["present"], present, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(model(tokens), logits, rtol=0, atol=TOLERANCE)
    assert result["logits"].dtype == tf.float32


@pytest.mark.parametrize("n_head, n_embd, n_layer", [(1, 8, 1), (8, 8, 2), (3, 48, 2), (2, 34, 5)])
def test_other_shapes_agree_too(n_head, n_embd, n_layer):
    model = random_model(HParams(n_vocab=257, n_ctx=9, n_embd=n_embd, n_head=n_head, n_layer=n_layer))
    tokens = np.random.default_rng(2).integers(0, 257, [2, 9])
    np.testing.assert_allclose(model(tokens), expected(model, tokens)[0], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("cuts", [[1], [47], [20, 21], list(range(1, 48))])
def test_cached_equals_uncached(model, tokens, cuts):
    whole = model.forward(tokens)
    past, logits = None, []
    for piece in np.split(tokens, cuts, axis=1):
        result = model.forward(piece, past)
        assert result["present"].shape[4] == piece.shape[1]  # of the new tokens alone, as OpenAI's
        past = result["present"] if past is None else tf.concat([past, result["present"]], axis=4)
        logits.append(result["logits"])
    np.testing.assert_allclose(tf.concat(logits, 1), whole["logits"], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(past, whole["present"], rtol=0, atol=TOLERANCE)


def test_no_token_looks_ahead(model, tokens):
    changed = tokens.copy()
    changed[:, 30:] = (changed[:, 30:] + 1) % HPARAMS.n_vocab
    before, after = model(tokens).numpy(), model(changed).numpy()
    np.testing.assert_array_equal(before[:, :30], after[:, :30])
    assert np.abs(before[:, 30:] - after[:, 30:]).max() > 0.1


def test_names_and_shapes_are_openais():
    shapes = {variable.path: tuple(variable.shape) for variable in random_model().weights}
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


def test_initial_weights_are_the_papers():
    model = GPT2(HParams(n_vocab=500, n_ctx=200, n_embd=128, n_head=4, n_layer=8))
    values = weights(model)
    for name, value in values.items():
        if name.endswith("/b"):
            assert not value.any()
        elif name.endswith("/g"):
            assert (value == 1).all()
        else:
            stdev = 0.01 if name == "model/wpe" else 0.02 / 4 if "c_proj" in name else 0.02
            # The deviation of n draws is off by 1 / sqrt(2 n); five times that.
            assert value.std() == pytest.approx(stdev, rel=5 / np.sqrt(2 * value.size)), name
    assert not np.array_equal(values["model/h0/mlp/c_fc/w"], values["model/h1/mlp/c_fc/w"])


def test_keras_saving_keeps_everything(model, tokens, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.hparams == model.hparams
    np.testing.assert_array_equal(loaded(tokens), model(tokens))


def test_keras_saving_keeps_the_dtype_policy(tokens, tmp_path):
    model = random_model(dtype="mixed_bfloat16")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.h[0].mlp.c_fc.dtype_policy.name == "mixed_bfloat16"
    np.testing.assert_array_equal(loaded(tokens), model(tokens))


@pytest.fixture(params=["argument", "global"])
def mixed(request):
    """A model of mixed precision, told so itself or by Keras's global policy, which stays while the test runs."""
    if request.param == "argument":
        yield random_model(dtype="mixed_bfloat16")
        return
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield random_model()
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
    assert 1e-3 < error < 0.2  # bfloat16 has 8 bits: it must differ, and not by much
    assert sample_sequence(mixed, length=5, context=[1, 2], seed=1).shape == [1, 7]


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_other_dtypes_sample(dtype):
    assert sample_sequence(random_model(dtype=dtype), length=5, context=[1, 2], top_k=3, top_p=0.9).shape == [1, 7]


def test_float64_is_the_reference(tokens):
    """No float32 is left in between: 1e-12 is float64's roundings."""
    model = random_model(dtype="float64")
    np.testing.assert_allclose(model(tokens), expected(model, tokens)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("place", ["embedding", "scores", "attention", "mlp"])
def test_each_dropout_works_in_training_alone(tokens, place):
    model = GPT2(dataclasses.replace(HPARAMS, dropout=0.5), w_init_stdev=0.2)
    rates = [model, *(block.attn for block in model.h), *(block.mlp for block in model.h)]
    for layer in rates[1:]:
        layer.dropout = 0
    if place != "embedding":
        model.hparams = dataclasses.replace(HPARAMS, dropout=1e-9)  # drops nothing, but draws a seed
    if place == "mlp":
        model.h[1].mlp.dropout = 0.5
    elif place != "embedding":
        # Either of the attention's two: the projection's zeros show in what it gives.
        model.h[1].attn.dropout = 0.5
        x = tf.random.stateless_normal([4, 48, 60], [1, 2])
        out, _ = model.h[1].attn(x, attention_mask(48, 48), seed=tf.constant([3, 4]))
        share = np.mean(out.numpy() == 0)
        assert share == pytest.approx(0.5, abs=0.03)  # of 11,520 values; 0.03 is six deviations
        kept, _ = model.h[1].attn(x, attention_mask(48, 48))
        alone = np.where(out.numpy() == 0, 0, 2 * kept)
        assert np.abs(out - alone).max() > 0.01  # so the scores were dropped too
    assert np.abs(model(tokens, training=True) - model(tokens)).max() > 0.01
    np.testing.assert_array_equal(model(tokens, training=False), model(tokens))


def test_dropout_keeps_the_mean_and_is_a_function_of_seed_and_site():
    x, seed = tf.ones([100, 1000]), tf.constant([5, 6])
    dropped = dropout(x, 0.2, seed, 3).numpy()
    assert set(np.unique(dropped)) == {0, np.float32(1.25)}
    assert dropped.mean() == pytest.approx(1, abs=0.01)  # the deviation of the mean is 0.0016
    np.testing.assert_array_equal(dropout(x, 0.2, seed, 3), dropped)
    for other in (dropout(x, 0.2, seed, 4), dropout(x, 0.2, seed + 1, 3)):
        assert np.mean(other.numpy() == dropped) == pytest.approx(0.68, abs=0.02)  # 0.8 * 0.8 + 0.2 * 0.2
    assert dropout(x, 0.2, None, 3) is x and dropout(x, 0, seed, 3) is x


def test_blocks_and_steps_drop_differently(tokens, monkeypatch):
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


def test_fit_learns_and_dropout_is_of_training_alone():
    keras.utils.set_random_seed(0)
    model = GPT2(HParams(n_vocab=260, n_ctx=8, n_embd=32, n_head=4, n_layer=2, dropout=0.1))
    rows = np.tile(np.arange(9), [16, 1])
    model.compile(
        optimizer=keras.optimizers.AdamW(1e-2),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    history = model.fit(rows[:, :-1], rows[:, 1:], batch_size=8, epochs=25, verbose=0)
    assert history.history["loss"][0] > 5  # log 260 is 5.56
    assert history.history["loss"][-1] < 0.5
    np.testing.assert_array_equal(model(rows[:, :-1]), model(rows[:, :-1], training=False))
    assert not np.array_equal(model(rows[:, :-1], training=True), model(rows[:, :-1]))


@pytest.fixture(scope="module")
def batch(tokens):
    """Rows of 48, 40, 3 and 10 targets, and padding."""
    targets = np.roll(tokens, -1, axis=1)
    for row, length in enumerate((48, 40, 3, 10)):
        targets[row, length:] = -1
    return tokens, targets


def stepped(batch, dtype=None, dropout=0.0, remat=False, n_layer=1, **settings):
    """The loss of one step by a plain SGD, and by how much each weight has changed: minus the gradient."""
    model = random_model(dataclasses.replace(HPARAMS, dropout=dropout, n_layer=n_layer), dtype=dtype, remat=remat)
    model.seeds.state.assign([7, 0])
    before = weights(model)
    model.compile(keras.optimizers.SGD(1.0), **settings)
    loss = model.train_on_batch(*batch)
    return loss, {name: value - before[name] for name, value in weights(model).items()}


def assert_same_step(one, other, rtol=1e-5):
    """Each gradient's difference as a share of its size; 1e-5 are float32 sums in another order, of weights of 1."""
    assert one[0] == pytest.approx(other[0], rel=rtol)
    for name, change in one[1].items():
        assert np.linalg.norm(change - other[1][name]) <= rtol * np.linalg.norm(change), name


def test_the_models_own_loss_is_keras_loss(batch):
    keras_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    model = random_model()
    model.compile()
    own = model.evaluate(*batch, batch_size=4, verbose=0)
    assert own == pytest.approx(float(keras_loss(batch[1], model(batch[0]))), rel=1e-6)
    # Over batches of unequal padding too, each target counts once.
    assert model.evaluate(*batch, batch_size=2, verbose=0) == pytest.approx(own, rel=1e-6)
    model.compile(loss=keras_loss)
    assert model.evaluate(*batch, batch_size=4, verbose=0) == pytest.approx(own, rel=1e-6)


def test_a_step_on_the_own_loss_is_one_on_keras_loss(tokens):
    batch = tokens, np.roll(tokens, -1, axis=1)
    keras_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert_same_step(stepped(batch), stepped(batch, loss=keras_loss), 3e-5)


@pytest.mark.parametrize("n", [2, 4])
def test_accumulation_is_the_large_batch(batch, n):
    """Its parts are of unequal padding. 1e-5: float32 sums in another order."""
    assert_same_step(stepped(batch), stepped(batch, grad_accumulation=n))


@pytest.mark.parametrize("rate", [0, 0.3])
@pytest.mark.parametrize("n", [1, 2])
def test_remat_changes_nothing(batch, rate, n):
    one, other = (stepped(batch, dropout=rate, remat=remat, grad_accumulation=n) for remat in (False, True))
    assert_same_step(one, other)


def test_remat_keeps_no_blocks_activations(tokens, monkeypatch):
    """Each block is called twice in a step: on the way there, and for its gradient."""
    calls = []
    call = Block.call

    def noted(block, *args, **kwargs):
        calls.append(block.name)
        return call(block, *args, **kwargs)

    monkeypatch.setattr(Block, "call", noted)
    model = random_model(remat=True)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(tokens, training=True))
    tape.gradient(loss, model.trainable_variables)
    assert calls == ["h0", "h1", "h2", "h2", "h1", "h0"]


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("settings", [{}, {"grad_accumulation": 2}, {"remat": True}], ids=str)
def test_mixed_precision_trains(batch, dtype, settings):
    """bfloat16 has 8 bits, float16 11: shares of a gradient's size that they are off by."""
    rtol = 0.05 if dtype == "mixed_bfloat16" else 0.01
    assert_same_step(stepped(batch), stepped(batch, dtype=dtype, **settings), rtol)


def test_float16_scales_its_loss_and_skips_what_overflows(batch):
    model = random_model(dtype="mixed_float16")
    model.compile(keras.optimizers.SGD(0.1))
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    model.optimizer.build(model.trainable_variables)
    model.optimizer.dynamic_scale.assign(2.0**100)
    before = model.wte.numpy()
    model.train_on_batch(*batch)
    assert float(model.optimizer.dynamic_scale) == 2.0**99 and int(model.optimizer.iterations) == 0
    np.testing.assert_array_equal(model.wte, before)
    model.optimizer.dynamic_scale.assign(2.0**10)
    model.train_on_batch(*batch)
    assert int(model.optimizer.iterations) == 1 and np.abs(model.wte - before).max() > 0


@pytest.fixture(scope="module")
def adapted():
    """A model with adapters that matter as much as its weights, and one of the same weights, merged by NumPy."""
    model = random_model(dataclasses.replace(HPARAMS, n_layer=2), lora_rank=8)
    merged = GPT2(model.hparams, w_init_stdev=None)
    adapters = {name: variable.numpy().astype(np.float64) for name, variable in model.adapters().items()}
    for name, variable in model.named_weights().items():
        a, b = (adapters.get(f"{name.removesuffix('w')}lora_{kind}") for kind in "ab")
        merged.named_weights()[name].assign(variable.numpy() + (0 if a is None else a @ b))
    return model, merged


def test_a_model_without_adapters_says_so(tmp_path):
    model = random_model(HPARAMS)
    for act in (model.load_adapters, model.save_adapters):
        with pytest.raises(ValueError, match="the model has no adapters; make it with a lora_rank"):
            act(tmp_path / "adapters")
    assert not (tmp_path / "adapters").exists()


def test_merged_weights_are_the_adapted_model(adapted, tokens):
    """Beside the reference's own 1e-5, 1e-6: float32's roundings of weights of about 1."""
    model, merged = adapted
    logits = expected(merged, tokens)[0]
    np.testing.assert_allclose(model(tokens), logits, rtol=0, atol=TOLERANCE)
    past = model.forward(tokens[:1, :-1])["present"]  # a single token has a path of its own
    last = model.forward(tokens[:1, -1:], past)["logits"]
    np.testing.assert_allclose(last, logits[:1, -1:], rtol=0, atol=TOLERANCE)
    found = model.merged_weights()
    assert found.keys() == model.hparams.shapes.keys()
    for name, variable in merged.named_weights().items():
        np.testing.assert_allclose(found[name], variable, rtol=0, atol=1e-6)
    changed = [name for name, variable in model.named_weights().items() if np.any(variable.numpy() != found[name])]
    scopes = ("attn/c_attn", "attn/c_proj", "mlp/c_proj")
    assert changed == [f"model/h{i}/{scope}/w" for i in range(2) for scope in scopes]


def test_new_adapters_change_nothing(tokens):
    model, adapted = (GPT2(HPARAMS, lora_rank=rank) for rank in (None, 8))
    weights = model.named_weights()
    for name, variable in adapted.named_weights().items():
        variable.assign(weights[name])
    np.testing.assert_array_equal(adapted(tokens), model(tokens))
    assert {np.any(variable) for name, variable in adapted.adapters().items() if name.endswith("a")} == {True}


@pytest.mark.parametrize("dtype, rtol", [(None, 1e-5), ("mixed_bfloat16", 0.05)])
def test_a_step_is_of_the_adapters_alone(adapted, batch, dtype, rtol):
    """Their gradients are those of the merged weights, by the chain rule; tolerances as above."""
    (model, merged), hparams = adapted, adapted[0].hparams
    with tf.GradientTape() as tape:
        h = merged.hidden_states(batch[0])[0]
        loss = cross_entropy(h, merged.tied_embedding(), batch[1]) / np.sum(batch[1] >= 0)
    named = merged.named_weights()
    gradients = dict(zip(named, tape.gradient(loss, [v.value for v in named.values()]), strict=True))
    trained = GPT2(hparams, lora_rank=8, remat=dtype is not None, dtype=dtype)
    for one, other in zip(trained.weights, model.weights, strict=True):
        one.assign(other)
    trained.compile(keras.optimizers.SGD(1.0), grad_accumulation=1 if dtype is None else 2)
    assert trained.train_on_batch(*batch) == pytest.approx(float(loss), rel=rtol)
    before, after = model.adapters(), trained.adapters()
    for name in before:
        scope, kind = name[:-1], name[-1]
        a, b = (before[f"{scope}{kind}"].numpy() for kind in "ab")
        gradient = gradients[scope.replace("lora_", "w")][0].numpy()
        expected = gradient @ b.T if kind == "a" else a.T @ gradient
        found = before[name].numpy() - after[name].numpy()
        assert np.linalg.norm(found - expected) <= rtol * np.linalg.norm(expected), name
    for name, variable in trained.named_weights().items():
        np.testing.assert_array_equal(variable, model.named_weights()[name])


def test_the_optimizer_keeps_nothing_of_what_is_frozen(adapted):
    optimizer = keras.optimizers.AdamW()
    optimizer.build(adapted[0].trainable_variables)
    kept = [tuple(variable.shape) for variable in optimizer.variables if len(variable.shape)]
    assert sorted(kept) == sorted(2 * [tuple(variable.shape) for variable in adapted[0].adapters().values()])


def test_keras_saving_keeps_adapters(adapted, tokens, tmp_path):
    adapted[0].save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(tokens), adapted[0](tokens))
    assert len(loaded.trainable_variables) == len(loaded.adapters()) == 12


def test_parts_of_a_batch_are_of_the_own_loss():
    with pytest.raises(ValueError, match="give the optimizer gradient_accumulation_steps"):
        GPT2(HParams(n_vocab=5, n_ctx=4, n_embd=4, n_head=1, n_layer=1)).compile(loss="mse", grad_accumulation=2)


@pytest.mark.parametrize("arguments", [{"y": None}, {"sample_weight": np.ones([4, 48])}])
def test_the_own_loss_takes_tokens_and_targets_alone(batch, arguments):
    model = random_model()
    model.compile()
    for method in (model.train_on_batch, model.test_on_batch):
        with pytest.raises(ValueError, match="takes tokens and targets, "):
            method(**{"x": batch[0], "y": batch[1], **arguments})


def test_keras_saving_keeps_how_it_was_compiled(batch, tmp_path):
    """So that training goes on: the same step from the loaded as from the saved."""
    model = random_model(dataclasses.replace(HPARAMS, n_layer=1), remat=True)
    model.compile(keras.optimizers.AdamW(1e-2), grad_accumulation=2)
    model.train_on_batch(*batch)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.remat and loaded.grad_accumulation == 2
    assert model.train_on_batch(*batch) == loaded.train_on_batch(*batch)
    for one, other in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_gradients_reach_every_weight(model, tokens):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(tokens)))
    for variable, gradient in zip(
        model.trainable_weights, tape.gradient(loss, [v.value for v in model.trainable_weights]), strict=True
    ):
        assert gradient is not None and np.abs(gradient).max() > 0, variable.path


def test_too_long_a_sequence_is_an_error_with_the_numbers(model):
    with pytest.raises(ValueError, match="49 tokens are more than the model's window, n_ctx 48"):
        model.forward(np.zeros([1, 49], np.int32))
    past = model.forward(np.zeros([1, 40], np.int32))["present"]
    with pytest.raises(ValueError, match="49 tokens are more than"):
        model.forward(np.zeros([1, 9], np.int32), past)


def test_too_long_a_sequence_is_an_error_in_a_graph_too(model):
    """One row of wpe less, and nothing else would fail: an empty tensor adds to any."""

    @tf.function(input_signature=[tf.TensorSpec([1, None], tf.int32), tf.TensorSpec([1, 3, 2, 5, None, 12])])
    def forward(tokens, past):
        return model.forward(tokens, past)["logits"]

    past = model.forward(np.zeros([1, 48], np.int32))["present"]
    assert forward(np.zeros([1, 1], np.int32), past[..., :47, :]).shape == [1, 1, 311]
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"more tokens than the model.*window"):
        forward(np.zeros([1, 1], np.int32), past)


@pytest.mark.parametrize("tokens", [[1, 2], [[0.5]], [[[1]]]])
def test_what_are_no_tokens(model, tokens):
    with pytest.raises(ValueError, match=r"must be integers \[batch, seq\]"):
        model.forward(tokens)


def test_a_model_is_made_of_hparams():
    with pytest.raises(TypeError, match=r"GPT2 takes HParams, not '124M'; gpt2_tf\.load takes"):
        GPT2("124M")
