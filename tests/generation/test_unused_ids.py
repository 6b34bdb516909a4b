"""Ids that stand for no token, of a model whose vocabulary is padded to a round number, are never generated."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
from oracles.random_model import random_model
from oracles.successor_engine import SuccessorEngine

from encoder import Encoder
from gpt2_tf import HParams, SamplingParams, beam_search, generate, sample_sequence, stream
from gpt2_tf.serving.signatures import Limits, Signatures

HPARAMS = HParams(n_vocab=264, n_ctx=32, n_embd=40, n_head=4, n_layer=2)
UNUSED = [260, 261, 262, 263]


@pytest.fixture(scope="module")
def padded(enc, tmp_path_factory):
    """The vocabulary of `enc` with four unused ids, as a Hugging Face folder of 264 ids gives it."""
    folder = tmp_path_factory.mktemp("padded")
    enc.save(folder)
    ids = json.loads((folder / "encoder.json").read_text()) | {f"<|unused{i}|>": i for i in UNUSED}
    (folder / "encoder.json").write_text(json.dumps(ids))
    return Encoder.from_folder(folder)


@pytest.fixture(scope="module")
def model():
    """A model that finds the unused ids more likely than all tokens."""
    model = random_model(HPARAMS)
    model.ln_f.b.assign(np.ones(40))
    model.wte.assign(np.concatenate([model.wte.numpy()[:260], np.ones([4, 40])]))
    return model


def test_the_model_would_generate_them(model):
    tokens = sample_sequence(model, length=20, context=[1, 2, 3], seed=1).numpy()[0, 3:]
    assert set(tokens) & set(UNUSED)


def test_the_encoder_knows_its_unused_ids(enc, padded):
    assert (enc.unused_ids, padded.unused_ids) == ([], UNUSED)


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"temperature": 0},
        {"top_k": 264, "logit_bias": {261: 50.0, 7: 1.0}},
        {"draft": "lookup", "temperature": 0},
        {"repetition_penalty": 0.5, "no_repeat_ngram": 2, "min_length": 9},
        {"window": True, "length": 60},
    ],
)
def test_generate_never_writes_them(model, padded, setting):
    for completion in generate(model, padded, ["the", "e"], num_samples=3, seed=1, **{"length": 20, **setting}):
        assert completion.ids and max(completion.ids) < 260
        assert "unused" not in completion.text


def test_a_draft_model_and_a_stream_never_write_them(model, padded):
    (plain,) = generate(model, padded, "the", length=20, seed=1)
    assert generate(model, padded, "the", length=20, seed=1, draft=model)[0].ids == plain.ids
    assert "".join(stream(model, padded, "the", length=20, seed=1)) == plain.text


@pytest.mark.parametrize("num_beams", [1, 3, 260])
def test_beam_search_never_writes_them(model, padded, num_beams):
    for hypothesis in beam_search(model, padded, "the", num_beams=num_beams, num_return=num_beams, length=2):
        assert hypothesis.ids and max(hypothesis.ids) < 260
    with pytest.raises(ValueError, match="num_beams is 261, but must be 1 to 260, the size of the vocabulary"):
        beam_search(model, padded, "the", num_beams=261)


def test_another_engine_is_told_of_them(padded):
    """The successor of "the last token" of the vocabulary would be an unused id; the engine has to skip it."""
    (completion,) = generate(SuccessorEngine(264), padded, padded.decode([258]), length=3, temperature=0, stop=())
    assert completion.ids[0] == 259 and max(completion.ids) < 260


@pytest.mark.slow
def test_an_export_never_writes_them(model, padded):
    defaults = SamplingParams(length=20, seed=1)
    generate_rows = Signatures(model, padded, defaults, Limits(20, 4)).functions()["generate"]
    inputs = {"text": ["the", "e"], "length": [20, 20], "seed": [1, 2], "temperature": [0.0, 1.0]}
    specs = {spec.name: spec.dtype for spec in generate_rows.input_signature}
    answer = generate_rows(**{name: tf.constant(value, specs[name]) for name, value in inputs.items()})
    texts = [text.decode() for text in answer["text"].numpy()]
    assert all(text and "unused" not in text for text in texts)


def test_forbidding_keeps_the_other_settings(padded):
    params = SamplingParams(top_k=5, logit_bias={3: 1.0, 260: 2.0})
    forbidden = params.for_vocabulary(padded)
    assert forbidden.logit_bias == {3: 1.0, **dict.fromkeys(UNUSED, -np.inf)}
    assert dataclasses.replace(forbidden, logit_bias=params.logit_bias) == params
