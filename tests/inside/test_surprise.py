"""The surprise of each token is the negative of its score, and its rank counts the tokens that are more likely."""

import numpy as np
import pytest

from gpt2_tf import score
from gpt2_tf.inside import surprise

TEXT = "then the other day"


@pytest.mark.parametrize("context", [None, "the them "])
def test_the_surprise_is_the_negative_score(lively, enc, context):
    found = surprise(lively, enc, TEXT, context)
    assert found.ids.tolist() == enc.encode(TEXT)
    (logprobs,) = score(lively, enc, TEXT, None if context is None else [context])
    np.testing.assert_allclose(found.nats, -np.array(logprobs), rtol=0, atol=2e-5)  # float32 on about 10
    assert (found.nats.dtype, found.ranks.dtype) == (np.float32, np.int32)


def test_the_rank_is_the_place_in_the_sorted_vocabulary(lively, enc):
    ids = enc.encode(TEXT)
    logits = lively(np.array([[enc.end_of_text, *ids]])).numpy()[0]
    order = np.argsort(-logits, axis=-1).tolist()
    expected = [places.index(id) + 1 for places, id in zip(order, ids, strict=False)]
    assert surprise(lively, enc, TEXT).ranks.tolist() == expected
    assert len(set(expected)) > 5


def test_a_full_window(lively, enc):
    assert len(surprise(lively, enc, "#" * 32).nats) == 32
    with pytest.raises(ValueError, match="have 34 tokens together, but must have at most 33"):
        surprise(lively, enc, "#" * 33)


def test_wrong_texts_are_an_error(lively, enc):
    with pytest.raises(ValueError, match="the text is empty"):
        surprise(lively, enc, "")
    with pytest.raises(TypeError, match="the text is 3, but must be a str"):
        surprise(lively, enc, 3)
    with pytest.raises(ValueError, match="the prompt is empty"):
        surprise(lively, enc, "a", "")
