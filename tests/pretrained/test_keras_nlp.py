"""Conversion to and from KerasNLP keeps the logits.

Logits differ by at most 2e-5: they are about 3, and float32 sums in another order differ in the last bits.
"""

import sys
import warnings

import keras
import numpy as np
import pytest
from oracles.random_model import random_model

from gpt2_tf import GPT2, HParams, from_keras_nlp, generate, score, to_keras_nlp

HPARAMS = HParams(n_vocab=260, n_ctx=40, n_embd=48, n_head=4, n_layer=3)
TOKENS = np.random.default_rng(1).integers(0, HPARAMS.n_vocab, [2, HPARAMS.n_ctx])


@pytest.fixture(scope="module")
def library():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its dependencies warn
        return pytest.importorskip("keras_nlp", reason="KerasNLP is in the extra [keras-nlp]")


@pytest.fixture(scope="module")
def model():
    return random_model(HPARAMS, stdev=0.1)


@pytest.fixture
def theirs(library):
    """A backbone of KerasNLP. Noise is added to its weights, so that the context changes the logits."""
    backbone = library.models.GPT2Backbone(
        vocabulary_size=260,
        num_layers=3,
        num_heads=4,
        hidden_dim=48,
        intermediate_dim=192,
        max_sequence_length=40,
    )
    rng = np.random.default_rng(2)
    for weight in backbone.weights:
        weight.assign_add(rng.normal(0, 0.1, weight.shape))
    return backbone


def logits(backbone) -> np.ndarray:
    hidden = backbone({"token_ids": TOKENS, "padding_mask": np.ones_like(TOKENS)}, training=False)
    return backbone.token_embedding(hidden, reverse=True).numpy()


@pytest.mark.slow  # for the import of KerasNLP
def test_to_keras_nlp(model, library):
    backbone = to_keras_nlp(model)
    assert isinstance(backbone, library.models.GPT2Backbone)
    np.testing.assert_allclose(logits(backbone), model(TOKENS), rtol=0, atol=2e-5)


@pytest.mark.slow
def test_to_keras_nlp_merges_adapters(library):
    model = random_model(HPARAMS, stdev=0.1, lora_rank=2)
    np.testing.assert_allclose(logits(to_keras_nlp(model)), model(TOKENS), rtol=0, atol=2e-5)


@pytest.mark.slow
def test_from_keras_nlp(theirs):
    model = from_keras_nlp(theirs)
    assert model.hparams == HPARAMS
    np.testing.assert_allclose(model(TOKENS), logits(theirs), rtol=0, atol=2e-5)


@pytest.mark.slow
def test_the_round_trip_is_exact(model, library):
    again = from_keras_nlp(to_keras_nlp(model))
    for old, new in zip(model.weights, again.weights, strict=True):
        assert old.path == new.path
        np.testing.assert_array_equal(old, new)


@pytest.mark.slow
def test_the_dtype_policy_is_kept(library):
    backbone = to_keras_nlp(GPT2(HPARAMS, dtype="mixed_bfloat16"))
    assert (backbone.dtype_policy.name, backbone.compute_dtype) == ("mixed_bfloat16", "bfloat16")


@pytest.mark.slow
def test_lora_adapters_of_a_backbone_are_merged(theirs):
    theirs.enable_lora(2)
    rng = np.random.default_rng(3)
    for weight in theirs.weights:
        if "lora" in weight.path:
            weight.assign(rng.normal(0, 0.3, weight.shape))
    before = logits(theirs)
    np.testing.assert_allclose(from_keras_nlp(theirs)(TOKENS), before, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_other_backbones_are_refused(theirs, library):
    with pytest.raises(TypeError, match="takes a GPT2Backbone, not a Sequential"):
        from_keras_nlp(keras.Sequential())
    sizes = {"vocabulary_size": 260, "num_layers": 1, "num_heads": 4, "hidden_dim": 48, "max_sequence_length": 40}
    with pytest.raises(ValueError, match="intermediate_dim is 100, but GPT-2's is 4 x hidden_dim, 192"):
        from_keras_nlp(library.models.GPT2Backbone(intermediate_dim=100, **sizes))
    theirs.quantize("int8", filters="intermediate_dense")  # only some layers
    with pytest.raises(ValueError, match=r"the backbone is quantized \(int8\)"):
        from_keras_nlp(theirs)


@pytest.mark.slow
def test_their_greedy_sampler_gives_the_same_tokens(model, enc, library):
    """KerasNLP's sampling loop over the converted backbone gives the ids of ours."""
    task = library.models.GPT2CausalLM(backbone=to_keras_nlp(model), preprocessor=None)
    task.compile(sampler="greedy")
    context = enc.encode("the then")
    padded = np.array([context + [0] * (20 - len(context))])
    mask = np.array([[1] * len(context) + [0] * (20 - len(context))])
    theirs = task.generate({"token_ids": padded, "padding_mask": mask}, stop_token_ids=None)["token_ids"][0]
    ours = generate(model, enc, ["the then"], length=20 - len(context), temperature=0, stop=())[0]
    assert list(theirs[len(context) :]) == ours.ids
    assert from_keras_nlp(task).hparams == HPARAMS


@pytest.mark.slow
def test_their_perplexity_agrees(model, enc, library):
    """Relative difference of at most 1e-4: the exponential of a mean of 30 float32 values."""
    ids = enc.encode("them then the then the them, then")
    metric = library.metrics.Perplexity(from_logits=True)
    metric.update_state(np.array([ids[1:]]), model(np.array([ids[:-1]])))
    (scored,) = score(model, enc, [enc.decode(ids[1:])], contexts=[enc.decode(ids[:1])])
    assert float(metric.result()) == pytest.approx(np.exp(-np.mean(scored)), rel=1e-4)


def test_a_missing_extra_is_named(model, monkeypatch):
    for name in ("keras_hub", "keras_nlp"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'gpt2-tf\[keras-nlp\]'"):
        to_keras_nlp(model)
