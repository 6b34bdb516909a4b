"""What a killed run leaves in its folders is removed when the run is started again."""

from pathlib import Path

import pytest

from gpt2_tf.training.train import run_training

SHAPE = {"n_layer": 1, "n_head": 1, "n_embd": 4, "n_ctx": 8}


@pytest.mark.slow
def test_a_resumed_run_removes_the_temporary_folders_of_a_killed_one(tmp_path):
    text, out = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("to be or not to be, " * 20)
    settings = {"init_from": "scratch", "vocab_size": "chars", "model_shape": SHAPE, "save_every": 1}
    run_training([text], out, **settings, steps=1)
    before = sorted(path for path in out.rglob("*"))
    for folder in (out, out / "best", out / "data", out / "adapters"):
        temporary = folder / ".part-0123456789abcdef"
        (temporary / "files").mkdir(parents=True)
        (temporary / "files" / "model-9.index").touch()
        (temporary / "lock").touch()
    (out / "adapters" / ".part-of-my-own").mkdir()
    run_training([], out, init_from="resume", steps=1)
    assert sorted(out.rglob("*")) == sorted([*before, out / "adapters", out / "adapters" / ".part-of-my-own"])


@pytest.mark.slow
def test_a_started_run_leaves_no_temporary_files(tmp_path):
    (tmp_path / "text.txt").write_text("to be or not to be, " * 20)
    settings = {"init_from": "scratch", "vocab_size": "chars", "model_shape": SHAPE}
    run_training([tmp_path / "text.txt"], tmp_path / "run", **settings, steps=1)
    names = {path.name for path in Path(tmp_path / "run").rglob("*")}
    assert not [name for name in names if ".part" in name or ".tmp" in name or ".lock" in name]
    assert {"encoder.json", "vocab.bpe"} <= {path.name for path in (tmp_path / "run" / "best").iterdir()}
