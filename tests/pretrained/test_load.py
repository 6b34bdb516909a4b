"""Finding the folder of a model by its name, loading the model and its encoder, and describing it."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import gpt2_tf
from gpt2_tf import HParams, load
from gpt2_tf.hparams import canonical_size
from gpt2_tf.pretrained import download as download_model
from gpt2_tf.pretrained.convert import convert
from gpt2_tf.pretrained.load import VOCABULARY, describe, find_model_dir, fingerprint


@pytest.fixture
def downloads(tiny_folder, monkeypatch):
    """Let the tiny model stand in for OpenAI's files, and return the list of downloads that were requested."""
    requested = []

    def download(size, models_dir="models", base_url=None, names=download_model.FILES):
        requested.append((size, models_dir, *names))
        size_dir = Path(models_dir) / canonical_size(size)
        size_dir.mkdir(parents=True, exist_ok=True)
        for name in set(names) - {download_model.META}:
            shutil.copy(tiny_folder / name, size_dir)
        return size_dir

    monkeypatch.setattr(download_model, "download", download)
    return requested


@pytest.fixture
def copy(tiny_folder, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


@pytest.mark.parametrize("kind", [str, Path])
def test_load_a_folder(tiny_folder, kind):
    model, enc = load(kind(tiny_folder))
    assert model.hparams == HParams(n_vocab=300, n_ctx=32, n_embd=16, n_head=2, n_layer=2)
    assert enc.decode(enc.encode("The quick")) == "The quick"
    ids = enc.encode("The quick")
    again, _ = load(tiny_folder)
    np.testing.assert_array_equal(model(np.array([ids])), again(np.array([ids])))


def test_a_size_is_downloaded_into_models_dir(downloads, tmp_path):
    model, enc = load("117M", tmp_path)
    assert (model.hparams.n_vocab, enc.n_vocab) == (300, 300)
    assert downloads == [("117M", tmp_path, *download_model.FILES)]
    assert find_model_dir("124M", tmp_path) == tmp_path / "124M"
    assert len(downloads) == 1


def test_only_the_needed_files_that_are_missing_are_downloaded(downloads, tmp_path):
    assert find_model_dir("124M", tmp_path, VOCABULARY) == tmp_path / "124M"
    (tmp_path / "124M" / "vocab.bpe").write_text("mine")
    assert find_model_dir("124M", tmp_path) == tmp_path / "124M"
    rest = [name for name in download_model.FILES if name not in VOCABULARY]
    assert downloads == [("124M", tmp_path, "encoder.json", "vocab.bpe"), ("124M", tmp_path, *rest)]
    assert (tmp_path / "124M" / "vocab.bpe").read_text() == "mine"


def test_nothing_is_downloaded_for_a_folder(downloads, tiny_folder):
    assert find_model_dir(tiny_folder) == find_model_dir(str(tiny_folder)) == tiny_folder
    assert find_model_dir("shakespeare") == Path(gpt2_tf.__file__).parent / "bundled" / "shakespeare"
    assert downloads == []


def test_a_folder_named_shakespeare_is_found_by_a_path(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, "shakespeare")
    assert find_model_dir("./shakespeare") == Path("shakespeare")
    assert find_model_dir("shakespeare").is_absolute()


@pytest.mark.parametrize("ask", [find_model_dir, describe, load], ids=lambda ask: ask.__name__)
@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (
            "nope",
            FileNotFoundError,
            "there is no model 'nope': expected a size .124M, .*, 'shakespeare', hf:NAME .*, or a folder",
        ),
        (Path("no/pe"), FileNotFoundError, "there is no model 'no/pe'"),
        (__file__, NotADirectoryError, f"{__file__} is not a folder; a model's folder holds hparams.json"),
    ],
    ids=["name", "path", "file"],
)
def test_an_unknown_model_is_an_error_that_lists_the_choices(ask, model, error, message):
    with pytest.raises(error, match=message):
        ask(model)


def test_a_vocabulary_of_another_size_is_refused(copy, tmp_path):
    from encoder.train import train

    (tmp_path / "text.txt").write_text("to be, or not to be, that is the question. " * 3)
    train([tmp_path / "text.txt"], 260, copy)
    with pytest.raises(ValueError, match=r"copy: encoder.json has 260 tokens, but hparams.json says n_vocab 300"):
        load(copy)


def test_describe_a_folder(tiny_folder):
    described = describe(tiny_folder)
    n_params = HParams.from_json(tiny_folder / "hparams.json").n_params
    assert described == {
        "model": str(tiny_folder),
        "folder": str(tiny_folder),
        "n_vocab": "300",
        "n_ctx": "32",
        "n_embd": "16",
        "n_head": "2",
        "n_layer": "2",
        "parameters": f"{n_params:,}",
        "weights": f"28 tensors, {4 * n_params:,} bytes in model.ckpt",
    }


def test_describe_names_dropout_unless_it_is_0(copy):
    HParams(n_vocab=300, n_ctx=32, n_embd=16, n_head=2, n_layer=2, dropout=0.1).to_json(copy / "hparams.json")
    assert describe(copy)["dropout"] == "0.1"


def test_describe_a_size_without_downloading_it(downloads, tmp_path):
    described = describe("355M", tmp_path)
    assert described["parameters"] == "354,823,168"
    assert described["folder"] == str(tmp_path / "355M")
    assert (
        described["weights"]
        == f"not in {tmp_path / '355M'}; `gpt2-tf download 355M --models-dir {tmp_path}` fetches them"
    )
    find_model_dir("124M", tmp_path)
    assert describe("117M", tmp_path)["n_vocab"] == "300"
    assert [size for size, *_ in downloads] == ["124M"]


def test_describe_names_incomplete_and_missing_files(copy):
    data = copy / "model.ckpt.data-00000-of-00001"
    size = data.stat().st_size
    data.write_bytes(data.read_bytes()[:-9])
    (copy / "vocab.bpe").unlink()
    described = describe(copy)
    assert described["weights"] == (
        f"28 tensors, but {size - 9:,} of {size:,} bytes in model.ckpt: {data.name} is incomplete"
    )
    assert described["vocabulary"] == "vocab.bpe missing"
    data.unlink()
    assert f"but 0 of {size:,} bytes" in describe(copy)["weights"]


@pytest.mark.parametrize("name", ["hparams.json", "model.ckpt.index"])
def test_describe_names_the_file_that_a_folder_lacks(copy, name):
    (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        describe(copy)


def test_describe_openai(shared):
    described = describe(shared / "data" / "official-117M")
    assert described["parameters"] == "124,439,808"
    assert described["weights"].startswith("148 tensors, but 0 of 497,759,232 bytes in model.ckpt: ")


@pytest.mark.parametrize(
    ("model", "suggestion"),
    [
        ("shakespear", "'shakespeare'"),
        ("Shakespeare", "'shakespeare'"),
        ("124", "'124M'"),
        ("124m", "'124M'"),
        ("117m", "'117M'"),
        ("gpt2-124M", "'124M'"),
        ("gpt2", "'124M', OpenAI's files, or 'hf:gpt2'"),
        ("GPT2-XL", "'1558M', OpenAI's files, or 'hf:gpt2-xl'"),
        ("openai-community/gpt2-medium", "'355M', OpenAI's files, or 'hf:gpt2-medium'"),
        ("user/name", "'hf:user/name'"),
    ],
)
def test_a_misspelled_name_gets_a_suggestion(model, suggestion, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = f"there is no model {model!r} (did you mean {suggestion}?): expected a size (124M, "
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(expected)}"):
        find_model_dir(model)


@pytest.mark.parametrize("model", ["nope", "./shakespear/model", "/no/pe", ""])
def test_a_name_unlike_any_other_gets_no_suggestion(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"^there is no model {model!r}: expected"):
        find_model_dir(model)


@pytest.mark.parametrize("name", ["encoder.json", "vocab.bpe", "hparams.json", "model.ckpt.index"])
def test_the_fingerprint_changes_with_each_file_that_determines_the_model(copy, tiny_folder, name):
    assert fingerprint(copy) == fingerprint(tiny_folder)
    (copy / name).write_bytes((copy / name).read_bytes() + b" ")
    assert fingerprint(copy) != fingerprint(tiny_folder)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"]
)
def test_the_fingerprint_of_a_hugging_face_folder_changes_with_each_file(tiny_folder, tmp_path, name):
    folder = convert(tiny_folder, tmp_path / "hf", to="hf")
    before = fingerprint(folder)
    if name == "model.safetensors":  # the last byte is of a weight
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    assert fingerprint(folder) != before


@pytest.mark.parametrize("name", ["a [b] {c}", "[ab]*?", "~ %s ä"])
def test_models_are_saved_loaded_and_converted_in_a_folder_of_any_name(tiny_folder, tmp_path, name):
    """TensorFlow's own operations take the characters `[ ] * ?` in a path for a pattern."""
    model, _ = load(tiny_folder)
    folder = tmp_path / name / "model"
    model.save_checkpoint(folder, step=7)
    for file in VOCABULARY:
        shutil.copy(tiny_folder / file, folder)
    converted = convert(convert(folder, tmp_path / name / "hf", to="hf"), tmp_path / name / "openai", to="openai")
    for path in (folder, tmp_path / name / "hf", converted):
        loaded, _ = load(path)
        for old, new in zip(model.weights, loaded.weights, strict=True):
            np.testing.assert_array_equal(old, new)


def test_a_step_is_chosen(tiny_folder, tmp_path):
    model, _ = load(tiny_folder)
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "run"))
    model.wte.assign(model.wte + 1)
    model.save_checkpoint(folder, step=1)
    model.wte.assign(model.wte + 1)
    model.save_checkpoint(folder, step=2)
    np.testing.assert_array_equal(load(folder)[0].wte, model.wte)
    np.testing.assert_array_equal(load(folder, step=1)[0].wte + 1, model.wte)
    with pytest.raises(FileNotFoundError, match=r"model-3\.index is missing; the folder has model\.ckpt, model-1"):
        load(folder, step=3)


def test_the_fingerprint_ignores_other_files_and_the_folders_name(copy, tiny_folder):
    (copy / "notes.txt").write_text("mine")
    assert fingerprint(copy) == fingerprint(tiny_folder)
