"""Keras's ways of saving and loading a model. OpenAI's and Hugging Face's files are tested in tests/weights."""

import copy
import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
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


@pytest.mark.slow
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


@pytest.mark.slow
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


def assert_same_weights(one, other):
    assert one is not other and one.hparams == other.hparams
    for x, y in zip(one.weights, other.weights, strict=True):
        assert x.path == y.path
        np.testing.assert_array_equal(x, y)


def other_weights():
    return random_model(HPARAMS, 0.1, seed=1)


def through_weights_file(model, folder):
    model.save_weights(folder / "model.weights.h5")
    loaded = other_weights()
    loaded.load_weights(folder / "model.weights.h5")
    return loaded


def through_checkpoint(model, folder):
    path = tf.train.Checkpoint(model=model).save(folder / "checkpoint")
    stored = [name for name, _ in tf.train.list_variables(path) if name.startswith("model/")]
    assert len(stored) == len(model.weights)
    loaded = other_weights()
    tf.train.Checkpoint(model=loaded).restore(path).assert_consumed()
    return loaded


COPIES = {
    "save_weights": through_weights_file,
    "tf.train.Checkpoint": through_checkpoint,
    "pickle": lambda model, folder: pickle.loads(pickle.dumps(model)),
    "deepcopy": lambda model, folder: copy.deepcopy(model),
}


@pytest.mark.parametrize("way", COPIES.values(), ids=COPIES)
def test_every_way_of_storing_a_model_keeps_all_weights(model, way, tmp_path):
    assert_same_weights(way(model, tmp_path), model)


def test_configurations_make_the_same_model(model):
    for made in (keras.models.clone_model(model), keras.models.model_from_json(model.to_json())):
        assert [(v.path, v.shape) for v in made.weights] == [(v.path, v.shape) for v in model.weights]
        assert made.hparams == model.hparams


@pytest.mark.slow
def test_exports_take_tokens_and_return_the_models_logits(model, tokens, tmp_path):
    """The same float32 graph runs in another function, so sums of about 1 may differ by roundings, 1e-5."""
    model.export(tmp_path / "export", verbose=False)
    tf.saved_model.save(model, tmp_path / "saved")
    tokens = tf.constant(tokens, tf.int32)
    # A loaded model must be kept in a name, since its functions don't keep its variables.
    exported, saved = (tf.saved_model.load(tmp_path / name) for name in ("export", "saved"))
    for logits in (exported.serve(tokens), *saved.signatures["serving_default"](tokens=tokens).values()):
        np.testing.assert_allclose(logits, model(tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["model.h5", "model.hdf5"])
def test_saving_in_keras_older_format_is_an_error(model, tmp_path, name):
    with pytest.raises(ValueError, match=r"is HDF5, which cannot hold GPT2; use \.keras, or save_weights"):
        model.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["metrics", "weighted_metrics"])
def test_metrics_with_the_own_loss_are_an_error(name):
    with pytest.raises(ValueError, match="metrics need the logits, which the model's own loss never computes"):
        random_model(HPARAMS).compile(**{name: ["accuracy"]})


@pytest.mark.parametrize("name", ["p [x]", "what?", "all*"])
def test_an_export_to_a_path_that_tensorflow_cannot_load_from_is_refused(model, tmp_path, name):
    with pytest.raises(ValueError, match="TensorFlow cannot load a SavedModel from such a path"):
        model.export(tmp_path / name / "out")
    assert list(tmp_path.iterdir()) == []
