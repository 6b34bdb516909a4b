"""The Engine seam: everything that uses a model works on an engine in NumPy, and gives the answer that is known."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from oracles.successor_engine import Call, SuccessorEngine

from gpt2_tf import beam_search, generate, sample_sequence, score, stream
from gpt2_tf.evaluation import perplexity
from gpt2_tf.generation import Engine, TensorFlowEngine
from gpt2_tf.generation.engine import as_engine

LOG_07 = np.log(0.7)


@pytest.fixture
def engine(enc):
    return SuccessorEngine(enc.n_vocab)


def test_the_fake_and_the_real_engine_are_engines_and_a_model_is_wrapped(engine, lively):
    assert isinstance(engine, Engine) and isinstance(TensorFlowEngine(lively), Engine)
    assert as_engine(engine) is engine
    assert as_engine(lively).model is lively
    with pytest.raises(TypeError, match="the model is 'x', but must be a GPT2 or an Engine"):
        as_engine("x")


def test_generate_writes_the_engines_tokens(engine, enc):
    a, b = generate(engine, enc, ["a", "say m"], length=5, temperature=0, stop="qr")
    assert (a.text, a.finish_reason, b.text, b.finish_reason) == ("bcdef", "length", "nop", "stop")
    assert a.logprobs == pytest.approx([LOG_07] * 5)
    assert engine.calls == [Call(2, 8, None)]


def test_generate_asks_for_batches_and_passes_the_draft_on(engine, enc):
    generate(engine, enc, ["a", "b", "c"], length=1, temperature=0, batch_size=2)
    assert [call.n_rows for call in engine.calls] == [2, 1]
    draft = SuccessorEngine(enc.n_vocab)
    generate(engine, enc, ["a", "b"], length=1, temperature=0, draft=draft)
    assert engine.calls[2:] == [Call(1, 8, draft)] * 2
    generate(engine, enc, "a", length=1, temperature=0, draft="lookup")
    assert engine.calls[-1] == Call(1, 8, "lookup")


def test_the_window_limits_the_length_unless_it_slides(engine, enc):
    with pytest.raises(ValueError, match="length is 40, but must be 1 to 32: the model's window is 32 tokens"):
        generate(engine, enc, "a", length=40, temperature=0)
    (completion,) = generate(engine, enc, "!", length=40, temperature=0, window=True)
    assert completion.ids == list(range(1, 41))


def test_stream_yields_each_token_of_the_engine(engine, enc):
    pieces = list(stream(engine, enc, "a", length=5, temperature=0, stop="fx"))
    assert pieces == ["b", "c", "d", "e", "f"]  # the last piece was held back until the text had ended
    assert engine.calls == [Call(1, 1, None)]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda *args: generate(*args, 5), "prompts is 5, but must be a str or a list of str"),
        (lambda *args: generate(*args, b"e"), "prompts is b'e', but must be a str"),
        (lambda *args: generate(*args, [5]), "a prompt is 5, but must be a str"),
        (lambda *args: score(*args, 5), "texts is 5, but must be a str"),
        (lambda *args: score(*args, ["e", 5]), "a text is 5, but must be a str"),
        (lambda *args: score(*args, "e", 5), "contexts is 5, but must be a str"),
        (lambda *args: beam_search(*args, 5), "a prompt is 5, but must be a str"),
        (lambda *args: beam_search(*args, "e", length_penalty="1"), "length_penalty is '1', of type str, but must be"),
        (lambda engine, enc: generate(enc, enc, "e"), "the model is .*, but must be a GPT2 or an Engine"),
    ],
)
def test_an_argument_of_another_type_is_named(engine, enc, call, message):
    with pytest.raises(TypeError, match=message):
        call(engine, enc)


def test_score_returns_the_engines_likelihoods(engine, enc):
    unlikely, successor = score(engine, enc, ["a", "b"], ["<", "a"])
    assert successor == pytest.approx([LOG_07])
    assert unlikely == pytest.approx([np.log(0.1 / 258)])
    assert score(engine, enc, "acd", "a") == [pytest.approx([np.log(0.1 / 258), np.log(0.2), LOG_07])]


def test_beam_search_returns_the_engines_beams(engine, enc):
    best, second = beam_search(engine, enc, "a", num_beams=3, num_return=2, length=3)
    assert (best.text, best.finish_reason, best.score) == ("bcd", "length", pytest.approx(LOG_07))
    assert second.score == pytest.approx((2 * LOG_07 + np.log(0.2)) / 3)
    (stopped,) = beam_search(engine, enc, "a", num_beams=2, length=3, stop="c", length_penalty=0)
    assert (stopped.text, stopped.finish_reason) == ("b", "stop")


def test_sample_sequence_writes_the_engines_tokens(engine):
    tokens = sample_sequence(engine, length=3, context=[[5], [9]], temperature=0).numpy()
    assert tokens.tolist() == [[5, 6, 7, 8], [9, 10, 11, 12]]


def test_perplexity_sums_the_engines_likelihoods(engine, enc):
    found = perplexity(engine, enc, "abcdd", window=4, stride=2)
    expected = -(2 * np.log(0.1 / 258) + 3 * LOG_07)  # "a" after <|endoftext|>, and "d" after "d"
    assert found["nats"] == pytest.approx(expected, rel=1e-6)
    assert found["token_perplexity"] == pytest.approx(np.exp(expected / 5), rel=1e-6)


def test_an_engine_without_tensorflow_imports_no_tensorflow(tmp_path):
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from encoder.train import train
from gpt2_tf import beam_search, generate, score, stream
from oracles.successor_engine import SuccessorEngine
open("text", "w").write("the then them " * 3)
enc = train(["text"], 260, "vocabulary")
engine = SuccessorEngine(260)
assert generate(engine, enc, "a", length=3, temperature=0)[0].text == "bcd"
assert "".join(stream(engine, enc, "a", length=3, temperature=0)) == "bcd"
assert len(score(engine, enc, "b", "a")[0]) == 1
assert beam_search(engine, enc, "a", length=3)[0].text == "bcd"
assert not {{"tensorflow", "keras"}} & set(sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
