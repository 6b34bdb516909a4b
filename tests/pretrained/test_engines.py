"""The choice of the engine, and the forms of a model that LiteRT runs."""

import os

import pytest

import gpt2_tf
from gpt2_tf.pretrained import convert, engines

pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert, which has no wheel for this machine")


@pytest.mark.parametrize(
    ("installed", "gpu", "asked", "weights", "expected"),
    [
        (True, False, "auto", "float32", "litert"),
        (True, True, "auto", "float32", "tensorflow"),
        (True, True, "auto", "int8", "litert"),
        (False, False, "auto", "float32", "tensorflow"),
        (True, True, "litert", "float32", "litert"),
        (True, False, "tensorflow", "float32", "tensorflow"),
    ],
)
def test_auto_takes_litert_where_it_is_and_no_gpu_is(monkeypatch, installed, gpu, asked, weights, expected):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(engines, "gpu_is_visible", lambda: gpu)
    assert engines.choose_engine(asked, weights) == expected


def test_what_cannot_be_chosen_is_named(monkeypatch):
    with pytest.raises(ValueError, match="engine is 'jax', but must be auto, litert or tensorflow"):
        gpt2_tf.load("shakespeare", engine="jax")
    with pytest.raises(ValueError, match="weights is 'int7', but must be float32 or int8"):
        gpt2_tf.load("shakespeare", engine="litert", weights="int7")
    with pytest.raises(ValueError, match="the engine tensorflow has float32 only; take engine='litert'"):
        gpt2_tf.load("shakespeare", weights="int8")
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="needs ai-edge-litert: pip install"):
        gpt2_tf.load("shakespeare", engine="litert")


def test_hidden_gpus_are_not_visible(monkeypatch):
    monkeypatch.setattr(engines.sys, "platform", "linux")
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert not engines.gpu_is_visible()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_threads_are_those_of_the_process():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert engines.available_threads() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize("form", ["hf", "gpt-2-simple"])
def test_every_form_of_a_folder_writes_the_same_text(tiny_folder, form, tmp_path):
    other = convert(tiny_folder, tmp_path / "other", to=form)
    settings = {"length": 12, "seed": 1}
    model, enc = gpt2_tf.load(tiny_folder)
    engine, other_enc = gpt2_tf.load(other, engine="litert", threads=1)
    assert gpt2_tf.generate(engine, other_enc, "The", **settings) == [
        completion._replace(logprobs=pytest.approx(completion.logprobs, abs=1e-4))
        for completion in gpt2_tf.generate(model, enc, "The", **settings)
    ]


def test_a_folder_without_a_vocabulary_names_the_missing_file(tiny_folder, tmp_path):
    gpt2_tf.GPT2.from_checkpoint(tiny_folder).save_checkpoint(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match=r"encoder\.json"):
        gpt2_tf.load(tmp_path / "model", engine="litert")
