"""examples/train_shakespeare.py teaches the model how a text begins."""

import importlib.util
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_shakespeare.py"
TEXT = "".join(f"Fox {i}:\nThe hen has {i} eggs.\n\n" for i in range(400))


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("train_shakespeare", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_openings_are_passages_that_begin_with_a_speech(example, enc):
    ids = enc.encode(TEXT)
    result = example.with_openings(ids, enc, n_openings=5, window=40, seed=1)
    assert result[: len(ids)] == ids
    passages = enc.decode(result[len(ids) :]).split("<|endoftext|>")
    assert passages[0] == "" and len(passages) == 6
    for passage in passages[1:]:
        assert passage.startswith("Fox ") and passage in TEXT
    assert len(set(passages)) == 6  # drawn from all of the text


def test_the_model_is_trained_on_the_openings(example, tmp_path, monkeypatch):
    pytest.importorskip("tokenizers", reason="tokenizers is an extra")
    (tmp_path / "text.txt").write_text(TEXT)
    trained_on = []

    class Trained(Exception):
        """Ends the script before a model is trained."""

    def train(GPT2, hparams, ids, val_ids, args):
        trained_on.extend(ids)
        raise Trained

    monkeypatch.setattr(example, "train", train)
    argv = ["train_shakespeare.py", tmp_path / "text.txt", tmp_path / "out", "--n-vocab", 300, "--n-ctx", 32]
    monkeypatch.setattr(sys, "argv", list(map(str, argv)))
    with pytest.raises(Trained):
        example.main()
    end_of_text = 299  # the last id of the vocabulary
    text_ids = trained_on.index(end_of_text)
    assert trained_on.count(end_of_text) == text_ids // (8 * 32) > 5
