"""The files that the engine keeps: made when needed, made again when damaged, and never trusted unseen."""

import os
import subprocess
import sys

import pytest

import gpt2_tf
from gpt2_tf.litert import graph_files
from gpt2_tf.litert import kept as kept_files
from gpt2_tf.pretrained import engines
from gpt2_tf.pretrained.load import bundled_folder

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
    files = [name for name in names if not name.endswith(".check")]
    assert names == sorted(files + [f"{name}.check" for name in files])
    for name in names:
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
    monkeypatch.setattr(engines, "FORMAT", 0)
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
    assert kept_files.kept_folder(unwritable, "float32-0").is_relative_to(user_cache)


def test_the_bundled_model_is_kept_in_the_users_cache(user_cache):
    assert kept_files.kept_folder(bundled_folder(), "float32-0").is_relative_to(user_cache)


def test_a_chosen_folder_takes_the_files_of_all_models(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2_TF_CACHE", str(tmp_path / "chosen"))
    text_of(folder)
    assert not (folder / "litert").exists() and kept_files.describe_kept(folder).startswith("float32, ")
    assert list((tmp_path / "chosen").glob("litert/model-*/float32-*/weights.bin"))


def test_files_are_listed_and_removed(folder):
    assert kept_files.describe_kept(folder) == ""
    text_of(folder)
    size = sum(path.stat().st_size for path in kept(folder).iterdir())
    assert kept_files.describe_kept(folder) == f"float32, {size:,} bytes, in {folder / 'litert'}"
    kept_files.clear_kept(folder)
    assert kept_files.describe_kept(folder) == "" and not (folder / "litert").exists()


def test_files_removed_while_a_model_uses_them_are_told(folder):
    engine, enc = gpt2_tf.load(folder, engine="litert")
    kept_files.clear_kept(folder)
    with pytest.raises(FileNotFoundError, match="removed while a model used it; load the model again"):
        gpt2_tf.generate(engine, enc, [TEXT] * 3, length=2)


def test_a_read_only_folder_with_all_files_is_used(folder, monkeypatch):
    expected = text_of(folder)

    def write(*args):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(kept_files, "atomic_write", write)
    monkeypatch.setattr(os, "utime", write)
    monkeypatch.setattr(os, "access", lambda *args, **kwargs: False)
    for path in kept(folder).glob("*.check"):  # a copy of the folder has other times
        path.with_suffix("").touch()
    assert text_of(folder) == expected
    assert len(list((folder / "litert").iterdir())) == 1


def test_where_nothing_can_be_kept_auto_takes_tensorflow(folder, tmp_path, monkeypatch, capfd):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("GPT2_TF_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(engines, "gpu_is_visible", lambda: False)
    with pytest.raises(
        kept_files.NotKept, match="set GPT2_TF_CACHE to a folder that can be written, or take the engine"
    ):
        gpt2_tf.load(folder, engine="litert")
    capfd.readouterr()
    model, _ = gpt2_tf.load(folder, engine="auto")
    assert isinstance(model, gpt2_tf.GPT2)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(str(tmp_path / "file")) and "Not a directory" in line


def test_a_model_that_cannot_be_read_is_no_fault_of_the_folder(folder):
    (folder / "model.ckpt.data-00000-of-00001").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.ckpt\.data") as caught:
        gpt2_tf.load(folder, engine="auto")
    assert not isinstance(caught.value, kept_files.NotKept)


def test_packed_weights_of_another_version_are_removed(folder):
    text_of(folder)
    (cache,) = kept(folder).glob("xnnpack-*.cache")
    for name in ("xnnpack-0.1-0123.cache", "xnnpack-0.1-0123.cache.check"):
        (kept(folder) / name).touch()
    cache.unlink()
    text_of(folder)
    assert [path.name for path in kept(folder).glob("xnnpack-*.cache")] == [cache.name]


def test_hugging_faces_weights_are_hashed_once(lively, enc, tmp_path, monkeypatch):
    folder = tmp_path / "hf"
    lively.save_pretrained(folder, enc)
    expected, fingerprint = text_of(folder), engines.fingerprint

    def read_again(*args):
        raise AssertionError("the weights were hashed again")

    monkeypatch.setattr(engines, "fingerprint", read_again)
    assert text_of(folder) == expected
    monkeypatch.setattr(engines, "fingerprint", fingerprint)
    lively_folder = tmp_path / "changed"
    other = gpt2_tf.GPT2.from_pretrained(folder)
    other.wpe.assign(other.wpe * 2)
    other.save_pretrained(lively_folder, enc)
    damage_with_old_times(folder / "model.safetensors", (lively_folder / "model.safetensors").read_bytes())
    assert text_of(folder) == gpt2_tf.generate(other, enc, TEXT, length=12, seed=1)[0].text != expected
