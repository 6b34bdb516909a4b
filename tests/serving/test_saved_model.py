"""The folder that an export writes."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from oracles.random_model import random_model
from oracles.serving import model_answer

from gpt2_tf import HParams, score
from gpt2_tf.serving.saved_model import copy_with_dtype, export


@pytest.mark.slow
def test_saved_model_cli_shows_and_runs_the_export(exported, lively, enc):
    def cli(*arguments):
        script = Path(sysconfig.get_path("scripts"), "saved_model_cli")
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [sys.executable, script, *arguments]
        ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    shown = cli("show", "--dir", exported, "--tag_set", "serve", "--signature_def", "generate")
    for line in ("inputs['top_k'] tensor_info:", "outputs['finish_reason'] tensor_info:", "shape: (-1)"):
        assert line in shown
    ran = cli(
        *("run", "--dir", exported, "--tag_set", "serve", "--signature_def", "serving_default"),
        *("--input_exprs", 'text=["them"]'),
    )
    assert str(model_answer(lively, enc, "them", length=6, seed=0)[0].encode())[2:-1] in ran


@pytest.mark.slow
def test_the_next_export_gets_the_next_number_and_no_other_file_is_left(lively, enc, tmp_path):
    (tmp_path / "7").mkdir()
    assert export(lively, enc, tmp_path) == tmp_path / "8"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["7", "8", "batching_parameters.txt"]
    assert "max_batch_size { value: 16 }" in (tmp_path / "batching_parameters.txt").read_text()


def test_the_weights_are_stored_once(exported, lively):
    sizes = {path.name: path.stat().st_size for path in exported.rglob("*") if path.is_file()}
    weights = sizes["variables.data-00000-of-00001"]
    assert 0 <= weights - 4 * lively.hparams.n_params < 10_000
    variables = tf.saved_model.load(exported).weights
    assert sum(np.prod(variable.shape) for variable in variables) == lively.hparams.n_params


def test_lora_adapters_are_merged():
    model = random_model(HParams(n_vocab=260, n_ctx=16, n_embd=8, n_head=2, n_layer=1), lora_rank=2)
    copy = copy_with_dtype(model, "float32")
    assert [variable.path for variable in copy.weights] == list(model.named_weights())
    tokens = np.array([[1, 2, 3]])
    np.testing.assert_allclose(copy(tokens), model(tokens), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_halves_the_size_of_the_weights(lively, enc, tmp_path):
    folder = export(lively, enc, tmp_path, dtype="bfloat16")
    weights = (folder / "variables" / "variables.data-00000-of-00001").stat().st_size
    assert 0 <= weights - 2 * lively.hparams.n_params < 10_000
    loaded = tf.saved_model.load(folder).signatures["score"]
    texts = ["then", "the e"]
    found = loaded(context=tf.constant(["them", ""]), text=tf.constant(texts))["logprob"]
    expected = [sum(*score(lively, enc, text, context)) for text, context in zip(texts, ["them", None], strict=True)]
    np.testing.assert_allclose(found, expected, rtol=0.05, atol=0.3)  # three digits, of weights far from trained ones


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_length": 33}, "max_length is 33, but must be 1 to 32"),
        ({"length": 21, "max_length": 20}, "length is 21, but must be 1 to 20"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"dtype": "float16"}, "dtype is 'float16', but must be one of float32, bfloat16"),
        ({"top_p": 0}, "top_p is 0"),
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_is_written(lively, enc, tmp_path, settings, said):
    with pytest.raises(ValueError, match=said):
        export(lively, enc, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["p [x]", "what?", "all*"])
def test_a_path_that_tensorflow_cannot_load_from_is_refused(lively, enc, tmp_path, name):
    with pytest.raises(ValueError, match="TensorFlow cannot load a SavedModel from such a path"):
        export(lively, enc, tmp_path / name / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_refused(lively, enc, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(NotADirectoryError, match="out is not a folder"):
        export(lively, enc, tmp_path / "out")
