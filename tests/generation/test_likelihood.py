"""`score` against the reference."""

import numpy as np
import pytest
from oracles import reference

from gpt2_tf import score


@pytest.fixture
def model(lively):
    return lively


def weights(model):
    return {variable.path: variable.numpy() for variable in model.weights}


def test_scores_are_the_references(model, enc):
    texts, contexts = ["them", "e then", "🎈"], ["the", "x" * 20, "th"]
    for context, scores in ((None, score(model, enc, texts)), (contexts, score(model, enc, texts, contexts))):
        for number, words in enumerate(texts):
            before = enc.encode(context[number]) if context else [enc.end_of_text]
            after = enc.encode(words)
            logits, _ = reference.forward(weights(model), model.hparams.n_head, before + after)
            expected = np.log(reference.softmax(logits))[range(len(before) - 1, len(before + after) - 1), after]
            np.testing.assert_allclose(scores[number], expected, rtol=0, atol=1e-5)
    assert score(model, enc, "e") == score(model, enc, ["e"])
    assert len(score(model, enc, "x" * 32)[0]) == 32
    for batch_size in (1, 2):
        np.testing.assert_allclose(
            score(model, enc, ["e", "x"], batch_size=batch_size), score(model, enc, ["e", "x"]), atol=1e-5
        )


def test_wrong_arguments_are_errors(model, enc):
    with pytest.raises(ValueError, match="have 34 tokens together, but must have at most 33"):
        score(model, enc, ["e", "x" * 33])
    with pytest.raises(ValueError, match="there are 2 texts, but 1 contexts"):
        score(model, enc, ["e", "x"], ["e"])
    with pytest.raises(ValueError, match="the prompt is empty"):
        score(model, enc, "e", [""])
    with pytest.raises(ValueError, match="batch_size is -1"):
        score(model, enc, "e", batch_size=-1)


def test_one_text_may_stand_without_a_list(model, enc):
    assert score(model, enc, "e", "the") == score(model, enc, ["e"], ["the"])
