"""Perplexity against the NumPy reference and against transformers, with the same weights.

Tolerances: 1e-5 relative against the reference, 1e-4 against transformers. Both are float32 sums in another order, of
numbers of about 5.
"""

import json
import math

import numpy as np
import pytest
from oracles.random_model import is_freed_after, random_model

from gpt2_tf import HParams
from gpt2_tf.evaluation.perplexity import perplexity, window_rows
from gpt2_tf.generation.tensorflow_engine import build_scorer
from gpt2_tf.model import loss

TEXT = "The quick brown fox jumps over the lazy dog,\n and then naïve 色 the dog didn't jump. " * 3
TINY = HParams(n_vocab=260, n_ctx=8, n_embd=4, n_head=1, n_layer=1)


def expected_nats(logprobs, enc, window, stride):
    """By the definition: token by token, each in the first window that holds it."""
    ids = [enc.end_of_text, *enc.encode(TEXT)]
    nats, scored, end = 0.0, 1, window + 1
    while scored < len(ids):
        end = min(end, len(ids))
        begin = max(0, end - window - 1)
        found = logprobs(ids[begin : end - 1])
        for at in range(scored, end):
            assert at - begin >= min(at, window - stride)  # tokens before it
            nats -= found[at - 1 - begin, ids[at]]
        scored, end = end, end + stride
    return nats


@pytest.mark.parametrize("window, stride", [(None, None), (32, 32), (32, 1), (10, 3), (1, 1)])
def test_perplexity_equals_the_numpy_reference(model, enc, numpy_logprobs, window, stride):
    found = perplexity(model, enc, TEXT, window=window, stride=stride)
    nats = expected_nats(numpy_logprobs, enc, window or 32, stride or 16)
    assert found["nats"] == pytest.approx(nats, rel=1e-5)
    counts = {"token": len(enc.encode(TEXT)), "word": 51, "byte": len(TEXT.encode())}
    for unit, count in counts.items():
        assert found[f"{unit}s"] == count
        assert found[f"{unit}_perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / counts["byte"], rel=1e-5)


@pytest.mark.slow  # imports PyTorch
def test_perplexity_equals_that_of_transformers(model, enc, transformers_logprobs):
    found = perplexity(model, enc, TEXT)
    nats = expected_nats(transformers_logprobs, enc, 32, 16)
    assert found["token_perplexity"] == pytest.approx(math.exp(nats / found["tokens"]), rel=1e-4)


def test_windows_score_each_token_once():
    for n in (2, 5, 9, 10, 31):
        for window in (1, 4, 9):
            for stride in range(1, window + 1):
                scored = []
                for row in window_rows(range(n), window, stride):
                    assert len(row.ids) <= window + 1 and 1 <= row.count < len(row.ids)
                    for at in range(len(row.ids) - row.count, len(row.ids)):
                        scored.append(row.ids[at])
                        assert at >= min(row.ids[at], window - stride)
                assert scored == list(range(1, n))


def test_logits_are_computed_in_chunks_with_the_same_result(model, enc, monkeypatch):
    whole = perplexity(model, enc, TEXT)["nats"]
    monkeypatch.setattr(loss, "CHUNK", 260 * 7)
    assert perplexity(random_model(model.hparams), enc, TEXT)["nats"] == pytest.approx(whole, rel=1e-6)


def test_no_tensor_holds_the_logits_of_a_whole_batch():
    """In the graph of the scores, no tensor has the batch, the text and the vocabulary as its axes."""
    graph = random_model(TINY).traced(build_scorer).graph
    shapes = [tensor.shape for op in graph.get_operations() for tensor in op.outputs]
    assert not [shape for shape in shapes if shape.rank == 3 and shape[-1] == TINY.n_vocab]


@pytest.mark.slow
def test_a_model_is_freed_after_its_evaluation(enc):
    assert is_freed_after(lambda model: perplexity(model, enc, "the then"), TINY)


def test_a_perplexity_too_large_for_a_float_is_none(model, enc):
    found = perplexity(model, enc, "x!?" * 200)
    assert found["word_perplexity"] is None and found["words"] == 1
    assert perplexity(model, enc, " \n")["word_perplexity"] is None
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("", {}, "the text is empty"),
        ("e", {"window": 33}, "window is 33, but must be a whole number from 1 to 32, the model's n_ctx"),
        ("e", {"window": 8, "stride": 9}, "stride is 9, but must be a whole number from 1 to 8, the window"),
        ("e", {"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_invalid_arguments_are_refused(model, enc, text, settings, message):
    with pytest.raises(ValueError, match=message):
        perplexity(model, enc, text, **settings)


def test_weights_that_are_nan_are_refused(enc):
    model = random_model(TINY)
    model.ln_f.b.assign(np.full(4, np.nan))
    with pytest.raises(ValueError, match="the model's logits are not finite: its weights are damaged"):
        perplexity(model, enc, "e")
