"""Keras's ways of saving and loading a model. OpenAI's and Hugging Face's files are tested in tests/weights."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from oracles.random_model import HPARAMS, random_model


def test_keras_saving_keeps_everything(model, tokens, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.hparams == model.hparams
    np.testing.assert_array_equal(loaded(tokens), model(tokens))


def test_keras_saving_keeps_the_dtype_policy(tokens, tmp_path):
    model = random_model(HPARAMS, 0.1, dtype="mixed_bfloat16")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.h[0].mlp.c_fc.dtype_policy.name == "mixed_bfloat16"
    np.testing.assert_array_equal(loaded(tokens), model(tokens))


def test_keras_saving_keeps_the_compilation(batch, tmp_path):
    """Training resumes exactly: the loaded model takes the same step as the saved one."""
    model = random_model(dataclasses.replace(HPARAMS, n_layer=1), 0.1, remat=True)
    model.compile(keras.optimizers.AdamW(1e-2), grad_accumulation=2)
    model.train_on_batch(*batch)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.remat and loaded.grad_accumulation == 2
    assert model.train_on_batch(*batch) == loaded.train_on_batch(*batch)
    for one, other in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(one, other)


LOAD = """
import {imports}
import numpy as np
model = keras.models.load_model({path!r})
print(model.optimizer.iterations.numpy(), *model(np.array([[1, 2, 3]]))[0, -1].numpy())
print(type(model).__module__, type(model.optimizer).__module__)
"""


@pytest.mark.parametrize("imports", ["keras, gpt2_tf", "gpt2_tf, keras"])
def test_keras_finds_the_classes_of_a_file_from_before_the_packages(imports):
    """The file was saved at commit f751437, whose modules were `gpt2_tf.model` and `gpt2_tf.optimizer`.

    Its logits were recorded then. They are about 1, and 1e-5 is a hundred roundings.
    """
    script = LOAD.format(imports=imports, path=str(Path(__file__).with_name("before_packages.keras")))
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=300, check=True
    )
    numbers, modules = ran.stdout.splitlines()
    steps, *logits = map(float, numbers.split())
    assert steps == 2
    recorded = [1.28904748, 0.28909892, 1.51610255, 0.09962618, 0.52353697, 1.75314784, -1.1750959, 0.20328006]
    recorded += [-0.40962288, -1.51243031, 0.90037352]
    np.testing.assert_allclose(logits, recorded, rtol=0, atol=1e-5)
    assert modules == "gpt2_tf.model.gpt2 gpt2_tf.training.optimizer"
