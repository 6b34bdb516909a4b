"""The bundled model is a small folder in OpenAI's form, and as good as docs/faithfulness.md says."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from oracles import reference

from gpt2_tf import GPT2, generate, load
from gpt2_tf.pretrained.load import find_model_dir

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_shakespeare.py"


@pytest.fixture(scope="module")
def nats_per_character():
    spec = importlib.util.spec_from_file_location("train_shakespeare", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.nats_per_character


def test_the_bundled_folder_holds_openais_files_in_at_most_16_mb():
    sizes = {path.name: path.stat().st_size for path in find_model_dir("shakespeare").iterdir()}
    assert set(sizes) == {
        "checkpoint",
        "encoder.json",
        "hparams.json",
        "model.ckpt.data-00000-of-00001",
        "model.ckpt.index",
        "vocab.bpe",
    }
    assert sum(sizes.values()) <= 16_000_000
    assert tf.train.latest_checkpoint(find_model_dir("shakespeare"))


def test_the_bundled_model_writes_plays():
    model, enc = load("shakespeare")
    completions = generate(model, enc, length=100, num_samples=8, seed=0)
    assert sum(":\n" in completion.text for completion in completions) >= 6  # a speaker's name on a line of its own


def test_nats_per_character_equals_the_reference_in_one_window(nats_per_character, tiny_folder):
    model, enc = load(tiny_folder)
    text = "The quick brown fox sleeps."
    ids = [enc.end_of_text, *enc.encode(text)]
    assert len(ids) <= model.hparams.n_ctx
    weights = {variable.path: variable.numpy() for variable in model.weights}
    logits, _ = reference.forward(weights, model.hparams.n_head, ids[:-1])
    expected = -np.log(reference.softmax(logits)[range(len(ids) - 1), ids[1:]]).sum() / len(text)
    assert nats_per_character(model, enc, text) == pytest.approx(expected, rel=1e-5)


def test_nats_per_character_gives_each_token_at_least_half_a_window_of_context(nats_per_character, tiny_folder):
    model, enc = load(tiny_folder)
    text = "The quick brown fox sleeps, and then the dog jumps over the fox; " * 4
    ids = [enc.end_of_text, *enc.encode(text)]
    n_ctx = model.hparams.n_ctx
    assert 2 * n_ctx < len(ids)
    weights = {variable.path: variable.numpy() for variable in model.weights}
    total, start, scored = 0.0, 0, 1
    while scored < len(ids):  # each window begins half a window before its first scored token
        stop = min(start + n_ctx, len(ids) - 1)
        logits, _ = reference.forward(weights, model.hparams.n_head, ids[stop - min(n_ctx, stop) : stop])
        total -= np.log(
            reference.softmax(logits[scored - stop - 1 :])[range(stop + 1 - scored), ids[scored : stop + 1]]
        ).sum()
        scored = stop + 1
        start = scored - n_ctx // 2
    assert nats_per_character(model, enc, text) == pytest.approx(total / len(text), rel=1e-5)


@pytest.mark.parametrize("n", [1, 30, 32, 33, 47, 48, 49, 1000])
def test_nats_per_character_counts_each_token_once(nats_per_character, tiny_folder, n):
    """A model of zeros gives every token the same probability, and "1" is one token of one character."""
    _, enc = load(tiny_folder)
    zeros = GPT2(load(tiny_folder)[0].hparams, w_init_stdev=0)
    assert len(enc.encode("1" * n)) == n
    assert nats_per_character(zeros, enc, "1" * n) == pytest.approx(np.log(enc.n_vocab))


@pytest.mark.slow
def test_the_bundled_model_predicts_the_unseen_tenth_of_shakespeare(nats_per_character, shared):
    text = (shared / "data" / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    val_text = text[int(0.9 * len(text)) :]
    nats = nats_per_character(*load("shakespeare"), val_text)
    print(f"{nats:.4f} nats a character")
    assert nats == pytest.approx(1.52, abs=0.005)  # as docs/faithfulness.md says
