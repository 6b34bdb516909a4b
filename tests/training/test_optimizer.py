"""AdamW against Keras's own; PyTorch's is in tests/test_peers.py."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from gpt2_tf.hparams import HParams
from gpt2_tf.model.gpt2 import GPT2
from gpt2_tf.training.optimizer import AdamW, adamw

SHAPE = {"n_ctx": 16, "n_embd": 8, "n_head": 2, "n_layer": 2}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_steps_are_as_keras_own(compiled, weight_decay):
    """The same formula in float32, rounded in another order: 1e-6 of a weight after ten steps."""
    first = [np.random.default_rng(i).normal(size=shape).astype("float32") for i, shape in enumerate([(5, 3), (7,)])]
    results = []
    for kind in (keras.optimizers.AdamW, AdamW):
        weights = [keras.Variable(values, name="w") for values in first]
        optimizer = kind(keras.optimizers.schedules.CosineDecay(0.01, 10), weight_decay=weight_decay, global_clipnorm=1)
        optimizer.build(weights)
        apply = tf.function(optimizer.apply, autograph=False) if compiled else optimizer.apply
        for step in range(10):
            rng = np.random.default_rng(step)
            apply([tf.constant(rng.normal(size=values.shape), "float32") for values in first])
        results.append([variable.numpy() for variable in [*weights, *optimizer.variables]])
    for theirs, ours in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    assert all(np.abs(w - begun).max() > 0.01 for w, begun in zip(results[1], first, strict=False))


def test_an_optimizer_is_the_same_after_keras_has_serialized_it():
    optimizer = adamw(1e-3, 10, warmup_steps=2)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is AdamW and again.get_config()["beta_2"] == 0.95
    assert again._learning_rate.get_config() == optimizer._learning_rate.get_config()


@pytest.mark.parametrize("warmup", [0, 10])
def test_the_rate_rises_and_falls_to_a_tenth(warmup):
    schedule = adamw(1e-3, 110 if warmup else 100, warmup_steps=warmup)._learning_rate
    risen = {0: 0, 1: 1e-4, 5: 5e-4} if warmup else {}
    fallen = {0: 1e-3, 50: 5.5e-4, 100: 1e-4, 500: 1e-4}
    for step, rate in (risen | {warmup + step: rate for step, rate in fallen.items()}).items():
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-6)


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    return GPT2(HParams(n_vocab=30, **SHAPE))


def test_only_matrices_decay(model):
    for variable in model.weights:
        variable.assign_add(tf.ones(variable.shape))
    before = {variable.path: variable.numpy() for variable in model.weights}
    adamw(0.1, 10, weight_decay=0.5).apply([tf.zeros(v.shape) for v in model.weights], model.weights)
    for variable in model.weights:
        share = 1 if len(variable.shape) == 1 else 1 - 0.1 * 0.5
        np.testing.assert_allclose(variable, share * before[variable.path], rtol=1e-6)


@pytest.mark.parametrize("clip_norm, size", [(1.0, 1.0), (0.25, 0.25), (1e9, 300.0), (0, 300.0)])
def test_all_gradients_are_clipped_together(model, clip_norm, size):
    gradients = [tf.random.stateless_normal(v.shape, [1, i]) for i, v in enumerate(model.weights)]
    gradients = [300 * gradient / tf.linalg.global_norm(gradients) for gradient in gradients]
    optimizer = adamw(1e-3, 10, clip_norm=clip_norm)
    optimizer.apply(gradients, model.weights)
    moments = [10 * moment.value for moment in optimizer._momentums]  # 1 - beta_1 of the gradients
    assert float(tf.linalg.global_norm(moments)) == pytest.approx(size, rel=1e-5)
    for moment, gradient in zip(moments, gradients, strict=True):
        np.testing.assert_allclose(moment, gradient * size / 300, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 4])
def test_a_step_is_the_optimizers_whatever_the_parts(model, n):
    """Else the schedule would run ahead; and clipping is of the batch's whole gradient, so the moments agree."""
    model.compile(adamw(1e-3, 10, warmup_steps=2, clip_norm=1e-3), grad_accumulation=n)
    tokens = np.random.default_rng(0).integers(0, 30, [12, 4, 9])
    for batch in tokens[:3]:
        model.train_on_batch(batch[:, :-1], batch[:, 1:])
    assert int(model.optimizer.iterations) == 3
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-3 * (0.1 + 0.9 * (1 + np.cos(np.pi / 8)) / 2))
    # At most three times a gradient of this norm: the moments forget a tenth at each step.
    norm = float(tf.linalg.global_norm([moment.value for moment in model.optimizer._momentums]))
    assert 1e-4 < norm <= 1e-3 * (1 - 0.9**3) + 1e-9
