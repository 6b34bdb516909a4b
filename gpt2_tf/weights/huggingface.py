"""Hugging Face's folders, `config.json`, `model.safetensors` and a tokenizer, <-> hyperparameters, weights, encoder;
and the folders of their PEFT, of low-rank adapters.

It knows names and shapes, not the model, so that `model.py` may import it. A folder is read with nothing but NumPy;
one that is named as on the hub is fetched with the extra `[hf]`.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from encoder.bpe import BYTES, END_OF_TEXT, VERSION, Encoder
from gpt2_tf.hparams import HParams, json_object
from gpt2_tf.weights import safetensors

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
VOCABULARY = ("vocab.json", "merges.txt")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json")
SIZES = {"n_vocab": "vocab_size", "n_ctx": "n_positions", "n_embd": "n_embd", "n_head": "n_head", "n_layer": "n_layer"}
# What changes the numbers -> the values with which they are OpenAI's; the first is what a missing one means.
# (`reorder_and_upcast_attn` is a matter of rounding, and the dropouts are of training.)
SETTINGS = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
    "auto_map": (None,),
}
TOKENIZER_SETTINGS = {
    "normalizer": (None,),
    "pre_tokenizer.type": ("ByteLevel",),
    "pre_tokenizer.add_prefix_space": (False,),
    "pre_tokenizer.use_regex": (True,),
    "model.type": ("BPE",),
    "model.dropout": (None, 0),
    "model.continuing_subword_prefix": (None, ""),
    "model.end_of_word_suffix": (None, ""),
    "model.ignore_merges": (False,),
}
KINDS = {"g": "weight", "b": "bias", "w": "weight", "wte": "wte.weight", "wpe": "wpe.weight"}
KINDS |= {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors")
# Of adapters, what changes the numbers and no tensor's name or shape.
ADAPTER_SETTINGS = {"peft_type": ("LORA",), "use_rslora": (False,), "alpha_pattern": ({},)}
ADAPTER_SETTINGS |= {"init_lora_weights": (True, False, "gaussian")}  # others change the weights beside which they are
HEAD = "lm_head.weight"
BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # the mask, which older files hold


def find(model: str | os.PathLike, revision: str | None = None) -> Path:
    """The folder of a model: itself, or where the hub's files of that name are. Raises as `fetch`."""
    return Path(model) if os.path.isdir(model) else fetch(str(model), revision)


def fetch(model: str, revision: str | None = None, weights: bool = True) -> Path:
    """The folder where the hub's library keeps a model's files, which it fetches where they are missing or older.

    Args:
        model: its name on the hub, as "gpt2" or "user/name".
        revision: the hub's branch, tag or commit.
        weights: False leaves them out, for the encoder alone.

    Raises:
        FileNotFoundError: neither a folder nor a name that the hub has, or a model without safetensors.
        ImportError: the extra `[hf]` is missing.
        OSError: the download failed.
    """
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", model, re.ASCII):
        raise FileNotFoundError(f"there is no folder {model!r}, nor can a model of the Hugging Face hub have that name")
    try:
        import huggingface_hub
        from huggingface_hub.errors import RepositoryNotFoundError
    except ImportError:
        raise ImportError(
            f"{model!r} is no folder, and a model of the Hugging Face hub needs the extra: pip install 'gpt2-tf[hf]'"
        ) from None
    patterns = ["config.json", *TOKENIZER, *([*WEIGHTS, "model-*.safetensors"] if weights else [])]
    try:
        folder = huggingface_hub.snapshot_download(model, revision=revision, allow_patterns=patterns)
    except RepositoryNotFoundError:
        raise FileNotFoundError(
            f"{huggingface_hub.constants.ENDPOINT} has no model {model!r}, or shows it to those alone who have logged "
            "in (`hf auth login`); a folder of that name isn't here either"
        ) from None
    except Exception as error:  # by its version, of requests, httpx or itself
        raise OSError(f"{model!r} can't be fetched from the hub: {' '.join(str(error).split())}") from error
    if weights and not any(Path(folder, name).exists() for name in WEIGHTS):
        raise _no_weights(model)
    return Path(folder)


def is_folder(folder: str | os.PathLike) -> bool:
    """Whether a folder is in Hugging Face's form, and not in OpenAI's."""
    return Path(folder, "config.json").exists() and not Path(folder, "hparams.json").exists()


def hparams(folder: str | os.PathLike) -> HParams:
    """What `config.json` says, without dropout, which is a matter of training.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it isn't of a GPT-2 whose arithmetic is OpenAI's; all settings in the way are named.
    """
    path = Path(folder, "config.json")
    config = _object(path)
    if missing := [name for name in SIZES.values() if name not in config]:
        raise ValueError(f"{path} lacks {', '.join(missing)}, which the config.json of a GPT-2 has")
    try:
        hparams = HParams(**{ours: config[theirs] for ours, theirs in SIZES.items()})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    _check(path, config, {**SETTINGS, "n_inner": (4 * hparams.n_embd,)})
    return hparams


def tensors(folder: str | os.PathLike, hparams: HParams) -> dict[str, safetensors.Stored]:
    """The weights by OpenAI's names, none of them read yet; `np.asarray` reads one, as float32 of OpenAI's shape.

    Raises:
        FileNotFoundError: no safetensors, or one of several isn't there.
        ValueError: a file is damaged, or what they hold isn't `hparams`' (all differences are named), or the head is
            another than the embedding.
    """
    stored = {name.removeprefix("transformer."): tensor for name, tensor in _stored(Path(folder)).items()}
    stored = {name: tensor for name, tensor in stored.items() if not BUFFERS.fullmatch(name)}
    head = stored.pop(HEAD, None)
    found = sum(int(np.prod(tensor.shape)) for tensor in stored.values())
    if hparams.n_params > 10 * found:  # it might not fit in memory, not even its names
        raise ValueError(f"{folder}: config.json describes {hparams.n_params:,} weights, but there are {found:,}")
    differences = []
    taken = {}
    for name, shape in hparams.shapes.items():
        tensor = stored.pop(theirs := _theirs(name), None)
        expected = shape[-2:]  # Hugging Face has no leading 1
        if tensor is None:
            differences.append(f"{theirs} is missing")
        elif tensor.shape != expected or tensor.dtype not in safetensors.FLOATS:
            kinds = ", ".join(safetensors.FLOATS)
            differences.append(f"{theirs} is {tensor.dtype} {list(tensor.shape)}, expected {list(expected)} of {kinds}")
        else:
            taken[name] = tensor.reshape(shape)
    differences += [f"{name} isn't of this model" for name in stored]
    if differences:
        raise ValueError(f"{folder}: the weights don't fit config.json: {'; '.join(sorted(differences))}")
    if head and not _same(head, taken["model/wte"]):
        raise ValueError(f"{folder}: {HEAD} isn't wte.weight, but GPT-2's head is its embedding (tie_word_embeddings)")
    return taken


def save(folder: str | os.PathLike, hparams: HParams, arrays: Iterable[np.ndarray], enc: Encoder | None = None) -> None:
    """Writes a folder that transformers loads; the tokenizer's files with `enc`. All appear whole.

    Args:
        arrays: the weights in the order of `hparams.shapes`, each asked for once the one before is written.

    Raises:
        OSError: the folder can't be made or written, or the disk is full.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {f"transformer.{_theirs(name)}": shape[-2:] for name, shape in hparams.shapes.items()}
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as part:
        safetensors.write(Path(part, WEIGHTS[0]), shapes, arrays)
        contents = {} if enc is None else _tokenizer(enc, hparams)
        contents["config.json"] = _dumped(_config(hparams, None if enc is None else enc.end_of_text))
        for name, content in contents.items():
            Path(part, name).write_text(content, encoding="utf-8")
        for name in (WEIGHTS[0], *contents):
            os.replace(Path(part, name), folder / name)


def save_adapters(folder: str | os.PathLike, adapters: Mapping[str, np.ndarray], rank: int) -> None:
    """Writes a folder that PEFT loads onto the same model of transformers; each file appears whole.

    Args:
        adapters: by name, as `model/h0/attn/c_attn/lora_a` [nx, rank] and `.../lora_b` [rank, nf].

    Raises:
        OSError: the folder can't be made or written, or the disk is full.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": rank,  # so that they are not scaled
        "target_modules": ["c_attn", "c_proj"],
        "fan_in_fan_out": True,  # w is [nx, nf]
        "inference_mode": True,
    }
    arrays = {_adapter(name): np.asarray(adapter).T for name, adapter in adapters.items()}
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as part:
        Path(part, ADAPTERS[0]).write_text(_dumped(config), encoding="utf-8")
        shapes = {name: array.shape for name, array in arrays.items()}
        safetensors.write(Path(part, ADAPTERS[1]), shapes, iter(arrays.values()))
        for name in ADAPTERS:
            os.replace(Path(part, name), folder / name)


def adapters(folder: str | os.PathLike, shapes: Mapping[str, tuple[int, ...]], rank: int) -> dict[str, np.ndarray]:
    """What `save_adapters` or PEFT has written, by the names of `shapes`, float32; each `lora_b` is scaled by alpha/r.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: they are of another rank, another model or other arithmetic, or damaged.
    """
    path, weights = (Path(folder, name) for name in ADAPTERS)
    config = _object(path)
    _check(path, config, {**ADAPTER_SETTINGS, "r": (rank,)})
    stored = safetensors.read(weights)
    found = {name: tensor.shape[::-1] for name, tensor in stored.items() if tensor.dtype in safetensors.FLOATS}
    expected = {_adapter(name): tuple(shape) for name, shape in shapes.items()}
    if differences := sorted({name for name, _ in found.items() ^ expected.items()}):
        raise ValueError(
            f"{weights}: the adapters aren't of this model, of c_attn and c_proj at rank {rank}: {len(differences)} "
            f"tensors differ, such as {differences[0]}"
        )
    scale = np.float32(config.get("lora_alpha", rank) / rank)
    arrays = {name: np.asarray(stored[_adapter(name)]).T for name in shapes}
    return {name: array * scale if name.endswith("b") else array for name, array in arrays.items()}


def encoder(folder: str | os.PathLike, n_vocab: int) -> Encoder:
    """The encoder of `tokenizer.json`, or of `vocab.json` and `merges.txt`, for a model of `n_vocab` ids.

    Ids without a token, as where the vocabulary was rounded up, become <|unused50300|> and so on.

    Raises:
        FileNotFoundError: no tokenizer.
        ValueError: it isn't GPT-2's kind (all settings in the way are named), or has more tokens than the model.
    """
    folder = Path(folder)
    if (folder / "tokenizer_config.json").exists():
        path = folder / "tokenizer_config.json"
        _check(path, _object(path), {"add_prefix_space": (False,)})
    if (path := folder / "tokenizer.json").exists():
        tokenizer = _object(path)
        _check(path, tokenizer, TOKENIZER_SETTINGS)
        if not tokenizer.get("pre_tokenizer"):
            raise ValueError(f"{path} has no pre_tokenizer, and here it can be ByteLevel alone")
        try:
            ids = dict(tokenizer["model"]["vocab"])
            added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}
            merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["model"]["merges"]]
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{path} isn't as the tokenizers library writes it ({error!r})") from None
    else:
        path = folder / "vocab.json"
        added = _object(folder / "added_tokens.json") if (folder / "added_tokens.json").exists() else {}
        return encoder_of(path, folder / "merges.txt", added, n_vocab)
    return _encoder(path, ids | added, merges, n_vocab)


def encoder_of(vocab: Path, merges: Path, added: Mapping[str, int], n_vocab: int) -> Encoder:
    """The encoder of two files such as `vocab.json` and `merges.txt`, and of added tokens. Raises as `encoder`."""
    return _encoder(vocab, _object(vocab) | added, _merges(merges), n_vocab)


def vocabulary(enc: Encoder) -> tuple[dict[str, int], list[str]]:
    """What the two files hold of an encoder: the ids by token, and the merges."""
    characters = {byte: character for character, byte in BYTES.items()}
    names = ["".join(characters[byte] for byte in token) for token in enc.tokens]
    for name, i in enc.special_tokens.items():
        names[i] = name
    return {name: i for i, name in enumerate(names)}, [f"{names[left]} {names[right]}" for left, right in enc.merges]


def _encoder(path: Path, ids: dict[str, int], merges: list[str], n_vocab: int) -> Encoder:
    if len(ids) > n_vocab:
        raise ValueError(f"{path} has {len(ids)} tokens, but config.json says vocab_size {n_vocab}")
    taken = [i for i in ids.values() if type(i) is int]
    ids |= {f"<|unused{i}|>": i for i in sorted(set(range(n_vocab)) - set(taken))}
    if len(taken) == len(set(taken)) == len(ids):  # else the encoder says what is wrong
        ids = dict(sorted(ids.items(), key=lambda item: item[1]))  # so that the bytes are OpenAI's own
    vocab_bpe = "".join(f"{line}\n" for line in (VERSION, *merges))
    try:
        return Encoder(json.dumps(ids).encode(), vocab_bpe.encode(), path.parent)
    except ValueError as error:
        raise ValueError(f"{path} isn't GPT-2's kind of tokenizer: {error}") from None


def files(folder: str | os.PathLike) -> list[Path]:
    """All that `hparams`, `tensors` and `encoder` read in a folder."""
    weights = sorted({tensor.path for tensor in _stored(Path(folder)).values()})
    return [path for name in ("config.json", *TOKENIZER) if (path := Path(folder, name)).exists()] + weights


def _theirs(name: str) -> str:
    """OpenAI's name -> Hugging Face's: model/h0/attn/c_attn/w -> h.0.attn.c_attn.weight. The one table of names."""
    *scopes, kind = name.removeprefix("model/").split("/")
    return ".".join([*(re.sub(r"^h(\d+)$", r"h.\1", scope) for scope in scopes), KINDS[kind]])


def _adapter(name: str) -> str:
    return f"base_model.model.transformer.{_theirs(name)}"


def _stored(folder: Path) -> dict[str, safetensors.Stored]:
    """All tensors of a folder by Hugging Face's names, of one file or of those that the index names."""
    single, index = (folder / name for name in WEIGHTS)
    if single.exists():
        return safetensors.read(single)
    if not index.exists():
        raise _no_weights(folder)
    places = _object(index).get("weight_map")
    if not isinstance(places, dict) or not all(re.fullmatch(r"[\w-][\w.-]*", str(file)) for file in places.values()):
        raise ValueError(f"{index} has no weight_map of names to files beside it")
    stored = {}
    for file in sorted(set(places.values())):
        if not (folder / file).exists():
            raise FileNotFoundError(f"{folder / file} is missing; {index} names it")
        stored |= safetensors.read(folder / file)
    if lost := sorted(places.keys() - stored.keys()):
        raise ValueError(f"{folder / places[lost[0]]} lacks {lost[0]}, of which {index} says that it is there")
    return stored


def _no_weights(model: str | os.PathLike) -> FileNotFoundError:
    return FileNotFoundError(
        f"{str(model)!r} has no model.safetensors, and pickles (pytorch_model.bin) are never read: they can run code; "
        'where you trust them: python -c "from transformers import GPT2LMHeadModel as M; '
        f"M.from_pretrained({str(model)!r}).save_pretrained('FOLDER')\""
    )


def _same(one: safetensors.Stored, other: safetensors.Stored, step: int = 1 << 20) -> bool:
    """Whether two tensors hold the same numbers, `step` of them read at a time."""
    count = int(np.prod(other.shape))
    return int(np.prod(one.shape)) == count and all(
        np.array_equal(*(tensor.part(start, min(start + step, count)) for tensor in (one, other)))
        for start in range(0, count, step)
    )


def _object(path: Path) -> dict:
    try:
        return json_object(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; it belongs to a folder of Hugging Face's form") from None


def _check(path: Path, values: Mapping, settings: Mapping[str, tuple]) -> None:
    """Raises ValueError where a setting (a.b is b of a) isn't one of its values; all are named."""
    wrong = []
    for name, allowed in settings.items():
        found = values
        for key in name.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        if found is not None and found not in allowed:
            wrong.append(f"{name} is {json.dumps(found)[:80]}, and here it can be {json.dumps(allowed[0])} alone")
    if wrong:
        raise ValueError(f"{path}: {'; '.join(wrong)}")


def _merges(path: Path) -> list[str]:
    try:
        lines = path.read_text("utf-8").split("\n")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; with vocab.json, it is the tokenizer") from None
    return [line.removesuffix("\r") for line in lines if line.strip() and not line.startswith("#version")]


def _config(hparams: HParams, end_of_text: int | None) -> dict:
    """`config.json`, with the settings that transformers would otherwise take from its defaults."""
    sizes = {theirs: getattr(hparams, ours) for ours, theirs in SIZES.items()}
    dropouts = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), hparams.dropout)
    settings = {name: allowed[0] for name, allowed in SETTINGS.items() if allowed[0] is not None}
    ends = {"bos_token_id": end_of_text, "eos_token_id": end_of_text}
    return {"architectures": ["GPT2LMHeadModel"], **settings, **sizes, **dropouts, **ends}


def _tokenizer(enc: Encoder, hparams: HParams) -> dict[str, str]:
    """The tokenizer's files: their contents by name."""
    ids, merges = vocabulary(enc)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": name, **flags} for name, i in enc.special_tokens.items()],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level | {"trim_offsets": False},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": ids,
            "merges": merges,
        },
    }
    config = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "model_max_length": hparams.n_ctx}
    config |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    return {
        "vocab.json": json.dumps(ids),
        "merges.txt": "".join(f"{line}\n" for line in (VERSION, *merges)),
        "tokenizer.json": _dumped(tokenizer),
        "tokenizer_config.json": _dumped(config),
    }


def _dumped(values: dict) -> str:
    return json.dumps(values, indent=2) + "\n"
