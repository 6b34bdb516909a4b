"""A step on the model's own loss: its gradients, accumulation, recomputation, precision and errors."""

import dataclasses
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from oracles.random_model import HPARAMS, arrays, is_freed_after, random_model
from tensorflow.python.framework.ops import gradient_registry

from gpt2_tf import GPT2, HParams
from gpt2_tf.model.gpt2 import Block


@pytest.mark.slow
def test_fit_learns():
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


def stepped(batch, dtype=None, dropout=0.0, remat=False, n_layer=1, **settings):
    """Return the loss of one SGD step of rate 1, and the change of each weight, which is minus its gradient."""
    model = random_model(dataclasses.replace(HPARAMS, dropout=dropout, n_layer=n_layer), 0.1, dtype=dtype, remat=remat)
    model.seeds.state.assign([7, 0])
    before = arrays(model)
    model.compile(keras.optimizers.SGD(1.0), **settings)
    loss = model.train_on_batch(*batch)
    return loss, {name: value - before[name] for name, value in arrays(model).items()}


def assert_same_step(one, other, rtol=1e-5):
    """Compare each gradient, relative to its norm. float32 sums in another order differ by 1e-5."""
    assert one[0] == pytest.approx(other[0], rel=rtol)
    for name, change in one[1].items():
        assert np.linalg.norm(change - other[1][name]) <= rtol * np.linalg.norm(change), name


def test_the_own_loss_equals_keras_loss(batch):
    keras_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    model = random_model(HPARAMS, 0.1)
    model.compile()
    own = model.evaluate(*batch, batch_size=4, verbose=0)
    assert own == pytest.approx(float(keras_loss(batch[1], model(batch[0]))), rel=1e-6)
    # Each target counts once, also when the batches have different numbers of targets.
    assert model.evaluate(*batch, batch_size=2, verbose=0) == pytest.approx(own, rel=1e-6)
    model.compile(loss=keras_loss)
    assert model.evaluate(*batch, batch_size=4, verbose=0) == pytest.approx(own, rel=1e-6)


def test_a_step_on_the_own_loss_equals_a_step_on_keras_loss(tokens):
    batch = tokens, np.roll(tokens, -1, axis=1)
    keras_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert_same_step(stepped(batch), stepped(batch, loss=keras_loss), 3e-5)


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 4])
def test_accumulated_gradients_equal_those_of_the_whole_batch(batch, n):
    """The parts have different numbers of targets. float32 sums in another order differ by 1e-5."""
    assert_same_step(stepped(batch), stepped(batch, grad_accumulation=n))


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0, 0.3])
@pytest.mark.parametrize("n", [1, 2])
def test_remat_gives_the_same_step(batch, rate, n):
    one, other = (stepped(batch, dropout=rate, remat=remat, grad_accumulation=n) for remat in (False, True))
    assert_same_step(one, other)


def test_remat_computes_each_block_twice(tokens, monkeypatch):
    """Each block runs twice in a step: in the forward pass, and again for its gradient."""
    calls = []
    call = Block.call

    def noted(block, *args, **kwargs):
        calls.append(block.name)
        return call(block, *args, **kwargs)

    monkeypatch.setattr(Block, "call", noted)
    model = random_model(HPARAMS, 0.1, remat=True)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(tokens, training=True))
    tape.gradient(loss, model.trainable_variables)
    assert calls == ["h0", "h1", "h2", "h2", "h1", "h0"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("settings", [{}, {"grad_accumulation": 2}, {"remat": True}], ids=str)
def test_mixed_precision_trains(batch, dtype, settings):
    """Gradients in bfloat16 (8 bits) differ by 0.05 of their norm, those in float16 (11 bits) by 0.01."""
    rtol = 0.05 if dtype == "mixed_bfloat16" else 0.01
    assert_same_step(stepped(batch), stepped(batch, dtype=dtype, **settings), rtol)


def test_float16_scales_the_loss_and_skips_steps_that_overflow(batch):
    model = random_model(HPARAMS, 0.1, dtype="mixed_float16")
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


def test_grad_accumulation_with_another_loss_is_an_error():
    with pytest.raises(ValueError, match="give the optimizer gradient_accumulation_steps"):
        GPT2(HParams(n_vocab=5, n_ctx=4, n_embd=4, n_head=1, n_layer=1)).compile(loss="mse", grad_accumulation=2)


@pytest.mark.parametrize("arguments", [{"y": None}, {"sample_weight": np.ones([4, 48])}])
def test_the_own_loss_takes_tokens_and_targets_only(batch, arguments):
    model = random_model(HPARAMS, 0.1)
    model.compile()
    for method in (model.train_on_batch, model.test_on_batch):
        with pytest.raises(ValueError, match="takes tokens and targets, "):
            method(**{"x": batch[0], "y": batch[1], **arguments})


@pytest.mark.parametrize(
    "x",
    ["text", ["text", "text"], [["text"]], np.array(["text", "text"]), np.array([[b"text"]])],
    ids=["str", "list", "nested list", "array", "array of bytes"],
)
def test_fit_on_text_is_an_error_that_says_to_encode_it(model, x):
    with pytest.raises(ValueError, match=r"fit got text, but takes token ids; encode the text first"):
        model.fit(x)


@pytest.mark.parametrize("targets", [np.zeros([4, 48]), np.zeros([4], int), np.zeros([4, 47], int)])
def test_targets_must_be_integers_of_the_tokens_shape(tokens, targets):
    model = random_model(dataclasses.replace(HPARAMS, n_layer=1), 0.1)
    model.compile()
    with pytest.raises(ValueError, match=r"targets are .*, but must be integers of the same shape as the tokens"):
        model.train_on_batch(tokens, targets)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, "mixed_float16"])
@pytest.mark.parametrize("n", [1, 2])
def test_a_batch_without_targets_has_loss_0_and_changes_nothing(batch, dtype, n):
    """Momentum and weight decay must not move the weights either, so the optimizer takes a real step before."""
    model = random_model(dataclasses.replace(HPARAMS, n_layer=1), 0.1, dtype=dtype)
    model.compile(keras.optimizers.AdamW(1e-2, weight_decay=0.1), grad_accumulation=n)
    model.train_on_batch(*batch)
    before = [variable.numpy() for variable in (*model.weights, *model.optimizer.variables)]
    none = np.full_like(batch[1], -1)
    for step in (model.train_on_batch, model.test_on_batch):
        model.reset_metrics()
        assert step(batch[0], none) == 0
    for variable, value in zip((*model.weights, *model.optimizer.variables), before, strict=True):
        np.testing.assert_array_equal(variable, value)
    # In a mean over several batches, a batch without targets has no weight.
    loss = model.test_on_batch(*batch)
    model.reset_metrics()
    tokens, targets = (np.concatenate(parts) for parts in zip((batch[0], none), batch, strict=True))
    assert model.evaluate(tokens, targets, batch_size=4, verbose=0) == pytest.approx(loss, rel=1e-6)


WITHOUT_TARGETS = """
import keras, numpy as np, tensorflow as tf
cpu, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from gpt2_tf import GPT2, HParams
from gpt2_tf.model import distribute
with distribute.make_strategy("mirrored").scope():
    model = GPT2(HParams(n_vocab=30, n_ctx=8, n_embd=16, n_head=2, n_layer=1))
    model.compile(keras.optimizers.AdamW(1e-2, weight_decay=0.1), grad_accumulation=2)
tokens = np.tile(np.arange(8), [4, 1])
half, none = np.where(np.arange(4)[:, None] < 2, tokens, -1), np.full_like(tokens, -1)
def values():
    return [np.array(variable) for variable in (*model.weights, *model.optimizer.variables)]
assert model.train_on_batch(tokens, half) > 3  # only one replica has targets
before = values()
for step in (model.train_on_batch, model.test_on_batch):
    model.reset_metrics()
    assert step(tokens, none) == 0
assert all(map(np.array_equal, before, values()))
model.train_on_batch(tokens, half)
assert not any(map(np.array_equal, before[:2], values()[:2]))
assert np.isfinite(np.concatenate([value.ravel() for value in values()])).all()
"""


@pytest.mark.slow
def test_a_batch_without_targets_changes_nothing_on_two_devices_either():
    ran = subprocess.run([sys.executable, "-c", WITHOUT_TARGETS], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr


def custom_gradients():
    return {name for name in gradient_registry._registry if name.startswith("CustomGradient")}


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize(
    "loss", [None, keras.losses.SparseCategoricalCrossentropy(from_logits=True)], ids=["own", "keras"]
)
def test_training_leaves_no_entries_in_tensorflows_table_of_gradients(loss, remat):
    """TensorFlow never clears the table, whose entries hold the graph of the step: 35 MB for each model trained."""
    tokens = np.zeros([2, 8], int)

    def train(model):
        model.compile(loss=loss)
        model.fit(tokens, tokens, verbose=0)

    hparams = HParams(n_vocab=30, n_ctx=8, n_embd=16, n_head=2, n_layer=1)
    before = custom_gradients()
    assert is_freed_after(train, hparams, remat=remat)
    assert custom_gradients() <= before
