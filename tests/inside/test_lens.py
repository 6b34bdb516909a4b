"""The logit lens against NumPy in float64."""

import numpy as np
import pytest

from gpt2_tf.inside import logit_lens

IDS = [3, 14, 15, 92, 65]
TOLERANCE = 1e-5  # float32 on probabilities


def probabilities(model, h):
    """softmax(wte @ ln_f(h)), for hidden states [seq, n_embd]."""
    g, b, wte = (weight.numpy().astype(np.float64) for weight in (model.ln_f.g, model.ln_f.b, model.wte))
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5) * g + b
    p = np.exp(h @ wte.T)
    return p / p.sum(-1, keepdims=True)


def test_each_layer_equals_the_reference(lively):
    lens = logit_lens(lively, IDS, k=4)
    states = lively.inspect([IDS], "hidden_states").hidden_states[:, 0].astype(np.float64)
    assert lens.ids.shape == lens.probabilities.shape == (3, len(IDS), 4)
    for layer, h in enumerate(states):
        expected = probabilities(lively, h)
        order = np.argsort(-expected, axis=-1)[:, :4]
        np.testing.assert_array_equal(lens.ids[layer], order)
        np.testing.assert_allclose(
            lens.probabilities[layer], np.take_along_axis(expected, order, -1), rtol=0, atol=TOLERANCE
        )


def test_the_last_layer_is_the_models_prediction(lively):
    lens = logit_lens(lively, IDS, k=1)
    np.testing.assert_array_equal(lens.ids[-1, :, 0], lively(np.array([IDS])).numpy()[0].argmax(-1))


def test_a_layer_that_is_muted_predicts_what_came_before(lively):
    import tensorflow as tf

    muted = lively.with_interventions({"h1/attn/out": tf.zeros_like, "h1/mlp/out": tf.zeros_like})
    lens = logit_lens(muted, IDS)
    np.testing.assert_array_equal(lens.ids[2], lens.ids[1])
    assert (lens.ids[1] != lens.ids[0]).any()


@pytest.mark.parametrize("k", [0, 261, 1.5])
def test_a_wrong_k_is_an_error(lively, k):
    with pytest.raises(ValueError, match=f"k is {k}, but must be a whole number from 1 to 260"):
        logit_lens(lively, IDS, k=k)
