"""`gpt2_tf.folder`: a model's name -> its folder -> the model and its encoder."""

import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from gpt2_tf import HParams, load
from gpt2_tf.pretrained import download as download_model

folder = importlib.import_module("gpt2_tf.pretrained.load")


@pytest.fixture
def fetched(tiny_folder, monkeypatch):
    """Has the tiny model take the place of OpenAI's files; gives the downloads that were asked for."""
    asked = []

    def download(size, models_dir="models", base_url=None, names=download_model.FILES):
        asked.append((size, models_dir, *names))
        place = Path(models_dir) / folder.canonical_size(size)
        place.mkdir(parents=True, exist_ok=True)
        for name in set(names) - {download_model.META}:
            shutil.copy(tiny_folder / name, place)
        return place

    monkeypatch.setattr(download_model, "download", download)
    return asked


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


def test_a_size_is_fetched_into_models_dir(fetched, tmp_path):
    model, enc = load("117M", tmp_path)
    assert (model.hparams.n_vocab, enc.n_vocab) == (300, 300)
    assert fetched == [("117M", tmp_path, *download_model.FILES)]
    assert folder.find_model_dir("124M", tmp_path) == tmp_path / "124M"
    assert len(fetched) == 1


def test_of_a_size_only_what_is_wanted_and_missing_is_fetched(fetched, tmp_path):
    assert folder.find_model_dir("124M", tmp_path, folder.VOCABULARY) == tmp_path / "124M"
    (tmp_path / "124M" / "vocab.bpe").write_text("mine")
    assert folder.find_model_dir("124M", tmp_path) == tmp_path / "124M"
    rest = [name for name in download_model.FILES if name not in folder.VOCABULARY]
    assert fetched == [("124M", tmp_path, "encoder.json", "vocab.bpe"), ("124M", tmp_path, *rest)]
    assert (tmp_path / "124M" / "vocab.bpe").read_text() == "mine"


def test_find_fetches_nothing_for_a_folder(fetched, tiny_folder):
    assert folder.find_model_dir(tiny_folder) == folder.find_model_dir(str(tiny_folder)) == tiny_folder
    assert folder.find_model_dir("shakespeare") == Path(folder.__file__).parents[1] / "bundled" / "shakespeare"
    assert fetched == []


def test_a_folder_named_like_the_bundled_model_is_told_by_its_path(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, "shakespeare")
    assert folder.find_model_dir("./shakespeare") == Path("shakespeare")
    assert folder.find_model_dir("shakespeare").is_absolute()


@pytest.mark.parametrize("ask", [folder.find_model_dir, folder.describe, load], ids=lambda ask: ask.__name__)
@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (
            "nope",
            FileNotFoundError,
            "there is no model 'nope': expected a size .124M, .*, 'shakespeare', hf:NAME .*, or a folder",
        ),
        (Path("no/pe"), FileNotFoundError, "there is no model 'no/pe'"),
        (__file__, NotADirectoryError, f"{__file__} is not a folder; a model is one with hparams.json"),
    ],
    ids=["name", "path", "file"],
)
def test_not_a_model(ask, model, error, message):
    with pytest.raises(error, match=message):
        ask(model)


def test_a_vocabulary_of_another_model(copy, tmp_path):
    from encoder.train import train

    (tmp_path / "text.txt").write_text("to be, or not to be, that is the question. " * 3)
    train([tmp_path / "text.txt"], 260, copy)
    with pytest.raises(ValueError, match=r"copy: encoder.json has 260 tokens, but hparams.json says n_vocab 300"):
        load(copy)


def test_describe_a_folder(tiny_folder):
    described = folder.describe(tiny_folder)
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


def test_describe_names_dropout_where_there_is_any(copy):
    HParams(n_vocab=300, n_ctx=32, n_embd=16, n_head=2, n_layer=2, dropout=0.1).to_json(copy / "hparams.json")
    assert folder.describe(copy)["dropout"] == "0.1"


def test_describe_a_size_without_fetching_it(fetched, tmp_path):
    described = folder.describe("355M", tmp_path)
    assert described["parameters"] == "354,823,168"
    assert described["folder"] == str(tmp_path / "355M")
    assert (
        described["weights"]
        == f"not in {tmp_path / '355M'}; `gpt2-tf download 355M --models-dir {tmp_path}` fetches them"
    )
    folder.find_model_dir("124M", tmp_path)
    assert folder.describe("117M", tmp_path)["n_vocab"] == "300"
    assert [size for size, *_ in fetched] == ["124M"]


def test_describe_says_what_is_not_whole(copy):
    data = copy / "model.ckpt.data-00000-of-00001"
    size = data.stat().st_size
    data.write_bytes(data.read_bytes()[:-9])
    (copy / "vocab.bpe").unlink()
    described = folder.describe(copy)
    assert (
        described["weights"] == f"28 tensors, but {size - 9:,} of {size:,} bytes in model.ckpt: {data.name} isn't whole"
    )
    assert described["vocabulary"] == "vocab.bpe missing"
    data.unlink()
    assert f"but 0 of {size:,} bytes" in folder.describe(copy)["weights"]


@pytest.mark.parametrize("name", ["hparams.json", "model.ckpt.index"])
def test_describe_a_folder_that_lacks_a_file(copy, name):
    (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        folder.describe(copy)


def test_describe_openai(shared):
    described = folder.describe(shared / "data" / "official-117M")
    assert described["parameters"] == "124,439,808"
    assert described["weights"].startswith("148 tensors, but 0 of 497,759,232 bytes in model.ckpt: ")
