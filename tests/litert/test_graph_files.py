"""The files that the engine keeps: made when needed, made again when damaged, and never trusted unseen."""

import os
import subprocess
import sys

import pytest

import gpt2_tf
from gpt2_tf.litert import graph_files
from gpt2_tf.pretrained import engines

TEXT = "the then"


@pytest.fixture
def folder(lively, enc, tmp_path):
    lively.save_checkpoint(tmp_path / "model")
    enc.save(tmp_path / "model")
    return tmp_path / "model"


def text_of(folder, **settings):
    """The text that a newly opened engine writes."""
    engine, enc = gpt2_tf.load(folder, engine="litert", **settings)
    return gpt2_tf.generate(engine, enc, TEXT, length=12, seed=1)[0].text


def kept(folder):
    (state,) = (folder / "litert").iterdir()
    return state


def damage_with_old_times(path, content):
    """Write a file and set its times back, as if it had not changed."""
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-64]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-200] + b"\x55" + path.read_bytes()[-199:]),
    "flipped, with old times": lambda path: damage_with_old_times(path, b"\x55" + path.read_bytes()[1:]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_again(folder, damage):
    expected = text_of(folder)
    names = sorted(path.name for path in kept(folder).iterdir())
    assert [name for name in names if name.endswith(".check")] == [
        f"{name}.check" for name in names if name not in ("hparams.json",) and not name.endswith(".check")
    ]
    for name in names:
        if name != "hparams.json":
            DAMAGES[damage](kept(folder) / name)
            assert text_of(folder) == expected, name
    assert sorted(path.name for path in kept(folder).iterdir()) == names


def test_nothing_is_written_at_the_second_use(folder, monkeypatch):
    expected = text_of(folder)

    def write(*args):
        raise AssertionError("a file was written again")

    for name in ("write_weights", "build"):
        monkeypatch.setattr(graph_files, name, write)
    assert text_of(folder) == expected


def test_a_changed_model_is_converted_again(folder, enc):
    expected = text_of(folder)
    model = gpt2_tf.GPT2.from_checkpoint(folder)
    model.wpe.assign(model.wpe * 2)
    model.save_checkpoint(folder)
    changed = text_of(folder)
    assert changed == gpt2_tf.generate(model, enc, TEXT, length=12, seed=1)[0].text != expected
    assert len(list((folder / "litert").iterdir())) == 2  # another process may still use the first
    for state in (folder / "litert").iterdir():
        os.utime(state, (0, 0))
    assert text_of(folder) == changed
    assert len(list((folder / "litert").iterdir())) == 1


def test_each_type_of_weights_and_format_has_its_own_files(folder, monkeypatch):
    text_of(folder)
    text_of(folder, weights="int8")
    names = {path.name.partition("-")[0] for path in (folder / "litert").iterdir()}
    assert names == {"float32", "int8"}
    monkeypatch.setattr(graph_files, "FORMAT", 0)
    text_of(folder)
    assert len(list((folder / "litert").iterdir())) == 3


@pytest.mark.slow
def test_processes_at_once_do_no_harm(folder):
    code = "import sys, gpt2_tf\nengine, enc = gpt2_tf.load(sys.argv[1], engine='litert')\n"
    code += f"print(gpt2_tf.generate(engine, enc, {TEXT!r}, length=12, seed=1)[0].text)"
    command = [sys.executable, "-c", code, folder]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    texts = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0] * 4
    assert set(texts) == {text_of(folder) + "\n"}
    assert not [path.name for path in kept(folder).iterdir() if path.name.startswith(".")]


def test_beside_a_model_that_cannot_be_written_the_users_cache_is_used(unwritable, user_cache):
    assert engines.kept_root(unwritable).is_relative_to(user_cache)


def test_the_bundled_model_is_kept_in_the_users_cache(user_cache):
    assert engines.kept_root(engines.bundled_folder()).is_relative_to(user_cache)


def test_files_are_listed_and_removed(folder):
    assert engines.describe_kept(folder) == ""
    text_of(folder)
    size = sum(path.stat().st_size for path in kept(folder).iterdir())
    assert engines.describe_kept(folder) == f"float32, {size:,} bytes, in {folder / 'litert'}"
    engines.clear_kept(folder)
    assert engines.describe_kept(folder) == "" and not (folder / "litert").exists()
