"""Multiple choice against the NumPy reference and against transformers, with the same weights."""

import numpy as np
import pytest

from gpt2_tf.evaluation.lambada import lambada
from gpt2_tf.evaluation.multiple_choice import choice
from gpt2_tf.evaluation.perplexity import perplexity

QUESTIONS = [
    {"context": "the then", "choices": [" them", " the", " xyz"], "answer": 1, "ending": " eats"},
    {"context": "", "choices": ["them", "e", "then the"], "answer": 0, "ending": " naïve"},
    {"context": "e ", "choices": ["then", "q", "the", "them them"], "answer": 3, "ending": "!"},
    {"context": "x the", "choices": ["n", "m"], "answer": 1, "ending": " 色"},
]


def expected_choices(logprobs, enc):
    chosen = {"full": [], "per_byte": [], "partial": []}
    for question in QUESTIONS:
        scores = {way: [] for way in chosen}
        for text in question["choices"]:
            whole = enc.encode(question["context"] + text + question["ending"])
            before = enc.encode(question["context"].rstrip())
            ending = len(whole) - len(enc.encode(question["context"] + text))
            ids = whole if before else [enc.end_of_text, *whole]
            found = logprobs(ids[:-1])
            each = [found[at - 1, ids[at]] for at in range(max(len(before), 1), len(ids))]
            scores["full"].append(sum(each))
            scores["per_byte"].append(sum(each) / len((text + question["ending"]).encode()))
            scores["partial"].append(sum(each[len(each) - ending :]))
        for way, values in scores.items():
            chosen[way].append(int(np.argmax(values)))
    return chosen


def test_choices_equal_those_of_the_numpy_reference(model, enc, numpy_logprobs):
    found, expected = choice(model, enc, QUESTIONS), expected_choices(numpy_logprobs, enc)
    assert found["chosen"] == expected
    answers = [question["answer"] for question in QUESTIONS]
    assert found["accuracy"] == {way: np.mean(np.equal(indices, answers)) for way, indices in expected.items()}
    assert len({tuple(indices) for indices in expected.values()}) == 3  # a way taken for another would be seen


def test_without_endings_there_is_no_partial_comparison(model, enc):
    found = choice(model, enc, [{**question, "ending": ""} for question in QUESTIONS])
    assert found["accuracy"]["partial"] is None
    assert found["chosen"].keys() == {"full", "per_byte"}


@pytest.mark.slow  # imports PyTorch
def test_choices_equal_those_of_transformers(model, enc, transformers_logprobs):
    assert choice(model, enc, QUESTIONS)["chosen"] == expected_choices(transformers_logprobs, enc)


def test_one_trace_serves_all_evaluations(model, enc, forbid_traces):
    perplexity(model, enc, "e")
    forbid_traces()
    perplexity(model, enc, "the quick brown fox", window=9, batch_size=2)
    lambada(model, enc, ["the then them", "t the"])
    choice(model, enc, QUESTIONS)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"context": "x" * 40, "choices": ["y", "z"], "answer": 0}, "f: question 1 has 41 tokens"),
        (
            {"context": "th", "choices": ["e", "en"], "answer": 0},
            "f: question 1 has a continuation whose first letters belong to the context's last token",
        ),
        ({"context": "th", "choices": ["e"], "answer": 0}, 'f: question 1 must be {"context"'),
    ],
)
def test_invalid_questions_are_refused_by_their_number(model, enc, question, message):
    with pytest.raises(ValueError, match=message):
        choice(model, enc, [question], name="f")
