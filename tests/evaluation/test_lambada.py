"""LAMBADA against the NumPy reference and against transformers, with the same weights.

Tolerances: 1e-5 relative against the reference, 1e-4 against transformers. Both are float32 sums in another order, of
numbers of about 5.
"""

import math

import numpy as np
import pytest

from gpt2_tf import load
from gpt2_tf.evaluation.lambada import STOP_WORDS, lambada
from gpt2_tf.generation import TensorFlowEngine
from gpt2_tf.generation.engine import Likelihood, Row

TEXTS = ["the then them", "e they then the", "then  eat them", "a🎈é the quite", "x y z the", "t the"]
WAYS = ("last_word", "last_word_filtered", "last_token")


def expected_lambada(logprobs, enc):
    stop_words = [enc.encode(f" {word}")[0] for word in STOP_WORDS.split() if len(enc.encode(f" {word}")) == 1]
    words, filtered, last = [], [], []
    for text in TEXTS:
        context = text.rpartition(" ")[0]
        ids = enc.encode(text)
        n = len(enc.encode(context.rstrip()))
        found = logprobs(ids[:-1])
        words.append([found[at - 1, ids[at]] for at in range(n, len(ids))])
        greedy = [found[at - 1].argmax() == ids[at] for at in range(n, len(ids))]
        others = found[n - 1].copy()
        others[stop_words] = -np.inf
        filtered.append(others.argmax() == ids[n] and all(greedy[1:]))
        last.append(greedy[-1])
        words[-1].append(all(greedy))
    return {
        "texts": len(TEXTS),
        "last_word": {
            "accuracy": np.mean([word[-1] for word in words]),
            "perplexity": math.exp(-np.mean([sum(word[:-1]) for word in words])),
        },
        "last_word_filtered": {"accuracy": np.mean(filtered)},
        "last_token": {
            "accuracy": np.mean(last),
            "perplexity": math.exp(-np.mean([word[-2] for word in words])),
        },
    }


@pytest.mark.parametrize("batch_size", [1, 4, 8])
def test_lambada_equals_the_numpy_reference(model, enc, numpy_logprobs, batch_size):
    found, expected = lambada(model, enc, TEXTS, batch_size=batch_size), expected_lambada(numpy_logprobs, enc)
    assert found.keys() == expected.keys()
    for way in WAYS:
        assert found[way] == pytest.approx(expected[way], rel=1e-5)


@pytest.mark.slow  # imports PyTorch
def test_lambada_equals_that_of_transformers(model, enc, transformers_logprobs):
    found, expected = lambada(model, enc, TEXTS), expected_lambada(transformers_logprobs, enc)
    for way in WAYS:
        assert found[way] == pytest.approx(expected[way], rel=1e-4)


def test_greedy_and_filtered_follow_the_most_likely_tokens():
    """The most likely token is greedy; once it is excluded, the second is the most likely of the others."""
    model, enc = load("shakespeare")
    engine = TensorFlowEngine(model)
    ids = enc.encode("my lord, my lord, my lord,")
    second, first = np.argsort(model(np.array([ids]))[0, -1])[-2:].tolist()
    (scores,) = engine.likelihoods([Row(ids, 1)])
    assert scores.greedy.tolist() == scores.filtered.tolist()
    (scores,) = engine.likelihoods([Row([*ids, first], 1)], excluded=[first])
    assert (scores.greedy.tolist(), scores.filtered.tolist()) == ([True], [False])
    (scores,) = engine.likelihoods([Row([*ids, second], 1)], excluded=[first])
    assert (scores.greedy.tolist(), scores.filtered.tolist()) == ([False], [True])


class KnownScores:
    """An Engine whose scores are given, per text of TEXTS: `greedy` and `filtered` for each token of the last word."""

    def __init__(self, hparams, enc, given):
        self.hparams = hparams
        self.by_ids = dict(zip((tuple(enc.encode(text)) for text in TEXTS), given, strict=True))

    def likelihoods(self, rows, excluded=()):
        self.excluded = set(excluded)
        found = []
        for row in rows:
            greedy, filtered = self.by_ids[tuple(row.ids)]
            logprobs = np.full(len(greedy), -1.0, np.float32)
            found.append(Likelihood(logprobs, np.array(greedy, bool), np.array(filtered, bool)))
        return found

    def extend(self, *args, **kwargs):
        raise NotImplementedError

    search_beams = extend


def test_each_way_counts_by_its_own_rule(model, enc):
    given = [  # greedy, filtered
        ([1, 1], [1, 1]),
        ([0, 1], [1, 1]),
        ([0, 1], [0, 1]),
        ([1, 0], [1, 0]),
        ([1], [0]),
        ([0, 1], [1, 0]),
    ]
    engine = KnownScores(model.hparams, enc, given)
    found = lambada(engine, enc, TEXTS)
    assert found["last_word"] == {"accuracy": 2 / 6, "perplexity": pytest.approx(math.exp(11 / 6))}
    assert found["last_word_filtered"] == {"accuracy": 3 / 6}
    assert found["last_token"] == {"accuracy": 5 / 6, "perplexity": pytest.approx(math.e)}
    # " the" is the only stop word that is a single token of this vocabulary.
    assert engine.excluded == {enc.encode(" the")[0]} and len(enc.encode(" the")) == 1


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a b", "xy" * 19 + " b"], "f: passage 2 has 40 tokens, but must have at most 33"),
        (["a b", "word"], "f: passage 2 must end in a space and a word, but ends in 'word'"),
        (["a b "], "f: passage 1 must end in a space and a word"),
        ([" b"], "f: passage 1 must end in a space and a word"),
        ([], "f is empty"),
    ],
)
def test_invalid_passages_are_refused_by_their_number(model, enc, texts, message):
    with pytest.raises(ValueError, match=message):
        lambada(model, enc, texts, name="f")
