"""Speculative decoding on LiteRT: a draft changes the speed, never the text."""

import random

import pytest
from oracles.random_settings import PROMPTS, random_settings

import gpt2_tf
from gpt2_tf import generate, stream
from gpt2_tf.litert import speculative
from gpt2_tf.litert.decoder import CachedRow


@pytest.fixture(scope="module")
def int8():
    return gpt2_tf.load("shakespeare", engine="litert", weights="int8")[0]


def plain(completion):
    return completion.text, completion.ids, completion.finish_reason


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=pytest.mark.slow if seed > 3 else ()) for seed in range(12)])
@pytest.mark.parametrize("draft", ["lookup", "int8"])
def test_the_text_is_the_one_without_a_draft(bundled, int8, draft, seed):
    rng = random.Random(seed)
    settings = random_settings(rng) | {"seed": seed, "length": 60}
    prompt = rng.choice(PROMPTS)
    alone = generate(bundled.engine, bundled.enc, prompt, **settings)
    drafted = generate(bundled.engine, bundled.enc, prompt, **settings, draft=int8 if draft == "int8" else draft)
    assert [plain(completion) for completion in drafted] == [plain(completion) for completion in alone]
    for one, other in zip(drafted, alone, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)  # float32's rounding in another order


@pytest.mark.parametrize("draft", ["lookup", "int8"])
def test_a_text_longer_than_the_window(bundled, int8, draft):
    settings = {"length": 400, "seed": 5, "window": True, "draft": int8 if draft == "int8" else draft}
    alone = generate(bundled.engine, bundled.enc, "ROMEO:", **settings | {"draft": None})
    assert generate(bundled.engine, bundled.enc, "ROMEO:", **settings)[0].text == alone[0].text


def test_a_model_of_a_small_window(small):
    """n_ctx is 32, so the cache is full soon; the model is its own draft, whose window ends at the same place."""
    settings = {"length": 31, "seed": 5}
    alone = generate(small.engine, small.enc, "a", **settings)
    assert generate(small.engine, small.enc, "a", **settings, draft=small.engine)[0].ids == alone[0].ids


def test_several_tokens_are_accepted_at_once(bundled, int8, monkeypatch):
    """int8 mostly agrees with float32, so the model runs far less often than it writes tokens."""
    runs, logits = [], CachedRow.logits
    monkeypatch.setattr(
        CachedRow, "logits", lambda row, tokens, count=1: runs.append(row.decoder) or logits(row, tokens, count)
    )
    generate(bundled.engine, bundled.enc, "ROMEO:", length=100, seed=1, draft=int8)
    assert sum(decoder is bundled.engine.decoder for decoder in runs) < 40


def test_a_draft_that_is_always_wrong_changes_nothing(bundled, monkeypatch):
    monkeypatch.setattr(speculative, "prompt_lookup", lambda tokens, n_new, n: [7] * n)
    alone = generate(bundled.engine, bundled.enc, "ROMEO:", length=30, seed=1)
    assert generate(bundled.engine, bundled.enc, "ROMEO:", length=30, seed=1, draft="lookup")[0].ids == alone[0].ids


def test_a_draft_streams(bundled, int8):
    alone = generate(bundled.engine, bundled.enc, "ROMEO:", length=30, seed=1)[0].text
    assert "".join(stream(bundled.engine, bundled.enc, "ROMEO:", length=30, seed=1, draft=int8)) == alone


def test_a_draft_of_the_other_engine_is_refused(bundled):
    with pytest.raises(ValueError, match="needs a model of the engine litert"):
        generate(bundled.engine, bundled.enc, "ROMEO:", length=3, draft=bundled.model)
