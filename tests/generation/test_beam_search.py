"""Beam search against an exhaustive search, and against a slow search in NumPy that never ends early."""

import itertools
from functools import cache

import numpy as np
import pytest
from oracles import reference
from oracles.random_model import is_freed_after, random_model
from oracles.slow_beam_search import slow_search

from gpt2_tf import HParams, beam_search, generate
from gpt2_tf.generation.beam_decoding import search_beams
from gpt2_tf.generation.stop_strings import build_stop_table, parse_stops

FEW = [b"a", b"b", b"ab", b"c", b"<|endoftext|>"]
PENALTIES = [-0.5, 0, 0.7, 1, 2]
WIDTHS = [(2, 1, 20), (2, 2, 1), (3, 1, 11), (3, 3, 9), (5, 4, 17)]  # num_beams, num_return, length


def hparams(n_vocab):
    return HParams(n_vocab=n_vocab, n_ctx=32, n_embd=24, n_head=3, n_layer=2)


@pytest.fixture(scope="module")
def few():
    return random_model(hparams(len(FEW)), stdev=0.25, seed=3)


@pytest.fixture
def model(lively):
    return lively


def reference_logprobs(model, context):
    """Return a function from new ids to the reference's log-probabilities of the next token, [n_vocab]."""
    weights = {variable.path: variable.numpy() for variable in model.weights}

    @cache
    def logprobs(ids):
        logits, _ = reference.forward(weights, model.hparams.n_head, [*context, *ids])
        return np.log(reference.softmax(logits[-1]))

    return logprobs


def stop_condition(tokens, ids, strings):
    """Return a function from new ids to whether the text stops at the last of them."""
    return lambda written: (
        written[-1] in ids or any(string in b"".join(tokens[i] for i in written) for string in strings)
    )


def all_texts(logprobs, n_vocab, ends, length, penalty):
    """Return (score, ids) of every possible text, the best first."""
    texts = {}
    for ids in itertools.product(range(n_vocab), repeat=length):
        n = next((n for n in range(1, length) if ends(ids[:n])), length)
        total = sum(logprobs(ids[:i])[ids[i]] for i in range(n))
        texts[ids[:n]] = total / n**penalty
    return sorted(((score, ids) for ids, score in texts.items()), reverse=True)


def assert_same(found, context, expected):
    """Compare ids, and scores to 1e-5: float32 against float64, on sums of up to 20 numbers of about 2."""
    assert [tuple(row[len(context) :][:n]) for row, n in zip(found.tokens.numpy(), found.n_new, strict=True)] == [
        ids for _, ids in expected
    ]
    np.testing.assert_allclose(found.score, [score for score, _ in expected], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("ids, strings", [([], []), ([4], []), ([], [b"ba", b"ac"]), ([4, 3], [b"bb"])])
def test_with_enough_beams_the_search_is_exhaustive(few, ids, strings, penalty):
    context, length, ends = [3, 0, 2], 4, stop_condition(FEW, ids, strings)
    texts = all_texts(reference_logprobs(few, context), len(FEW), ends, length, penalty)
    table = build_stop_table(FEW, ids, strings)
    for n in (1, 7, 1000):
        found = search_beams(few, context, table, num_beams=625, num_return=n, length=length, length_penalty=penalty)
        assert_same(found, context, texts[:n])
        assert found.stopped.numpy().tolist() == [ends(text) for _, text in texts[:n]]
    assert len(found.score) == len(texts)  # of 1000 asked for


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("ids, strings", [([], []), ([4], []), ([], [b"ba", b"cab"]), ([4], [b"abc"])])
def test_a_few_beams_find_what_the_slow_search_finds_and_end_no_later(few, ids, strings, penalty):
    context, logprobs = [1], reference_logprobs(few, [1])
    ends, table = stop_condition(FEW, ids, strings), build_stop_table(FEW, ids, strings)
    for num_beams, num_return, length in WIDTHS:
        expected, steps = slow_search(logprobs, ends, num_beams, num_return, length, penalty)
        found = search_beams(
            few, context, table, num_beams=num_beams, num_return=num_return, length=length, length_penalty=penalty
        )
        assert_same(found, context, expected)
        assert found.logprobs.shape[1] == steps


def test_the_slow_searches_end_after_various_numbers_of_steps(few):
    """Otherwise the test above could not notice a search that ends too late."""
    logprobs, ends = reference_logprobs(few, [1]), stop_condition(FEW, [4], [])
    steps = {slow_search(logprobs, ends, *widths, penalty)[1] for widths in WIDTHS for penalty in PENALTIES}
    assert steps > {1, 3, 7, 9, 17}


def test_texts_are_those_of_the_slow_search(model, enc):
    """The stops are a string, ids and `<|endoftext|>`; no text shows its stop."""
    stop, context = ["the", *range(0, 256, 4), "<|endoftext|>"], enc.encode("them")
    ids, strings = parse_stops(enc, stop)
    expected, _ = slow_search(
        reference_logprobs(model, context), stop_condition(enc.tokens, ids, strings), 5, 5, 20, 1.2
    )
    found = beam_search(model, enc, "them", num_beams=5, num_return=5, length=20, length_penalty=1.2, stop=stop)
    np.testing.assert_allclose([h.score for h in found], [score for score, _ in expected], rtol=0, atol=1e-5)
    for h, (score, written) in zip(found, expected, strict=True):
        data = enc.decode_bytes(written[:-1] if written[-1] in ids else written)
        assert h.text == data.partition(b"the")[0].decode(errors="replace")
        assert h.ids == list(written[: len(h.ids)]) and len(h.logprobs) == len(h.ids)
        assert (h.prompt, h.finish_reason) == ("them", "stop" if len(written) < 20 else "length")
        logprobs = [reference_logprobs(model, context)(written[:i])[written[i]] for i in range(len(written))]
        np.testing.assert_allclose(h.logprobs, logprobs[: len(h.ids)], rtol=0, atol=1e-5)
        assert sum(logprobs) / len(written) ** 1.2 == pytest.approx(score)
    assert {h.finish_reason for h in found} == {"stop", "length"}


@pytest.mark.parametrize("stop", [(), range(0, 256, 9), ["the", "\x17"]])
def test_one_beam_is_greedy_decoding(model, enc, stop):
    reasons = set()
    for prompt in ("them", "e", "🎈 x", None):
        (greedy,) = generate(model, enc, prompt, length=20, temperature=0, stop=stop)
        (found,) = beam_search(model, enc, prompt, num_beams=1, length=20, stop=stop)
        assert found[:4] == greedy[:4]
        np.testing.assert_allclose(found.logprobs, greedy.logprobs, rtol=0, atol=1e-5)
        reasons.add(found.finish_reason)
    assert "stop" in reasons or not stop


def test_the_default_length_is_as_many_as_fit(model, enc):
    (found,) = beam_search(model, enc, "x" * 30, num_beams=3, stop=())
    assert len(found.ids) == 3  # The last token is not run, so n_ctx + 1 tokens fit.


def test_num_return_texts_are_found_even_where_every_first_token_stops(model, enc):
    for stop in ((), range(260)):
        assert len(beam_search(model, enc, "e", num_beams=260, num_return=260, length=1, stop=stop)) == 260


def test_one_trace_serves_all_searches(model, enc, forbid_traces):
    beam_search(model, enc, "e", length=2)

    forbid_traces()
    for setting in ({"num_beams": 9, "num_return": 5}, {"length": 20}, {"length_penalty": -1}, {"stop": ["the", 3]}):
        for prompt in ("e", "the then them"):
            beam_search(model, enc, prompt, **setting)
    with pytest.raises(AssertionError, match="traced again"):
        beam_search(random_model(hparams(260), stdev=0.25, seed=1), enc, "e")


def test_a_model_is_freed_after_a_search(enc):
    assert is_freed_after(lambda other: beam_search(other, enc, "e", length=2), hparams(260))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_beams": 0}, "num_beams is 0, but must be 1 to 260, the size of the vocabulary"),
        ({"num_beams": 261}, "num_beams is 261, but must be 1 to 260"),
        ({"num_beams": 2.5}, "num_beams is 2.5, but must be 1 to 260"),
        ({"num_return": 5}, "num_return is 5, but must be 1 to 4, the number of beams"),
        ({"num_return": 0}, "num_return is 0, but must be 1 to 4"),
        ({"length_penalty": float("nan")}, "length_penalty is nan, but must be -10 to 10"),
        ({"length_penalty": 10.5}, r"length_penalty is 10.5, but must be -10 to 10 \(0 compares the plain sums\)"),
        ({"length": 0}, "length is 0, but must be 1 to 32: the model's window is 32 tokens, and the prompt has 1"),
        ({"length": 33}, "length is 33, but must be 1 to 32"),
        ({"prompt": ""}, "the prompt is empty; leave it out to start from <|endoftext|>"),
        ({"prompt": "x" * 33}, "the prompt has 33 tokens, but the model reads at most 32; shorten it"),
        ({"stop": [260]}, "stop is 260, but must be strings, or ids from 0 to 259"),
    ],
)
def test_wrong_arguments_are_errors_that_say_what_is_expected(model, enc, arguments, message):
    with pytest.raises(ValueError, match=message):
        beam_search(model, enc, **{"prompt": "e", **arguments})


def test_another_vocabulary_is_an_error(enc, few):
    with pytest.raises(ValueError, match="the vocabulary has 260 tokens, but the model 5"):
        beam_search(few, enc, "e")
