"""Checkpoints in OpenAI's form: saved, restored, damaged in many ways, and restored by OpenAI's own graph."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from gpt2_tf import GPT2, HParams
from gpt2_tf.weights import checkpoint
from gpt2_tf.weights.checkpoint import latest_checkpoint
from gpt2_tf.weights.lazy_tensor import LazyTensor
from gpt2_tf.weights.tensor_bundle import read_index

HPARAMS = HParams(n_vocab=300, n_ctx=16, n_embd=24, n_head=2, n_layer=2)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model and the folder that it was saved to. A test that damages the folder copies it first."""
    keras.utils.set_random_seed(0)
    model = GPT2(HPARAMS)
    folder = tmp_path_factory.mktemp("saved") / "new" / "model"
    model.save_checkpoint(folder)
    return model, folder


@pytest.fixture
def file_size_limit():
    """In this context, the system refuses to make a file longer than this number of bytes."""
    resource = pytest.importorskip("resource", reason="needs POSIX limits")

    @contextlib.contextmanager
    def limited(size):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved[1], tmp_path / "copy")


def test_restored_weights_equal_the_saved_ones_exactly(saved):
    model, folder = saved
    again = GPT2.from_checkpoint(folder)
    assert again.hparams == model.hparams
    for old, new in zip(model.weights, again.weights, strict=True):
        assert old.path == new.path
        np.testing.assert_array_equal(old.numpy(), new.numpy())


def test_a_saved_folder_holds_openais_files_and_nothing_else(saved):
    assert {path.name for path in saved[1].iterdir()} == {
        "checkpoint",
        "hparams.json",
        "model.ckpt.data-00000-of-00001",
        "model.ckpt.index",
    }
    assert tf.train.latest_checkpoint(saved[1]) == str(saved[1] / "model.ckpt")


@pytest.mark.slow
def test_the_index_of_a_124m_model_matches_openais(shared, tmp_path):
    """Every entry equals that of OpenAI's index of 124M, except for the checksums of the weights."""
    official = shared / "data" / "official-117M"
    hparams = HParams.from_json(official / "hparams.json")
    GPT2(hparams, w_init_stdev=0).save_checkpoint(tmp_path)

    def described(path):
        return {name: entry._replace(crc32c=0) for name, entry in read_index(path).items()}

    assert described(tmp_path / "model.ckpt.index") == described(official / "model.ckpt.index")


def test_hparams_json_has_only_openais_keys(tmp_path):
    """OpenAI's code fails on unknown keys such as dropout."""
    GPT2(dataclasses.replace(HPARAMS, dropout=0.1)).save_checkpoint(tmp_path)
    assert list(json.loads((tmp_path / "hparams.json").read_text())) == [
        "n_vocab",
        "n_ctx",
        "n_embd",
        "n_head",
        "n_layer",
    ]


def test_saving_again_replaces_the_weights(saved, folder):
    other = GPT2(HPARAMS)
    other.save_checkpoint(folder)
    np.testing.assert_array_equal(GPT2.from_checkpoint(folder).wte.numpy(), other.wte.numpy())


def test_loading_draws_no_random_numbers(saved, monkeypatch):
    def drawn(*args, **kwargs):
        raise AssertionError("a weight was drawn")

    monkeypatch.setattr(keras.initializers.RandomNormal, "__call__", drawn)
    GPT2.from_checkpoint(saved[1])
    with pytest.raises(AssertionError, match="a weight was drawn"):
        GPT2(HPARAMS)


def test_tensors_are_read_one_at_a_time(saved, monkeypatch):
    """Each tensor is assigned to its variable before the next is read, so memory holds one tensor at most."""
    model, folder = saved
    events = []
    read, assign = LazyTensor.__array__, keras.Variable.assign
    monkeypatch.setattr(
        LazyTensor, "__array__", lambda tensor, *args, **kw: (events.append(("read", tensor.name)), read(tensor))[1]
    )
    monkeypatch.setattr(
        keras.Variable, "assign", lambda v, value: (events.append(("assign", v.path)), assign(v, value))
    )
    GPT2.from_checkpoint(folder)
    assert events == [(kind, variable.path) for variable in model.weights for kind in ("read", "assign")]


def test_all_differences_are_named_in_one_error(saved, folder):
    json_path = folder / "hparams.json"
    json_path.write_text(json.dumps(HPARAMS.to_dict() | {"n_layer": 1, "n_ctx": 20}))
    with pytest.raises(ValueError) as error:
        GPT2.from_checkpoint(folder)
    message = str(error.value)
    assert "model/wpe is float32 [16, 24], expected float32 [20, 24]" in message
    assert sum(f"{v.path} isn't of this model" in message for v in saved[0].weights if "/h1/" in v.path) == 12
    assert "\n" not in message and "wte" not in message

    json_path.write_text(json.dumps(HPARAMS.to_dict() | {"n_layer": 3}))
    with pytest.raises(ValueError, match="model/h2/attn/c_attn/b is missing; model/h2/attn/c_attn/w is missing"):
        GPT2.from_checkpoint(folder)


def test_a_wrong_dtype_is_named(saved, folder):
    names = [variable.path for variable in saved[0].weights]
    tensors = [tf.cast(v, tf.float64) if v.path == "model/wte" else tf.convert_to_tensor(v) for v in saved[0].weights]
    tf.raw_ops.SaveV2(
        prefix=str(folder / "model.ckpt"), tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors
    )
    with pytest.raises(ValueError, match=r"model/wte is float64 \[300, 24\], expected float32 \[300, 24\]$"):
        GPT2.from_checkpoint(folder)


@pytest.mark.slow
def test_a_flipped_bit_in_any_tensor_names_the_tensor(saved, folder):
    path = folder / "model.ckpt.data-00000-of-00001"
    whole = path.read_bytes()
    for name, entry in read_index(folder / "model.ckpt.index").items():
        damaged = bytearray(whole)
        damaged[entry.offset + entry.size // 2] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name} is damaged; fetch the file again"):
            GPT2.from_checkpoint(folder)


@pytest.mark.parametrize("change", [-1, -1000, 1])
def test_a_data_file_of_another_size_is_an_error_with_both_sizes(folder, change):
    path = folder / "model.ckpt.data-00000-of-00001"
    content = path.read_bytes()
    path.write_bytes((content + b"\0")[: len(content) + change])
    with pytest.raises(ValueError, match=f"has {len(content) + change:,} bytes, but .*index says {len(content):,}"):
        GPT2.from_checkpoint(folder)


@pytest.mark.parametrize("name", ["hparams.json", "model.ckpt.index", "model.ckpt.data-00000-of-00001"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{re.escape(name)} is missing; "):
        GPT2.from_checkpoint(folder)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\0" * 500])
def test_a_file_that_is_not_an_index_is_named(folder, content):
    (folder / "model.ckpt.index").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.ckpt\.index"):
        GPT2.from_checkpoint(folder)


def test_a_failed_save_leaves_the_old_files(saved, folder, file_size_limit):
    """The system refuses to write more than 10,000 bytes to a file, as a full disk would."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with file_size_limit(10_000), pytest.raises(OSError, match=r"model\.ckpt could not be written: File too large"):
        saved[0].save_checkpoint(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_files_are_moved_after_the_files_that_they_name(saved, folder, monkeypatch):
    """Data comes before its index, and `checkpoint` last. A copy comes first, while the old files are replaced."""
    moved = []
    replace = os.replace
    monkeypatch.setattr(
        os, "replace", lambda source, target: (moved.append(Path(target).name), replace(source, target))
    )
    saved[0].save_checkpoint(folder)
    copy = ["model.ckpt.copy-1.data-00000-of-00001", "model.ckpt.copy-1.index", "checkpoint"]
    assert moved == [*copy, "model.ckpt.data-00000-of-00001", "model.ckpt.index", "checkpoint", "hparams.json"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux what a descriptor is of")
def test_all_files_are_on_the_disk_before_save_returns(saved, folder, monkeypatch):
    """Files are synced before they are moved, and the folder after: a run removes its older checkpoint next."""
    events = []
    fsync, replace = os.fsync, os.replace

    def noted(descriptor):
        events.append(("on disk", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(
        os, "replace", lambda source, to: (events.append(("moved", Path(to).name)), replace(source, to))
    )
    variables = saved[0].named_weights()
    checkpoint.save(folder, variables, 7, state=variables)
    moved = [name for event, name in events if event == "moved"]
    assert len(moved) == 6 and moved[-1] == "checkpoint"  # two of each, `counter` and `checkpoint`
    for name in moved:
        assert events.index(("on disk", name)) < events.index(("moved", name))
    assert events[-1] == ("on disk", folder.name)


def test_a_checkpoint_of_gpt_2_simple_is_restored(saved, folder):
    """gpt-2-simple leaves `model-500.*`, and `checkpoint` names them."""
    for path in folder.glob("model.ckpt.*"):
        path.rename(folder / path.name.replace("model.ckpt", "model-500"))
    (folder / "checkpoint").write_text('model_checkpoint_path: "model-500"\n')
    assert tf.train.latest_checkpoint(folder) == str(folder / "model-500")
    for old, new in zip(saved[0].weights, GPT2.from_checkpoint(folder).weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_file_without_read_permission_is_not_called_damaged(saved, unwritable):
    """The folder and its files belong to root."""
    folder = unwritable.parent / "unreadable"
    user = os.geteuid()
    os.seteuid(os.getuid())
    shutil.copytree(saved[1], folder)
    (folder / "model.ckpt.data-00000-of-00001").chmod(0)
    os.seteuid(user)
    with pytest.raises(PermissionError, match=r"model\.ckpt\.data-00000-of-00001"):
        GPT2.from_checkpoint(folder)


@pytest.mark.parametrize("name", ["", "new"])
def test_a_folder_without_write_permission_is_named(saved, unwritable, name):
    with pytest.raises(PermissionError, match=str(unwritable)):
        saved[0].save_checkpoint(unwritable / name)


def test_saved_names_are_openais_whatever_the_models_name(saved, tmp_path):
    with keras.name_scope("outer"):
        model = GPT2(HPARAMS, name="mine")
    model.save_checkpoint(tmp_path)
    assert read_index(tmp_path / "model.ckpt.index").keys() == {variable.path for variable in saved[0].weights}
    np.testing.assert_array_equal(GPT2.from_checkpoint(tmp_path).wte.numpy(), model.wte.numpy())


@pytest.mark.parametrize("changed", [{"n_ctx": 10**12}, {"n_vocab": 10**30}, {"n_layer": 10**9}])
def test_a_model_far_larger_than_the_checkpoint_is_refused_before_it_is_built(folder, changed):
    (folder / "hparams.json").write_text(json.dumps(HPARAMS.to_dict() | changed))
    with pytest.raises(
        ValueError, match=r"hparams.json describes a model of [\d,]+ weights, but .*index lists 22,\d\d\d$"
    ):
        GPT2.from_checkpoint(folder)


def test_saving_into_a_file_is_an_error(saved, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        saved[0].save_checkpoint(tmp_path / "file")


@pytest.mark.slow
def test_openais_own_graph_restores_our_checkpoint_and_gives_the_same_logits(shared, tmp_path):
    """OpenAI's graph of 124M on random full-size weights at 1,024 tokens.

    2e-4: float32 sums of 768 to 3,072 terms through 12 blocks, in another order, on logits of about 10.
    """
    official = shared / "data" / "official-117M"
    keras.utils.set_random_seed(0)
    model = GPT2(HParams.from_json(official / "hparams.json"), w_init_stdev=0.05)
    rng = np.random.default_rng(0)
    for variable in model.weights:  # so that no gain is 1 and no bias 0
        if variable.name in "gb":
            variable.assign_add(rng.normal(0, 0.1, variable.shape))
    model.save_checkpoint(tmp_path)
    tokens = rng.integers(0, 50257, [1, 1024])
    ours = model(tokens).numpy()[0]

    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        saver = tf.compat.v1.train.import_meta_graph(str(official / "model.ckpt.meta"), clear_devices=True)
        saver.restore(session, str(tmp_path / "model.ckpt"))
        theirs = session.run("model/MatMul_2:0", {"Placeholder:0": tokens})
    assert np.abs(theirs).max() > 5  # so that equal zeros can't pass
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4)


def test_any_named_variables_are_saved_and_restored(tmp_path):
    variable = keras.Variable(np.arange(6.0, dtype=np.float32).reshape(2, 3), name="x")
    checkpoint.save(tmp_path, {"some/name": variable})
    other = keras.Variable(np.zeros([2, 3], np.float32), name="y")
    checkpoint.restore(tmp_path, {"some/name": other})
    np.testing.assert_array_equal(other.numpy(), variable.numpy())


def test_with_a_step_the_folder_is_as_gpt_2_simple_keeps_it(saved, tmp_path):
    """gpt-2-simple and nshepperd's code call TensorFlow's latest_checkpoint, and resume at the step in `counter`."""
    saved[0].save_checkpoint(tmp_path, step=1000)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("checkpoint", "counter", "hparams.json"),
        *("model-1000.data-00000-of-00001", "model-1000.index"),
    }
    assert (tmp_path / "counter").read_text() == "1000\n"
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        variables = [
            tf.compat.v1.get_variable(name, shape) for name, shape in HPARAMS.shapes.items()
        ]  # as their Saver has them: the trainable ones, without a global step
        saver = tf.compat.v1.train.Saver(var_list=variables)
        saver.restore(session, tf.train.latest_checkpoint(str(tmp_path)))
        restored = {variable.op.name: session.run(variable) for variable in variables}
    for name, variable in saved[0].named_weights().items():
        np.testing.assert_array_equal(restored[name], variable)
    saved[0].save_checkpoint(tmp_path, step=2000)
    for old, new in zip(saved[0].weights, GPT2.from_checkpoint(tmp_path).weights, strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    "content, expected",
    [
        ('model_checkpoint_path: "model-500"\nall_model_checkpoint_paths: "model-400"\n', "model-500"),
        ('model_checkpoint_path: "/home/me/checkpoint/run1/model-500"\n', "model-500"),
        ('model_checkpoint_path: "C:\\\\run1\\\\model-500"\n', "model-500"),
        ("", "model.ckpt"),
        (None, "model.ckpt"),
    ],
)
def test_the_latest_checkpoint_is_the_one_that_the_file_checkpoint_names(tmp_path, content, expected):
    for name in ("model-400", "model-500", "model.ckpt"):
        (tmp_path / f"{name}.index").touch()
    if content is not None:
        (tmp_path / "checkpoint").write_text(content)
    assert latest_checkpoint(tmp_path) == tmp_path / expected


def test_a_named_checkpoint_that_is_missing_is_an_error_that_lists_the_others(saved, folder):
    for step in (900, 1000, 61000):
        saved[0].save_checkpoint(folder, step=step)
    for path in folder.glob("model-61000.*"):
        path.unlink()
    with pytest.raises(FileNotFoundError) as error:
        GPT2.from_checkpoint(folder)
    assert str(error.value) == (
        f"{folder / 'checkpoint'} names model-61000, but model-61000.index is missing; the folder has model.ckpt, "
        "model-900, model-1000; to choose one, write this line into "
        f"{folder / 'checkpoint'}: "
        'model_checkpoint_path: "model-1000"; generate, evaluate, inspect, convert and export also take --step 1000'
    )
    (folder / "checkpoint").write_text('model_checkpoint_path: "model-1000"')
    GPT2.from_checkpoint(folder)


@pytest.mark.parametrize("content", [None, b"", bytes(50)], ids=["missing", "empty", "zeroed"])
def test_without_a_named_checkpoint_the_steps_are_listed(saved, tmp_path, content):
    saved[0].save_checkpoint(tmp_path, step=61000)
    (tmp_path / "checkpoint").unlink()
    if content is not None:
        (tmp_path / "checkpoint").write_bytes(content)
    with pytest.raises(FileNotFoundError, match="names no checkpoint; the folder has model-61000; to choose"):
        GPT2.from_checkpoint(tmp_path)
    assert latest_checkpoint(tmp_path, step=61000) == tmp_path / "model-61000"
    with pytest.raises(FileNotFoundError, match=r"model-7\.index is missing; the folder has model-61000$"):
        latest_checkpoint(tmp_path, step=7)


class Stopped(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("step", [None, 1000])
def test_a_stop_at_any_moment_of_saving_leaves_a_whole_checkpoint(tmp_path, monkeypatch, step):
    """Two saves in a row are stopped, each at some call that changes the folder. The weights are always of one save.

    A last save succeeds and leaves no other files behind.
    """
    calls_left = 1000

    def stopping(function):
        def wrapped(*args, **kwargs):
            nonlocal calls_left
            if calls_left <= 0:
                raise Stopped
            calls_left -= 1
            return function(*args, **kwargs)

        return wrapped

    def save(number):
        checkpoint.save(tmp_path, {"x": np.full(50, number, np.float32)}, step=step)

    def saved_numbers():
        return set(np.asarray(checkpoint.read_tensors(tmp_path, {"x": (50,)})["x"]))

    save(1)
    files = {path.name for path in tmp_path.iterdir()}
    for name in ("replace", "link", "unlink"):
        monkeypatch.setattr(os, name, stopping(getattr(os, name)))
    save(2)
    count = 1000 - calls_left
    assert count >= 10  # two links, three moves of the copy, three of the checkpoint, two removals
    number = 2
    for first in range(count):
        for second in range(0, count, 3):
            (before,) = saved_numbers()
            for calls in (first, second):
                calls_left, number = calls, number + 1
                with pytest.raises(Stopped):
                    save(number)
            calls_left = 1000
            assert saved_numbers() in ({before}, {number - 1}, {number})
    save(0)
    assert saved_numbers() == {0} and {path.name for path in tmp_path.iterdir()} == files
