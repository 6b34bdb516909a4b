"""Hugging Face's folders: the transformers library reads what we write, and we read what it writes.

Weights are equal to the last bit. Logits differ by at most 2e-5: they are about 3, and float32 sums in another order
differ in the last bits.
"""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from oracles.hub import hub
from oracles.transformers_models import (
    HPARAMS,
    assert_same_weights,
    edit_json,
    random_tokens,
    rewrite_weights,
    transformers_logits,
)

from gpt2_tf import GPT2, load
from gpt2_tf.pretrained.load import describe
from gpt2_tf.weights import huggingface, safetensors
from gpt2_tf.weights.lazy_tensor import LazyTensor

TEXT = "the then them\n\nnaïve  <|endoftext|> 12 👍\r\n\n x'll"


@pytest.fixture(scope="module")
def theirs(transformers):
    """A model of the transformers library. Noise is added to its weights, so that the context changes the logits."""
    import torch

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=260, n_positions=40, n_embd=48, n_layer=3, n_head=4, bos_token_id=259, eos_token_id=259
    )
    peer = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for weight in peer.parameters():
            weight.add_(torch.randn(weight.shape) / 10)
    return peer


def test_round_trip_is_exact(model, hf_folder, enc):
    again, encoder = load(hf_folder)
    assert again.hparams == HPARAMS
    assert_same_weights(model, again)
    assert encoder.encode(TEXT, "all") == enc.encode(TEXT, "all")
    assert {path.name for path in hf_folder.iterdir()} == {
        *("config.json", "model.safetensors"),
        *("merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json"),
    }


@pytest.mark.slow  # for the import of PyTorch
def test_transformers_loads_what_we_write(model, hf_folder, transformers):
    peer, info = transformers.GPT2LMHeadModel.from_pretrained(hf_folder, output_loading_info=True)
    assert {key: list(value) for key, value in info.items() if value} == {}
    assert peer.config.eos_token_id == 259
    np.testing.assert_allclose(model(random_tokens()), transformers_logits(peer.eval()), rtol=0, atol=2e-5)


def test_without_an_encoder_no_tokenizer_is_saved(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    with pytest.raises(FileNotFoundError, match=r"vocab\.json is missing"):
        load(tmp_path)
    assert_same_weights(model, GPT2.from_pretrained(tmp_path))


def test_a_failed_save_leaves_the_old_files(model, copy, enc):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}

    def arrays():
        yield from [np.ones(shape) for shape in HPARAMS.shapes.values()][:-1]
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        huggingface.save(copy, HPARAMS, arrays(), enc)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


@pytest.mark.slow  # for the import of PyTorch
@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("bare", [False, True], ids=["transformer.", "no prefix"])
def test_we_load_what_transformers_writes(theirs, tmp_path, shards, bare):
    peer = theirs.transformer if bare else theirs
    peer.save_pretrained(tmp_path, max_shard_size="50KB" if shards else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == shards
    model = GPT2.from_pretrained(str(tmp_path))
    assert model.hparams == HPARAMS
    np.testing.assert_allclose(model(random_tokens()), transformers_logits(theirs), rtol=0, atol=2e-5)


@pytest.mark.slow  # for the import of PyTorch
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_becomes_float32(theirs, transformers, tmp_path, dtype):
    import torch

    theirs.save_pretrained(tmp_path / "whole")
    peer = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "whole", dtype=getattr(torch, dtype))
    peer.save_pretrained(tmp_path)
    model = GPT2.from_pretrained(tmp_path)
    assert {variable.dtype for variable in model.weights} == {"float32"}
    np.testing.assert_allclose(model(random_tokens()), transformers_logits(peer.float()), rtol=0, atol=2e-5)


@pytest.mark.slow  # for the import of PyTorch
def test_a_pickle_is_refused_and_the_command_in_the_error_converts_it(theirs, hf_folder, tmp_path):
    import torch

    folder = tmp_path / "pickled"
    folder.mkdir()
    shutil.copy(hf_folder / "config.json", folder)
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors, and pickles .* are never read") as error:
        GPT2.from_pretrained(folder)
    assert "it has no tokenizer either: copy tokenizer.json, or vocab.json and merges.txt, of" in str(error.value)
    script = str(error.value).partition('python -c "')[2].removesuffix('"')
    done = tmp_path / "FOLDER"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, timeout=300)
    np.testing.assert_allclose(
        GPT2.from_pretrained(done)(random_tokens()), transformers_logits(theirs), rtol=0, atol=2e-5
    )


@pytest.mark.slow  # for the import of PyTorch
def test_the_command_for_a_pickle_keeps_the_tokenizer(theirs, copy, enc, tmp_path):
    import torch

    torch.save(theirs.state_dict(), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"To convert a pickle that you trust: python -c") as error:
        load(copy)
    assert "no tokenizer" not in str(error.value)
    script = str(error.value).partition('python -c "')[2].removesuffix('"')
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, timeout=300)
    model, encoder = load(tmp_path / "FOLDER")
    np.testing.assert_allclose(model(random_tokens()), transformers_logits(theirs), rtol=0, atol=2e-5)
    assert encoder.encode(TEXT) == enc.encode(TEXT)


def test_a_folder_without_weights_and_tokenizer_is_one_error(copy):
    for path in copy.iterdir():
        if path.name != "config.json":
            path.unlink()
    (copy / "pytorch_model.bin").touch()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors.*no tokenizer either: copy tokenizer\.json"):
        load(copy)


def test_an_output_layer_that_equals_the_embeddings_may_be_called_untied(model, copy):
    edit_json(copy / "config.json", tie_word_embeddings=False)
    rewrite_weights(copy, lambda tensors: tensors.update({"lm_head.weight": tensors["transformer.wte.weight"].copy()}))
    assert_same_weights(model, GPT2.from_pretrained(copy))
    rewrite_weights(copy, lambda tensors: tensors["lm_head.weight"].__setitem__((0, 0), 7))
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from wte\.weight"):
        GPT2.from_pretrained(copy)


def test_a_tied_output_layer_and_causal_masks_are_accepted(model, copy):
    def change(tensors):
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()
        tensors["transformer.h.0.attn.bias"] = np.tri(40, dtype=bool)[None, None]
        tensors["transformer.h.1.attn.masked_bias"] = np.array(-1e4, np.float32)

    rewrite_weights(copy, change)
    assert_same_weights(model, GPT2.from_pretrained(copy))


def test_an_output_layer_unlike_the_embeddings_is_refused(copy):
    def change(tensors):
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()
        tensors["lm_head.weight"][-1, -1] += 1

    rewrite_weights(copy, change)
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from wte\.weight"):
        GPT2.from_pretrained(copy)


def test_all_differences_are_named_in_one_error(copy):
    def change(tensors):
        tensors["transformer.wpe.weight"] = tensors["transformer.wpe.weight"][1:]
        tensors["transformer.h.0.ln_1.bias"] = tensors["transformer.h.0.ln_1.bias"].astype(np.int32)
        tensors["score.weight"] = tensors.pop("transformer.ln_f.weight")

    rewrite_weights(copy, change)
    with pytest.raises(ValueError) as error:
        GPT2.from_pretrained(copy)
    differences = str(error.value).partition("don't fit config.json: ")[2].split("; ")
    assert differences == [
        "h.0.ln_1.bias is int32 [48], expected float32 or float16 or bfloat16 [48]",
        "ln_f.weight is missing",
        "score.weight isn't of this model",
        "wpe.weight is float32 [39, 48], expected float32 or float16 or bfloat16 [40, 48]",
    ]


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("scale_attn_by_inverse_layer_idx", True, "is true, but only false is supported"),
        ("scale_attn_weights", False, "is false, but only true is supported"),
        ("activation_function", "relu", 'is "relu", but only "gelu_new" is supported'),
        ("layer_norm_epsilon", 1e-6, "is 1e-06, but only 1e-05 is supported"),
        ("tie_word_embeddings", False, "is false in config.json"),
        ("add_cross_attention", True, "is true, but"),
        ("n_inner", 100, "is 100, but only 192 is supported"),
        ("model_type", "gpt_neo", 'is "gpt_neo", but only "gpt2" is supported'),
        ("quantization_config", {"bits": 4}, 'is {"bits": 4}, but only null is supported'),
        ("n_head", 5, "can't be divided"),
        ("n_layer", 10**9, ""),
        ("n_embd", None, ""),
    ],
)
def test_a_setting_that_changes_the_output_is_refused_by_name(copy, setting, value, message):
    edit_json(copy / "config.json", **{setting: value})
    with pytest.raises(ValueError) as error:
        GPT2.from_pretrained(copy)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert setting in str(error.value) or setting == "n_layer"


def test_settings_without_effect_are_accepted(model, copy):
    edit_json(copy / "config.json", n_inner=192, activation_function="gelu_pytorch_tanh", reorder_and_upcast_attn=True)
    assert_same_weights(model, GPT2.from_pretrained(copy))


@pytest.mark.slow  # for the import of PyTorch
def test_settings_that_are_ignored_change_nothing_in_transformers(hf_folder, model, transformers):
    for settings in ({"reorder_and_upcast_attn": True}, {"activation_function": "gelu_pytorch_tanh"}):
        peer = transformers.GPT2LMHeadModel.from_pretrained(hf_folder, attn_implementation="eager", **settings).eval()
        np.testing.assert_allclose(model(random_tokens()), transformers_logits(peer), rtol=0, atol=2e-5)


@pytest.mark.parametrize("cut", [-1, 1, -50_000])
def test_a_file_of_another_size_is_refused(copy, cut):
    path = copy / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes((content + b"\0")[: len(content) + cut])
    with pytest.raises(ValueError, match="is not a complete safetensors file: "):
        GPT2.from_pretrained(copy)


def test_shards_are_read_and_a_missing_shard_is_named(copy):
    (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    index = copy / "model.safetensors.index.json"
    names = safetensors.read_tensors(copy / "model-00001-of-00002.safetensors")
    files = dict.fromkeys(names, "model-00001-of-00002.safetensors")
    index.write_text(json.dumps({"weight_map": files}))
    GPT2.from_pretrained(copy)
    index.write_text(json.dumps({"weight_map": files | {"x": "model-00002-of-00002.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-00002\.safetensors is missing"):
        GPT2.from_pretrained(copy)
    index.write_text(json.dumps({"weight_map": files | {"x": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(ValueError, match="lacks the tensor x"):
        GPT2.from_pretrained(copy)
    index.write_text(json.dumps({"weight_map": files | {"x": "../secret"}}))
    with pytest.raises(ValueError, match="weight_map must map the names of tensors to names of files"):
        GPT2.from_pretrained(copy)


def python(script: str, url: str, home: Path, *, status: int = 0) -> subprocess.CompletedProcess:
    """Run a script in a new process, because the library reads the hub's address when it is imported."""
    env = os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(home)}
    ran = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
    assert ran.returncode == status, ran.stderr
    return ran


@pytest.fixture(scope="module")
def has_hub():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("huggingface_hub", reason="huggingface_hub is in the extra [hf]")


@pytest.mark.slow
def test_a_model_of_the_hub_is_downloaded_once_and_without_pickles(model, hf_folder, has_hub, enc, tmp_path):
    more = shutil.copytree(hf_folder, tmp_path / "more")
    (more / "pytorch_model.bin").write_bytes(b"a pickle")
    script = (
        "from gpt2_tf import GPT2, load; import numpy as np\n"
        "model = GPT2.from_pretrained('gpt2'); other, enc = load('hf:user/tiny')\n"
        "for one, two in zip(model.weights, other.weights): np.testing.assert_array_equal(one, two)\n"
        f"print(float(model.wte[0, 0]), enc.encode({TEXT!r}))"
    )
    with hub({"gpt2": more, "user/tiny": hf_folder}) as (url, requested):
        ran = python(script, url, tmp_path / "home")
        assert ran.stdout == f"{float(model.wte[0, 0])} {enc.encode(TEXT)}\n"
        assert not [path for path in requested if "pytorch_model.bin" in path]
        assert [path for path in requested if path.endswith("model.safetensors")]
        requested.clear()
        python(script, url, tmp_path / "home")  # all files are in the cache
        assert not [path for path in requested if "/resolve/" in path]
    ran = python("import os; os.environ['HF_HUB_OFFLINE'] = '1'\n" + script, url, tmp_path / "home")
    assert ran.stdout == f"{float(model.wte[0, 0])} {enc.encode(TEXT)}\n"


@pytest.mark.slow
def test_encode_and_info_download_no_weights(hf_folder, has_hub, enc, tmp_path):
    script = "from gpt2_tf.cli import main; main(['encode', '--model', 'hf:user/tiny', 'the then'])"
    with hub({"user/tiny": hf_folder}) as (url, requested):
        ran = python(script, url, tmp_path / "home")
        assert ran.stdout.split() == [str(i) for i in enc.encode("the then")]
        ran = python(script.replace("'encode'", "'info'").replace(", 'the then'", ""), url, tmp_path / "home")
        assert "no model.safetensors in" in ran.stdout and "n_vocab     260" in ran.stdout
        assert not [path for path in requested if "safetensors" in path]


@pytest.mark.slow
def test_a_model_that_the_hub_lacks_is_an_error_of_one_line(hf_folder, has_hub, tmp_path):
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    shutil.copy(hf_folder / "config.json", pickled)
    (pickled / "pytorch_model.bin").write_bytes(b"")
    command = "import sys; from gpt2_tf.cli import main; sys.exit(main(['generate', 'x', '--model', {!r}]))"
    with hub({"user/pickled": pickled}) as (url, _):
        for name, message in (
            ("hf:user/none", f"{url} has no model 'user/none', or shows it only to users who have logged in"),
            ("hf:user/pickled", "'user/pickled' has no model.safetensors, and pickles"),
        ):
            line = python(command.format(name), url, tmp_path / "home", status=1).stderr.splitlines()[-1]
            assert line.startswith("gpt2-tf: error: ") and message in line
    line = python(command.format("hf:user/none"), url, tmp_path / "home", status=1).stderr.splitlines()[-1]
    assert line.startswith("gpt2-tf: error: 'user/none' can't be downloaded from the hub: ")


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImportError, match=r"pip install 'gpt2-tf\[hf\]'"):
        GPT2.from_pretrained("gpt2")


@pytest.mark.parametrize("name", ["a/b/c", "../x", "", "/no/pe", "x y"])
def test_text_that_is_neither_a_folder_nor_a_name_is_refused(name, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")  # so that no folder of these names is there
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        GPT2.from_pretrained(name)


def test_describe_a_hugging_face_folder(hf_folder, model):
    described = describe(hf_folder)
    assert (described["n_vocab"], described["n_layer"]) == ("260", "3")
    assert described["weights"] == f"40 tensors, {4 * HPARAMS.n_params:,} bytes in model.safetensors"
    assert "vocabulary" not in described


def test_tensors_are_read_one_at_a_time(hf_folder, monkeypatch):
    """Each tensor is assigned to its variable before the next is read, so memory holds one tensor at most."""
    import keras

    events = []
    read, assign = LazyTensor.__array__, keras.Variable.assign

    def reading(tensor, *arguments, **named):
        events.append("read")
        return read(tensor, *arguments, **named)

    monkeypatch.setattr(LazyTensor, "__array__", reading)
    monkeypatch.setattr(keras.Variable, "assign", lambda v, value: (events.append("assign"), assign(v, value)))
    GPT2.from_pretrained(hf_folder)
    assert events == ["read", "assign"] * 40


def test_a_run_resumes_with_a_copy_of_the_model_but_not_with_a_changed_one(hf_folder, copy, tmp_path):
    """A copy of the folder is the same model. With one weight changed, the run is refused."""
    from gpt2_tf.cli import batch

    settings = {"seed": 1}
    with batch.open_journal(tmp_path / "out", ["x"], hf_folder, settings) as record:
        record.add(0, {"text": "x"})
    with batch.open_journal(tmp_path / "out", ["x"], copy, settings) as record:
        assert record.results == {0: {"text": "x"}}

    def change(tensors):
        tensors["transformer.wte.weight"][-1, -1] += 1

    rewrite_weights(copy, change)
    with pytest.raises(ValueError, match="model"):
        batch.open_journal(tmp_path / "out", ["x"], copy, settings)
