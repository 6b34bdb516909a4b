"""`gpt2-tf convert`: every form into every other, exact to the last bit, with little memory, complete or not at all."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from gpt2_tf import GPT2, HParams, load
from gpt2_tf.cli.main import main
from gpt2_tf.pretrained import FORMS
from gpt2_tf.pretrained.convert import convert, find_form
from gpt2_tf.pretrained.load import describe
from gpt2_tf.weights import checkpoint, tensor_bundle

TEXT = "The quick brown fox\n\n didn't <|endoftext|> 色"


@pytest.fixture(scope="module")
def forms(tiny_folder, tmp_path_factory) -> dict[str, Path]:
    """The tiny model in every form, each from the one before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("keras_nlp", reason="KerasNLP is in the extra [keras-nlp]")
    place = tmp_path_factory.mktemp("forms")
    folders, last = {}, tiny_folder
    for to in ("hf", "gpt-2-simple", "keras-nlp", "openai"):
        folders[to] = last = convert(last, place / to, to)
    return folders


@pytest.fixture
def copy(tiny_folder, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def checksums(folder: Path) -> dict[str, tuple]:
    index = tensor_bundle.read_index(f"{checkpoint.latest_checkpoint(folder)}.index")
    return {name: (entry.shape, entry.crc32c) for name, entry in index.items()}


@pytest.mark.slow  # for the import of KerasNLP
@pytest.mark.parametrize(("start", "to"), list(itertools.product(FORMS, FORMS)))
def test_every_form_into_every_other(forms, tiny_folder, tmp_path, start, to):
    made = convert(forms[start], tmp_path / "made", to)
    assert find_form(made) == to
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    again = convert(made, tmp_path / "again", "openai")
    assert checksums(again) == checksums(tiny_folder)
    for name in ("encoder.json", "vocab.bpe", "hparams.json"):
        assert (again / name).read_bytes() == (tiny_folder / name).read_bytes()


@pytest.mark.slow
def test_a_converted_model_has_the_same_weights_and_ids(forms, tiny_folder):
    model, enc = load(tiny_folder)
    for to in ("hf", "gpt-2-simple", "openai"):
        other, their_enc = load(forms[to])
        assert their_enc.encode(TEXT, "all") == enc.encode(TEXT, "all")
        for old, new in zip(model.weights, other.weights, strict=True):
            np.testing.assert_array_equal(old, new)


@pytest.mark.slow
def test_keras_nlp_loads_a_converted_model(forms, tiny_folder):
    import keras_nlp

    model, enc = load(tiny_folder)
    task = keras_nlp.models.GPT2CausalLM.from_preset(str(forms["keras-nlp"]))
    tokens = np.random.default_rng(0).integers(0, 300, [2, 32])
    hidden = task.backbone({"token_ids": tokens, "padding_mask": np.ones_like(tokens)})
    logits = task.backbone.token_embedding(hidden, reverse=True)
    np.testing.assert_allclose(model(tokens), logits, rtol=0, atol=2e-5)
    assert list(task.preprocessor.tokenizer("The quick fox")) == enc.encode("The quick fox")


def test_the_step_of_a_forks_checkpoint_is_kept(copy, tmp_path):
    load(copy)[0].save_checkpoint(copy, step=500)
    made = convert(copy, tmp_path / "made", "gpt-2-simple")
    assert {path.name for path in made.iterdir()} == {
        *("checkpoint", "counter", "encoder.json", "hparams.json", "vocab.bpe"),
        *("model-500.data-00000-of-00001", "model-500.index"),
    }
    assert find_form(convert(copy, tmp_path / "other")) == "openai"  # from any other form


def test_a_model_without_a_vocabulary_is_converted_with_a_notice(copy, tmp_path, capsys):
    (copy / "encoder.json").unlink()
    (copy / "vocab.bpe").unlink()
    made = convert(copy, tmp_path / "made")
    assert {path.name for path in made.iterdir()} == {"config.json", "model.safetensors"}
    assert f"{copy} has no vocabulary, so {made} gets none" in capsys.readouterr().err


def test_a_vocabulary_of_another_size_is_refused(copy, tmp_path):
    HParams(n_vocab=299, n_ctx=32, n_embd=16, n_head=2, n_layer=2).to_json(copy / "hparams.json")
    GPT2(HParams.from_json(copy / "hparams.json")).save_checkpoint(copy)
    with pytest.raises(ValueError, match="the vocabulary has 300 tokens, but n_vocab is 299"):
        convert(copy, tmp_path / "made")


def test_an_empty_target_is_filled_and_a_full_one_is_refused(tiny_folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["convert", str(tiny_folder), str(tmp_path / "empty")]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / 'empty'}\n" and "tiny -> hf: 100%" in captured.err
    before = {path.name: path.stat() for path in (tmp_path / "empty").iterdir()}
    assert main(["convert", str(tiny_folder), str(tmp_path / "empty")]) == 1
    assert capsys.readouterr().err == (
        f"gpt2-tf: error: {tmp_path / 'empty'} exists already; name a new folder, or remove this one\n"
    )
    assert {path.name: path.stat() for path in (tmp_path / "empty").iterdir()} == before


def test_a_damaged_source_leaves_no_target(copy, tmp_path):
    path = copy / "model.ckpt.data-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged; fetch the file again"):
        convert(copy, tmp_path / "made" / "deep")
    assert list(tmp_path.iterdir()) == [copy]


def test_an_unknown_form_is_refused(tiny_folder, tmp_path):
    with pytest.raises(ValueError, match="there is no form 'onnx'; expected openai, hf, gpt-2-simple, keras-nlp"):
        convert(tiny_folder, tmp_path / "made", "onnx")
    with pytest.raises(SystemExit, match="2"):
        main(["convert", str(tiny_folder), str(tmp_path / "made"), "--to", "onnx"])


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
def test_conversion_needs_memory_for_one_tensor_at_a_time(tmp_path):
    """160 MB of weights need at most 60 MB beyond the imports. The largest tensor has 8 MB."""
    hparams = HParams(n_vocab=300, n_ctx=64, n_embd=640, n_head=2, n_layer=8)
    arrays = (np.ones(shape, np.float32) for shape in hparams.shapes.values())
    (tmp_path / "big").mkdir()
    tensor_bundle.write_bundle(tmp_path / "big" / "model.ckpt", hparams.shapes, arrays)
    hparams.to_json(tmp_path / "big" / "hparams.json")
    script = (
        "import sys, numpy; from gpt2_tf.pretrained.convert import convert\n"
        "def peak(): return int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) // 1000\n"
        "before = peak(); convert('big', 'hf'); convert('hf', 'openai', 'openai'); print(peak() - before)\n"
        "assert 'tensorflow' not in sys.modules"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert 4 * hparams.n_params > 150e6 and int(ran.stdout) < 60
    assert checksums(tmp_path / "openai") == checksums(tmp_path / "big")


@pytest.mark.slow  # for the import of KerasNLP
def test_a_folder_in_kerasnlps_form_says_how_to_load_it(forms):
    for read in (load, describe):
        with pytest.raises((OSError, ValueError), match="is in KerasNLP's form; convert it first: gpt2-tf convert"):
            read(forms["keras-nlp"])


def test_a_file_metadata_json_of_another_program_does_not_make_a_folder_kerasnlps(tiny_folder, tmp_path):
    convert(tiny_folder, tmp_path / "hf", "hf")
    (tmp_path / "hf" / "metadata.json").write_text("{}")
    assert find_form(tmp_path / "hf") == "hf"
    load(tmp_path / "hf")


def test_the_step_of_a_downloaded_size_is_converted(tiny_folder, tmp_path, monkeypatch):
    """The name of a size stands for its folder in `models_dir`."""
    folder = tmp_path / "models" / "124M"
    shutil.copytree(tiny_folder, folder)
    load(tiny_folder)[0].save_checkpoint(folder, step=7)
    command = ["convert", "124M", tmp_path / "hf", "--to", "hf", "--step", "7", "--models-dir", tmp_path / "models"]
    assert main(list(map(str, command))) == 0


@pytest.mark.slow  # for the import of KerasNLP
def test_a_keras_nlp_folder_that_claims_too_many_weights_is_refused_before_they_are_made(forms, tmp_path):
    folder = Path(shutil.copytree(forms["keras-nlp"], tmp_path / "huge"))
    content = json.loads((folder / "config.json").read_text())
    for sizes, message in (
        ({"vocabulary_size": 2_000_000_000}, r"describes a model of 32,0.* weights, but"),
        ({"num_heads": 0}, "config.json: n_head is 0"),
    ):
        changed = content | {"config": content["config"] | sizes}
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=message):
            convert(folder, tmp_path / "new")
