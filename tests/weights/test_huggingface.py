"""Hugging Face's folders: transformers, safetensors and tokenizers read what we write and write what we read.

2e-5 on logits: float32 in another order, on logits of about 3. Weights are equal to the last bit.
"""

import dataclasses
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
from oracles.random_model import random_model

from gpt2_tf import GPT2, HParams, load
from gpt2_tf.pretrained.load import describe
from gpt2_tf.weights import hf_tokenizer, huggingface, peft, safetensors
from gpt2_tf.weights.lazy_tensor import LazyTensor

HPARAMS = HParams(n_vocab=260, n_ctx=40, n_embd=48, n_head=4, n_layer=3)
TEXT = "the then them\n\nnaïve  <|endoftext|> 12 👍\r\n\n x'll"


@pytest.fixture(scope="module")
def model():
    return random_model(HPARAMS, stdev=0.1)


@pytest.fixture(scope="module")
def saved(model, enc, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("huggingface") / "new" / "model"
    model.save_pretrained(place, enc)
    return place


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch", reason="PyTorch is in the extra [peers]")
    return pytest.importorskip("transformers", reason="transformers is in the extra [peers]")


@pytest.fixture(scope="module")
def theirs(transformers):
    """transformers' own model, as it draws its weights, but for some that make the context matter."""
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


def tokens(seed=1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, HPARAMS.n_vocab, [2, HPARAMS.n_ctx])


def logits(peer) -> np.ndarray:
    import torch

    with torch.no_grad():
        return peer(torch.tensor(tokens())).logits.numpy()


def assert_equal(one: GPT2, other: GPT2) -> None:
    for old, new in zip(one.weights, other.weights, strict=True):
        np.testing.assert_array_equal(old, new)


def edit(path: Path, **changed) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def rewrite(place: Path, change) -> None:
    """Has the library save the weights again, after a change of their dict."""
    library = pytest.importorskip("safetensors.numpy", reason="safetensors comes with transformers, in [peers]")
    tensors = library.load_file(place / "model.safetensors")
    change(tensors)
    library.save_file(tensors, place / "model.safetensors", {"format": "pt"})


# what we write


def test_round_trip_is_exact(model, saved, enc):
    again, encoder = load(saved)
    assert again.hparams == HPARAMS
    assert_equal(model, again)
    assert encoder.encode(TEXT, "all") == enc.encode(TEXT, "all")
    assert {path.name for path in saved.iterdir()} == {
        *("config.json", "model.safetensors"),
        *("merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json"),
    }


@pytest.mark.slow  # for the import of PyTorch
def test_transformers_loads_what_we_write(model, saved, transformers):
    peer, info = transformers.GPT2LMHeadModel.from_pretrained(saved, output_loading_info=True)
    assert {key: list(value) for key, value in info.items() if value} == {}
    assert peer.config.eos_token_id == 259
    np.testing.assert_allclose(model(tokens()), logits(peer.eval()), rtol=0, atol=2e-5)


@pytest.mark.slow  # for the import of PyTorch
@pytest.mark.parametrize("without", [[], ["tokenizer.json"], ["vocab.json", "merges.txt"]], ids=["all", "two", "one"])
def test_their_tokenizer_has_our_ids(copy, enc, transformers, without):
    for name in without:
        (copy / name).unlink()
    tokenizer = transformers.AutoTokenizer.from_pretrained(copy)
    assert tokenizer(TEXT)["input_ids"] == enc.encode(TEXT, "all")
    assert tokenizer.decode(enc.encode(TEXT, "all")) == TEXT
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, len(tokenizer)) == (259, 259, 260)
    assert hf_tokenizer.read_encoder(copy, 260).encode(TEXT) == enc.encode(TEXT)


def test_the_vocabulary_is_openais_to_the_byte(shared, tmp_path):
    """`encoder.json` and `vocab.bpe` through `tokenizer.json`, and back."""
    from encoder import Encoder

    official = shared / "data" / "official-117M"
    enc = Encoder.from_folder(official)
    for name, content in hf_tokenizer.tokenizer_files(enc, n_ctx=40).items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    for name in ("tokenizer.json", "vocab.json"):
        hf_tokenizer.read_encoder(tmp_path, 50257).save(tmp_path / name.partition(".")[0])
        (tmp_path / "tokenizer.json").unlink(missing_ok=True)
        for file in ("encoder.json", "vocab.bpe"):
            ours = (tmp_path / name.partition(".")[0] / file).read_bytes()
            assert ours == (official / file).read_bytes()


def test_without_an_encoder_there_is_no_tokenizer(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    with pytest.raises(FileNotFoundError, match=r"vocab\.json is missing"):
        load(tmp_path)
    assert_equal(model, GPT2.from_pretrained(tmp_path))


def test_a_failed_save_leaves_the_old_files(model, copy, enc):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}

    def arrays():
        yield from [np.ones(shape) for shape in HPARAMS.shapes.values()][:-1]
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        huggingface.save(copy, HPARAMS, arrays(), enc)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


# what we read


@pytest.mark.slow  # for the import of PyTorch
@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("bare", [False, True], ids=["transformer.", "no prefix"])
def test_we_load_what_transformers_writes(theirs, tmp_path, shards, bare):
    peer = theirs.transformer if bare else theirs
    peer.save_pretrained(tmp_path, max_shard_size="50KB" if shards else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == shards
    model = GPT2.from_pretrained(str(tmp_path))
    assert model.hparams == HPARAMS
    np.testing.assert_allclose(model(tokens()), logits(theirs), rtol=0, atol=2e-5)


@pytest.mark.slow  # for the import of PyTorch
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_becomes_float32(theirs, transformers, tmp_path, dtype):
    import torch

    theirs.save_pretrained(tmp_path / "whole")
    peer = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "whole", dtype=getattr(torch, dtype))
    peer.save_pretrained(tmp_path)
    model = GPT2.from_pretrained(tmp_path)
    assert {variable.dtype for variable in model.weights} == {"float32"}
    np.testing.assert_allclose(model(tokens()), logits(peer.float()), rtol=0, atol=2e-5)


@pytest.mark.slow  # for the import of PyTorch
def test_a_pickle_is_refused_and_the_way_to_convert_it_works(theirs, saved, tmp_path):
    import torch

    place = tmp_path / "pickled"
    place.mkdir()
    shutil.copy(saved / "config.json", place)
    torch.save(theirs.state_dict(), place / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors, and pickles .* are never read") as error:
        GPT2.from_pretrained(place)
    script = str(error.value).partition('python -c "')[2].removesuffix('"')
    done = tmp_path / "FOLDER"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, timeout=300)
    np.testing.assert_allclose(GPT2.from_pretrained(done)(tokens()), logits(theirs), rtol=0, atol=2e-5)


def test_the_head_and_the_masks_may_be_there(model, copy):
    def change(tensors):
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()
        tensors["transformer.h.0.attn.bias"] = np.tri(40, dtype=bool)[None, None]
        tensors["transformer.h.1.attn.masked_bias"] = np.array(-1e4, np.float32)

    rewrite(copy, change)
    assert_equal(model, GPT2.from_pretrained(copy))


def test_another_head_is_refused(copy):
    def change(tensors):
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()
        tensors["lm_head.weight"][-1, -1] += 1

    rewrite(copy, change)
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from wte\.weight"):
        GPT2.from_pretrained(copy)


def test_every_difference_is_said_at_once(copy):
    def change(tensors):
        tensors["transformer.wpe.weight"] = tensors["transformer.wpe.weight"][1:]
        tensors["transformer.h.0.ln_1.bias"] = tensors["transformer.h.0.ln_1.bias"].astype(np.int32)
        tensors["score.weight"] = tensors.pop("transformer.ln_f.weight")

    rewrite(copy, change)
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
    ("setting", "value", "said"),
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
def test_a_setting_that_changes_the_numbers_is_named(copy, setting, value, said):
    edit(copy / "config.json", **{setting: value})
    with pytest.raises(ValueError) as error:
        GPT2.from_pretrained(copy)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert setting in str(error.value) or setting == "n_layer"


def test_settings_that_change_nothing(model, copy):
    edit(copy / "config.json", n_inner=192, activation_function="gelu_pytorch_tanh", reorder_and_upcast_attn=True)
    assert_equal(model, GPT2.from_pretrained(copy))


@pytest.mark.slow  # for the import of PyTorch
def test_the_settings_left_alone_change_nothing_in_transformers(saved, model, transformers):
    for settings in ({"reorder_and_upcast_attn": True}, {"activation_function": "gelu_pytorch_tanh"}):
        peer = transformers.GPT2LMHeadModel.from_pretrained(saved, attn_implementation="eager", **settings).eval()
        np.testing.assert_allclose(model(tokens()), logits(peer), rtol=0, atol=2e-5)


@pytest.mark.parametrize("cut", [-1, 1, -50_000])
def test_a_file_of_another_size(copy, cut):
    path = copy / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes((content + b"\0")[: len(content) + cut])
    with pytest.raises(ValueError, match="is not a complete safetensors file: "):
        GPT2.from_pretrained(copy)


def test_a_shard_that_is_missing_and_one_that_lies_elsewhere(copy):
    (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    index = copy / "model.safetensors.index.json"
    names = safetensors.read_tensors(copy / "model-00001-of-00002.safetensors")
    places = dict.fromkeys(names, "model-00001-of-00002.safetensors")
    index.write_text(json.dumps({"weight_map": places}))
    GPT2.from_pretrained(copy)
    index.write_text(json.dumps({"weight_map": places | {"x": "model-00002-of-00002.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-00002\.safetensors is missing"):
        GPT2.from_pretrained(copy)
    index.write_text(json.dumps({"weight_map": places | {"x": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(ValueError, match="lacks the tensor x"):
        GPT2.from_pretrained(copy)
    index.write_text(json.dumps({"weight_map": places | {"x": "../secret"}}))
    with pytest.raises(ValueError, match="weight_map must map the names of tensors to names of files"):
        GPT2.from_pretrained(copy)


# the tokenizer


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"normalizer": {"type": "NFC"}}, 'normalizer is {"type": "NFC"}'),
        ({"pre_tokenizer": None}, "has no pre_tokenizer, but only ByteLevel is supported"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, 'pre_tokenizer.type is "Whitespace"'),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "add_prefix_space is true"),
        ({"model": {"type": "WordPiece"}}, 'model.type is "WordPiece"'),
        ({"model": {"type": "BPE", "vocab": 3}}, "is not a file of the tokenizers library"),
        ({"added_tokens": [{"content": "zz", "id": 260}]}, "has 261 tokens, but config.json says vocab_size 260"),
        ({"added_tokens": [{"content": "<|endoftext|>", "id": 258}]}, "is not a tokenizer of GPT-2's kind"),
    ],
)
def test_a_tokenizer_with_other_ids_is_refused(copy, changed, said):
    edit(copy / "tokenizer.json", **changed)
    with pytest.raises(ValueError) as error:
        load(copy)
    assert said in str(error.value)


def test_a_prefix_space_in_the_tokenizers_config(copy):
    edit(copy / "tokenizer_config.json", add_prefix_space=True)
    with pytest.raises(ValueError, match="add_prefix_space is true, but only false is supported"):
        load(copy)


def test_added_tokens_and_a_vocabulary_that_was_rounded_up(copy, enc):
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    more = [{"content": "[PAD]", "id": 260}, {"content": "<s>", "id": 261}]
    edit(copy / "tokenizer.json", added_tokens=tokenizer["added_tokens"] + more)
    ours = hf_tokenizer.read_encoder(copy, 264)
    assert ours.n_vocab == 264
    assert ours.special_tokens == {"<|endoftext|>": 259, "[PAD]": 260, "<s>": 261} | {
        f"<|unused{i}|>": i for i in (262, 263)
    }
    assert ours.encode("[PAD]the<s>") == enc.encode("[PAD]the<s>")
    assert ours.encode("[PAD]the<s>", "all") == [260, *enc.encode("the"), 261]


@pytest.mark.slow  # for the import of transformers
def test_tokens_added_in_transformers(copy, transformers):
    tokenizer = transformers.AutoTokenizer.from_pretrained(copy)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(copy)
    ours = hf_tokenizer.read_encoder(copy, 261)
    assert ours.encode("the[PAD]", "all") == tokenizer("the[PAD]")["input_ids"]


# the hub


@pytest.fixture(scope="module")
def adapted():
    return random_model(HPARAMS, stdev=0.1, lora_rank=4)


@pytest.fixture
def adapters(adapted, tmp_path) -> Path:
    adapted.save_adapters(tmp_path / "adapters")
    return tmp_path / "adapters"


def test_adapters_come_back_exactly(adapted, adapters, tmp_path):
    """Beside the weights that they were trained on, and apart from them merged, for any reader."""
    assert {path.name for path in adapters.iterdir()} == set(peft.FILES)
    again = GPT2(HPARAMS, lora_rank=4)
    for one, other in zip(again.weights, adapted.weights, strict=True):
        if "lora" not in other.name:
            one.assign(other)
    again.load_adapters(adapters)
    assert_equal(again, adapted)
    adapted.save_pretrained(tmp_path / "merged")
    merged = GPT2.from_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(merged(tokens()), adapted(tokens()), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "rank, changed, said",
    [
        (8, {}, "r is 4, but only 8 is supported"),
        (4, {"init_lora_weights": "pissa"}, 'init_lora_weights is "pissa", but only true is supported'),
        (4, {"use_rslora": True}, "use_rslora is true, but only false is supported"),
        (4, {"alpha_pattern": {"c_attn": 2}}, "alpha_pattern is"),
        (4, {"peft_type": "LOHA"}, 'peft_type is "LOHA", but only'),
        (4, {"r": 4, "n_layer": 2}, r"c_attn and c_proj at rank 4: 6 tensors differ, such as base_model\..*\.h\.2\."),
        (4, {"n_embd": 24}, "18 tensors differ"),
    ],
    ids=str,
)
def test_other_adapters_are_refused(adapted, adapters, rank, changed, said):
    sizes = {name: changed.pop(name) for name in ("n_layer", "n_embd") if name in changed}
    model = GPT2(dataclasses.replace(HPARAMS, **sizes), lora_rank=rank)
    edit(adapters / "adapter_config.json", **changed)
    before = [variable.numpy() for variable in model.weights]
    with pytest.raises(ValueError, match=said):
        model.load_adapters(adapters)
    for variable, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(variable, value)


@pytest.mark.slow  # for the import of PyTorch
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT 0.21 with transformers 5
def test_peft_loads_our_adapters_and_we_load_peft_s(adapted, adapters, transformers, tmp_path):
    """Theirs are scaled, by alpha / r."""
    import torch

    peft = pytest.importorskip("peft", reason="PEFT comes with the extra [peers]")
    base = GPT2(HPARAMS)
    for name, variable in adapted.named_weights().items():
        base.named_weights()[name].assign(variable)
    base.save_pretrained(tmp_path / "base")
    peer = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    ours = peft.PeftModel.from_pretrained(peer, str(adapters)).eval()
    np.testing.assert_allclose(adapted(tokens()), logits(ours), rtol=0, atol=2e-5)
    peer = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, lora_alpha=12, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    theirs = peft.get_peft_model(peer, config).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "lora_" in name:
                weight.add_(torch.randn(weight.shape) / 10)
    theirs.save_pretrained(tmp_path / "theirs")
    model = GPT2(HPARAMS, lora_rank=2)
    for name, variable in adapted.named_weights().items():
        model.named_weights()[name].assign(variable)
    model.load_adapters(tmp_path / "theirs")
    np.testing.assert_allclose(model(tokens()), logits(theirs), rtol=0, atol=2e-5)
    assert np.abs(model(tokens()) - base(tokens())).max() > 0.1


def python(script: str, url: str, home: Path, *, status: int = 0) -> subprocess.CompletedProcess:
    """Runs a script in a new process, as the library reads where the hub is when it is imported."""
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
def test_the_hub(model, saved, has_hub, enc, tmp_path):
    more = shutil.copytree(saved, tmp_path / "more")
    (more / "pytorch_model.bin").write_bytes(b"no safe thing")
    script = (
        "from gpt2_tf import GPT2, load; import numpy as np\n"
        "model = GPT2.from_pretrained('gpt2'); other, enc = load('hf:user/tiny')\n"
        "for one, two in zip(model.weights, other.weights): np.testing.assert_array_equal(one, two)\n"
        f"print(float(model.wte[0, 0]), enc.encode({TEXT!r}))"
    )
    with hub({"gpt2": more, "user/tiny": saved}) as (url, asked):
        ran = python(script, url, tmp_path / "home")
        assert ran.stdout == f"{float(model.wte[0, 0])} {enc.encode(TEXT)}\n"
        assert not [path for path in asked if "pytorch_model.bin" in path]
        assert [path for path in asked if path.endswith("model.safetensors")]
        asked.clear()
        python(script, url, tmp_path / "home")  # all is there
        assert not [path for path in asked if "/resolve/" in path]
    ran = python("import os; os.environ['HF_HUB_OFFLINE'] = '1'\n" + script, url, tmp_path / "home")
    assert ran.stdout == f"{float(model.wte[0, 0])} {enc.encode(TEXT)}\n"


@pytest.mark.slow
def test_for_ids_no_weights_are_fetched(saved, has_hub, enc, tmp_path):
    script = "from gpt2_tf.cli import main; main(['encode', '--model', 'hf:user/tiny', 'the then'])"
    with hub({"user/tiny": saved}) as (url, asked):
        ran = python(script, url, tmp_path / "home")
        assert ran.stdout.split() == [str(i) for i in enc.encode("the then")]
        ran = python(script.replace("'encode'", "'info'").replace(", 'the then'", ""), url, tmp_path / "home")
        assert "no model.safetensors in" in ran.stdout and "n_vocab     260" in ran.stdout
        assert not [path for path in asked if "safetensors" in path]


@pytest.mark.slow
def test_what_the_hub_lacks_is_one_line(saved, has_hub, tmp_path):
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    shutil.copy(saved / "config.json", pickled)
    (pickled / "pytorch_model.bin").write_bytes(b"")
    command = "import sys; from gpt2_tf.cli import main; sys.exit(main(['generate', 'x', '--model', {!r}]))"
    with hub({"user/pickled": pickled}) as (url, _):
        for name, said in (
            ("hf:user/none", f"{url} has no model 'user/none', or shows it only to users who have logged in"),
            ("hf:user/pickled", "'user/pickled' has no model.safetensors, and pickles"),
        ):
            line = python(command.format(name), url, tmp_path / "home", status=1).stderr.splitlines()[-1]
            assert line.startswith("gpt2-tf: error: ") and said in line
    line = python(command.format("hf:user/none"), url, tmp_path / "home", status=1).stderr.splitlines()[-1]
    assert line.startswith("gpt2-tf: error: 'user/none' can't be downloaded from the hub: ")


def test_without_the_extra(monkeypatch, tmp_path):
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


def test_describe(saved, model):
    described = describe(saved)
    assert (described["n_vocab"], described["n_layer"]) == ("260", "3")
    assert described["weights"] == f"40 tensors, {4 * HPARAMS.n_params:,} bytes in model.safetensors"
    assert "vocabulary" not in described


# safetensors


def test_the_library_reads_what_we_write(saved, model):
    library = pytest.importorskip("safetensors", reason="safetensors comes with transformers, in [peers]")
    with library.safe_open(saved / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        ours = safetensors.read_tensors(saved / "model.safetensors")
        assert set(file.keys()) == set(ours)
        for name in ours:
            np.testing.assert_array_equal(file.get_tensor(name), ours[name])


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        b'{"a": {}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}',
        b'{"a": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}',
        b"[" * 10_000,
    ],
)
def test_a_header_that_lies(tmp_path, header):
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ValueError, match=r"model\.safetensors is not a complete safetensors file") as error:
        safetensors.read_tensors(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"12", b"\xff" * 8, b"<html>404</html>"])
def test_what_is_no_safetensors_file(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        safetensors.read_tensors(path)


def test_tensors_come_one_at_a_time(saved, monkeypatch):
    """Each is in its variable before the next is read."""
    import keras

    events = []
    read, assign = LazyTensor.__array__, keras.Variable.assign

    def reading(tensor, *arguments, **named):
        events.append("read")
        return read(tensor, *arguments, **named)

    monkeypatch.setattr(LazyTensor, "__array__", reading)
    monkeypatch.setattr(keras.Variable, "assign", lambda v, value: (events.append("assign"), assign(v, value)))
    GPT2.from_pretrained(saved)
    assert events == ["read", "assign"] * 40


def test_a_long_runs_record_knows_the_model_by_all_its_files(saved, copy, tmp_path):
    """Copied elsewhere it is the same model; with one weight changed it is another, whose run would be another."""
    from gpt2_tf.cli import batch

    settings = {"seed": 1}
    with batch.open_journal(tmp_path / "out", ["x"], saved, settings) as record:
        record.add(0, {"text": "x"})
    with batch.open_journal(tmp_path / "out", ["x"], copy, settings) as record:
        assert record.results == {0: {"text": "x"}}

    def change(tensors):
        tensors["transformer.wte.weight"][-1, -1] += 1

    rewrite(copy, change)
    with pytest.raises(ValueError, match="model"):
        batch.open_journal(tmp_path / "out", ["x"], copy, settings)
