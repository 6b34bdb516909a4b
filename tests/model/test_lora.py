"""LoRA adapters: what they compute, what is trained, what is saved."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from oracles.random_model import HPARAMS, random_model, reference_outputs

from gpt2_tf import GPT2
from gpt2_tf.model.loss import cross_entropy

# Logits of about 1, float32 against float64: 1e-5 is about a hundred roundings.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def adapted():
    """A model with adapters as large as its weights, and the same model with the adapters merged by NumPy."""
    model = random_model(dataclasses.replace(HPARAMS, n_layer=2), 0.1, lora_rank=8)
    merged = GPT2(model.hparams, w_init_stdev=None)
    adapters = {name: variable.numpy().astype(np.float64) for name, variable in model.adapters().items()}
    for name, variable in model.named_weights().items():
        a, b = (adapters.get(f"{name.removesuffix('w')}lora_{kind}") for kind in "ab")
        merged.named_weights()[name].assign(variable.numpy() + (0 if a is None else a @ b))
    return model, merged


def test_adapters_of_a_model_without_them_are_an_error(tmp_path):
    model = random_model(HPARAMS, 0.1)
    for act in (model.load_adapters, model.save_adapters):
        with pytest.raises(ValueError, match="the model has no adapters; make it with a lora_rank"):
            act(tmp_path / "adapters")
    assert not (tmp_path / "adapters").exists()


def test_merged_weights_compute_the_same_as_adapters(adapted, tokens):
    """TOLERANCE is for logits; merged weights of about 1 differ by float32 roundings, 1e-6."""
    model, merged = adapted
    logits = reference_outputs(merged, tokens)[0]
    np.testing.assert_allclose(model(tokens), logits, rtol=0, atol=TOLERANCE)
    past = model.forward(tokens[:1, :-1])["present"]  # a single token has its own kernels
    last = model.forward(tokens[:1, -1:], past)["logits"]
    np.testing.assert_allclose(last, logits[:1, -1:], rtol=0, atol=TOLERANCE)
    found = model.merged_weights()
    assert found.keys() == model.hparams.shapes.keys()
    for name, variable in merged.named_weights().items():
        np.testing.assert_allclose(found[name], variable, rtol=0, atol=1e-6)
    changed = [name for name, variable in model.named_weights().items() if np.any(variable.numpy() != found[name])]
    scopes = ("attn/c_attn", "attn/c_proj", "mlp/c_proj")
    assert changed == [f"model/h{i}/{scope}/w" for i in range(2) for scope in scopes]


def test_new_adapters_leave_the_logits_unchanged(tokens):
    model, adapted = (GPT2(HPARAMS, lora_rank=rank) for rank in (None, 8))
    weights = model.named_weights()
    for name, variable in adapted.named_weights().items():
        variable.assign(weights[name])
    np.testing.assert_array_equal(adapted(tokens), model(tokens))
    assert {np.any(variable) for name, variable in adapted.adapters().items() if name.endswith("a")} == {True}


@pytest.mark.slow
@pytest.mark.parametrize("dtype, rtol", [(None, 1e-5), ("mixed_bfloat16", 0.05)])
def test_a_step_changes_the_adapters_only(adapted, batch, dtype, rtol):
    """The chain rule gives the adapters' gradients from those of the merged weights.

    float32 sums in another order differ by 1e-5 of a gradient's norm; bfloat16, with 8 bits, by 0.05.
    """
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


def test_the_optimizer_has_no_state_for_frozen_weights(adapted):
    optimizer = keras.optimizers.AdamW()
    optimizer.build(adapted[0].trainable_variables)
    kept = [tuple(variable.shape) for variable in optimizer.variables if len(variable.shape)]
    assert sorted(kept) == sorted(2 * [tuple(variable.shape) for variable in adapted[0].adapters().values()])


def test_keras_saving_keeps_adapters(adapted, tokens, tmp_path):
    adapted[0].save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(tokens), adapted[0](tokens))
    assert len(loaded.trainable_variables) == len(loaded.adapters()) == 12


@pytest.mark.parametrize("rank", [0, -1, 1.5, "8"])
def test_an_invalid_rank_is_an_error(rank):
    with pytest.raises(ValueError, match=r"lora_rank is .*, but must be a whole number of at least 1"):
        GPT2(HPARAMS, lora_rank=rank)


@pytest.mark.parametrize("targets", ["c_attn", [], ["wte"]])
def test_invalid_targets_are_an_error(targets):
    with pytest.raises(ValueError, match=r"lora_targets is .*, but must list one or more of c_attn, c_fc, c_proj"):
        GPT2(HPARAMS, lora_rank=2, lora_targets=targets)


def test_keras_saving_keeps_the_targets(tokens, tmp_path):
    model = random_model(HPARAMS, 0.1, lora_rank=2, lora_targets=["c_fc"])
    assert len(model.adapters()) == 2 * HPARAMS.n_layer
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(tokens), model(tokens))
