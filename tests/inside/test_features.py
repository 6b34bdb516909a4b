"""Features are the hidden states of `inspect`, one vector per text, whatever the batch."""

import numpy as np
import pytest
import tensorflow as tf

from gpt2_tf.inside import features

TEXTS = ["then", "the other day", "e", "them them them the"]
TOLERANCE = 5e-5  # float32 in batches of other shapes, on values of about 20


@pytest.mark.parametrize("layer", [None, 0, 1, 2])
@pytest.mark.parametrize("pool", ["last", "mean"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_features_are_hidden_states(lively, enc, layer, pool, batch_size):
    found = features(lively, enc, TEXTS, layer=layer, pool=pool, batch_size=batch_size)
    assert found.shape == (4, 40) and found.dtype == np.float32
    for text, vector in zip(TEXTS, found, strict=True):
        ids = [enc.encode(text)]
        if layer is None:
            states = lively.hidden_states(ids)[0].numpy()[0]
        else:
            states = lively.inspect(ids, "hidden_states").hidden_states[layer, 0]
        expected = states[-1] if pool == "last" else states.mean(0)
        np.testing.assert_allclose(vector, expected, rtol=0, atol=TOLERANCE)


def test_one_text_and_no_text(lively, enc):
    np.testing.assert_array_equal(features(lively, enc, "then"), features(lively, enc, ["then"]))
    assert features(lively, enc, []).shape == (0, 40)


def test_interventions_change_the_features(lively, enc):
    ablated = lively.with_interventions({"h0": tf.ones_like})
    np.testing.assert_array_equal(features(ablated, enc, TEXTS, layer=1), np.ones([4, 40]))


@pytest.mark.parametrize(
    ("texts", "settings", "error", "message"),
    [
        (["a", ""], {}, ValueError, "text 2 has 0 tokens, but must have 1 to 32"),
        (["#" * 33], {}, ValueError, "text 1 has 33 tokens, but must have 1 to 32"),
        (["a", 3], {}, TypeError, "text 2 is 3, but must be a str"),
        (3, {}, TypeError, "texts is 3, but must be a str or a list of str"),
        ("a", {"layer": 3}, ValueError, "layer is 3, but must be a whole number from 0 to 2, or None"),
        ("a", {"layer": -1}, ValueError, "layer is -1"),
        ("a", {"pool": "max"}, ValueError, "pool is 'max', but must be 'last' or 'mean'"),
        ("a", {"batch_size": 0}, ValueError, "batch_size is 0"),
    ],
)
def test_wrong_arguments_are_an_error(lively, enc, texts, settings, error, message):
    with pytest.raises(error, match=message):
        features(lively, enc, texts, **settings)
