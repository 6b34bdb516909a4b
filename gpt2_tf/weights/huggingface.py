"""Hugging Face's folders, `config.json` and `model.safetensors`, and models of the Hugging Face hub.

A folder is read with NumPy alone. A model of the hub is downloaded with the extra `[hf]`. `hf_tokenizer.py` reads and
writes the tokenizer files.
"""

import json
import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from encoder import Encoder
from gpt2_tf.files.atomic import move_into_place, staging_folder
from gpt2_tf.hparams import HParams
from gpt2_tf.weights import hf_tokenizer, safetensors
from gpt2_tf.weights.hf_settings import check_settings, read_json
from gpt2_tf.weights.lazy_tensor import LazyTensor

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
# HParams' names of the sizes -> those in config.json.
SIZES = {"n_vocab": "vocab_size", "n_ctx": "n_positions", "n_embd": "n_embd", "n_head": "n_head", "n_layer": "n_layer"}
# Settings that change the model's output -> the supported values; a missing setting has the first of them.
# `reorder_and_upcast_attn` only changes rounding. The dropouts only matter in training.
SETTINGS = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
    "auto_map": (None,),
}
FLOATS = ("float32", "float16", "bfloat16")
HEAD = "lm_head.weight"
BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # the causal mask, which older files hold
# The last part of OpenAI's names -> Hugging Face's.
WEIGHT_NAMES = {"g": "weight", "b": "bias", "w": "weight", "wte": "wte.weight", "wpe": "wpe.weight"}


def check_files(folder: str | os.PathLike) -> None:
    """Check that a folder has weights. The error says in one line whether it lacks a tokenizer too.

    Raises:
        FileNotFoundError: the folder has no safetensors.
        ValueError: the folder is in KerasNLP's form.

    Example:
        >>> check_files(".")
        Traceback (most recent call last):
            ...
        FileNotFoundError: '.' has no model.safetensors, and pickles (pytorch_model.bin) are never read: ...
    """
    _check_not_keras_nlp(folder)
    if not has_weights(folder):
        raise _no_weights(folder)


def find_folder(model: str | os.PathLike, revision: str | None = None) -> Path:
    """Return the folder of a model: `model` itself if it is a folder, else the downloaded model of that name.

    Raises:
        FileNotFoundError, ImportError, OSError: as for `download_snapshot`.

    Example:
        >>> find_folder(".")
        PosixPath('.')
    """
    return Path(model) if os.path.isdir(model) else download_snapshot(str(model), revision)


def download_snapshot(name: str, revision: str | None = None, weights: bool = True) -> Path:
    """Download a model of the Hugging Face hub, unless it is in the cache of Hugging Face's library already.

    Args:
        name: the model's name on the hub, as "gpt2" or "user/name".
        revision: a branch, tag or commit; by default, the main branch.
        weights: whether the weights are downloaded too; the tokenizer doesn't need them.

    Returns:
        The model's folder in the cache.

    Raises:
        FileNotFoundError: the hub has no such model, or the model has no safetensors.
        ImportError: the extra `[hf]` is missing.
        OSError: the download failed.

    Example:
        >>> download_snapshot("no name")
        Traceback (most recent call last):
            ...
        FileNotFoundError: there is no folder 'no name', and it can't be the name of a model on the Hugging Face hub
    """
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name, re.ASCII):
        raise FileNotFoundError(
            f"there is no folder {name!r}, and it can't be the name of a model on the Hugging Face hub"
        )
    try:
        import huggingface_hub
        from huggingface_hub.errors import RepositoryNotFoundError
    except ImportError:
        raise ImportError(
            f"there is no folder {name!r}; to look for it on the Hugging Face hub, run: pip install 'gpt2-tf[hf]'"
        ) from None
    patterns = ["config.json", *hf_tokenizer.FILES, *([*WEIGHTS, "model-*.safetensors"] if weights else [])]
    try:
        folder = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns)
    except RepositoryNotFoundError:
        raise FileNotFoundError(
            f"{huggingface_hub.constants.ENDPOINT} has no model {name!r}, or shows it only to users who have logged "
            "in (`hf auth login`); there is no folder of that name either"
        ) from None
    except Exception as error:  # the type depends on the library's version: its own, of requests or of httpx
        raise OSError(f"{name!r} can't be downloaded from the hub: {' '.join(str(error).split())}") from error
    if weights and not has_weights(folder):
        raise _no_weights(name)
    return Path(folder)


def is_huggingface_folder(folder: str | os.PathLike) -> bool:
    """Whether a folder is in Hugging Face's form and not in OpenAI's.

    Example:
        >>> is_huggingface_folder(".")
        False
    """
    return Path(folder, "config.json").exists() and not Path(folder, "hparams.json").exists()


def is_keras_nlp_folder(folder: str | os.PathLike) -> bool:
    """Whether KerasNLP wrote a folder. Its `config.json` has other content than Hugging Face's.

    Example:
        >>> is_keras_nlp_folder(".")
        False
    """
    return Path(folder, "metadata.json").exists() and not has_weights(folder)


def has_weights(folder: str | os.PathLike) -> bool:
    """Whether a folder holds safetensors.

    Example:
        >>> has_weights(".")
        False
    """
    return any(Path(folder, name).exists() for name in WEIGHTS)


def read_hparams(folder: str | os.PathLike) -> HParams:
    """Read the sizes of a model from `config.json`. The dropout is left at 0.

    Raises:
        FileNotFoundError: `config.json` is missing.
        ValueError: the file is damaged, or describes a model whose output differs from OpenAI's GPT-2. All settings
            that are not supported are named.

    Example:
        >>> config = {"vocab_size": 300, "n_positions": 32, "n_embd": 16, "n_head": 2, "n_layer": 2}
        >>> _ = Path("config.json").write_text(json.dumps(config))
        >>> read_hparams(".").n_ctx
        32
    """
    _check_not_keras_nlp(folder)
    path = Path(folder, "config.json")
    config = read_json(path)
    if missing := [name for name in SIZES.values() if name not in config]:
        raise ValueError(f"{path} lacks {', '.join(missing)}, which the config.json of a GPT-2 has")
    try:
        hparams = HParams(**{ours: config[theirs] for ours, theirs in SIZES.items()})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    check_settings(path, config, {**SETTINGS, "n_inner": (4 * hparams.n_embd,)})
    return hparams


def read_tensors(folder: str | os.PathLike, hparams: HParams) -> dict[str, LazyTensor]:
    """Return the weights of a folder by OpenAI's names and in OpenAI's shapes.

    `np.asarray` reads the values of a weight as float32.

    Raises:
        FileNotFoundError: the folder has no safetensors, or one of several files is missing.
        ValueError: a file is damaged, the weights don't fit `hparams` (all differences are named), or the output
            layer's weights differ from the embeddings.

    Example:
        >>> hparams = HParams(n_vocab=300, n_ctx=32, n_embd=16, n_head=2, n_layer=2)
        >>> save("folder", hparams, (np.zeros(shape) for shape in hparams.shapes.values()))
        >>> np.asarray(read_tensors("folder", hparams)["model/wte"]).shape
        (300, 16)
    """
    stored = {name.removeprefix("transformer."): tensor for name, tensor in _stored_tensors(Path(folder)).items()}
    stored = {name: tensor for name, tensor in stored.items() if not BUFFERS.fullmatch(name)}
    head = stored.pop(HEAD, None)
    found = sum(tensor.count for tensor in stored.values())
    if hparams.n_params > 10 * found:  # such a model, or even the names of its weights, might not fit in memory
        raise ValueError(f"{folder}: config.json describes {hparams.n_params:,} weights, but there are {found:,}")
    differences = []
    tensors = {}
    for name, shape in hparams.shapes.items():
        theirs = huggingface_name(name)
        tensor = stored.pop(theirs, None)
        expected = shape[-2:]  # Hugging Face's shapes lack OpenAI's leading 1
        if tensor is None:
            differences.append(f"{theirs} is missing")
        elif tensor.shape != expected or tensor.dtype not in FLOATS:
            differences.append(
                f"{theirs} is {tensor.dtype} {list(tensor.shape)}, expected {' or '.join(FLOATS)} {list(expected)}"
            )
        else:
            tensors[name] = tensor.reshape(shape)
    differences += [f"{name} isn't of this model" for name in stored]
    if differences:
        raise ValueError(f"{folder}: the weights don't fit config.json: {'; '.join(sorted(differences))}")
    _check_head(Path(folder), head, tensors["model/wte"])
    return tensors


def save(folder: str | os.PathLike, hparams: HParams, arrays: Iterable[np.ndarray], enc: Encoder | None = None) -> None:
    """Write a folder that the transformers library loads. Each file appears complete or not at all.

    Args:
        folder: made if it is missing.
        hparams: the model's sizes.
        arrays: the weights in the order of `hparams.shapes`. Each array is taken after the one before it is written.
        enc: the model's encoder; without one, no tokenizer files are written.

    Raises:
        OSError: the folder can't be made or written, or the disk is full.

    Example:
        >>> hparams = HParams(n_vocab=300, n_ctx=32, n_embd=16, n_head=2, n_layer=2)
        >>> save("folder", hparams, (np.zeros(shape) for shape in hparams.shapes.values()))
        >>> sorted(path.name for path in Path("folder").iterdir())
        ['config.json', 'model.safetensors']
    """
    shapes = {f"transformer.{huggingface_name(name)}": shape[-2:] for name, shape in hparams.shapes.items()}
    texts = {} if enc is None else hf_tokenizer.tokenizer_files(enc, hparams.n_ctx)
    texts["config.json"] = json.dumps(_config(hparams, None if enc is None else enc.end_of_text), indent=2) + "\n"
    with staging_folder(folder) as staging:
        safetensors.write_tensors(staging / WEIGHTS[0], shapes, arrays)
        for name, text in texts.items():
            (staging / name).write_text(text, encoding="utf-8")
        move_into_place([staging / name for name in (WEIGHTS[0], *texts)], folder)


def model_files(folder: str | os.PathLike) -> list[Path]:
    """Return the paths of all files in a folder that determine the model and its encoder.

    Example:
        >>> hparams = HParams(n_vocab=300, n_ctx=32, n_embd=16, n_head=2, n_layer=2)
        >>> save("folder", hparams, (np.zeros(shape) for shape in hparams.shapes.values()))
        >>> [path.name for path in model_files("folder")]
        ['config.json', 'model.safetensors']
    """
    weights = sorted({tensor.path for tensor in _stored_tensors(Path(folder)).values()})
    return [path for name in ("config.json", *hf_tokenizer.FILES) if (path := Path(folder, name)).exists()] + weights


def huggingface_name(name: str) -> str:
    """Convert OpenAI's name of a weight to Hugging Face's.

    Example:
        >>> huggingface_name("model/h0/attn/c_attn/w")
        'h.0.attn.c_attn.weight'
    """
    *scopes, last = name.removeprefix("model/").split("/")
    return ".".join([*(re.sub(r"^h(\d+)$", r"h.\1", scope) for scope in scopes), WEIGHT_NAMES[last]])


def _stored_tensors(folder: Path) -> dict[str, LazyTensor]:
    """Return all tensors of a folder by Hugging Face's names, from one file or from the files that the index names."""
    single, index = (folder / name for name in WEIGHTS)
    if single.exists():
        return safetensors.read_tensors(single)
    if not index.exists():
        _check_not_keras_nlp(folder)
        raise _no_weights(folder)
    files = read_json(index).get("weight_map")
    # Only plain names are accepted, so that an index can't point outside its folder.
    if not isinstance(files, dict) or not all(
        isinstance(file, str) and re.fullmatch(r"[\w-][\w.-]*", file) for file in files.values()
    ):
        raise ValueError(f"{index}: weight_map must map the names of tensors to names of files in the same folder")
    stored = {}
    for file in sorted(set(files.values())):
        if not (folder / file).exists():
            raise FileNotFoundError(f"{folder / file} is missing; {index} names it")
        stored |= safetensors.read_tensors(folder / file)
    if lost := sorted(files.keys() - stored.keys()):
        raise ValueError(f"{folder / files[lost[0]]} lacks the tensor {lost[0]}, which {index} expects there")
    return stored


def _check_not_keras_nlp(folder: str | os.PathLike) -> None:
    if is_keras_nlp_folder(folder):
        raise ValueError(
            f"{folder} is in KerasNLP's form; convert it first: gpt2-tf convert {shlex.quote(str(folder))} NEW"
        )


def _no_weights(model: str | os.PathLike) -> FileNotFoundError:
    """Return the error for a model without safetensors, with a command that makes them from a pickle."""
    classes, tokenizer_hint = "AutoTokenizer, GPT2LMHeadModel", ""
    if os.path.isdir(model) and not hf_tokenizer.has_tokenizer(model):
        classes = "GPT2LMHeadModel,"
        tokenizer_hint = (
            f"; it has no tokenizer either: copy {hf_tokenizer.EXPECTED} of the model that was fine-tuned into FOLDER"
        )
    imported = classes.rstrip(",")
    return FileNotFoundError(
        f"{str(model)!r} has no model.safetensors, and pickles (pytorch_model.bin) are never read: they can run code"
        f'{tokenizer_hint}. To convert a pickle that you trust: python -c "from transformers import {imported}; '
        f"[c.from_pretrained({str(model)!r}).save_pretrained('FOLDER') for c in ({classes})]\""
    )


def _check_head(folder: Path, head: LazyTensor | None, embeddings: LazyTensor) -> None:
    """Check that the output layer has the embeddings as its weights, as in OpenAI's model.

    A file that ties the two needs no separate tensor for the output layer.
    """
    tied = read_json(folder / "config.json").get("tie_word_embeddings")
    if head is None and tied is False:
        raise ValueError(f"{folder}: {HEAD} is missing, and tie_word_embeddings is false in config.json")
    if head is not None and not _have_equal_values(head, embeddings):
        raise ValueError(
            f"{folder}: {HEAD} differs from wte.weight, but GPT-2's output layer uses the embeddings "
            "(tie_word_embeddings)"
        )


def _have_equal_values(one: LazyTensor, other: LazyTensor, chunk: int = 1 << 20) -> bool:
    """Compare two tensors, reading `chunk` values of each at a time."""
    count = other.count
    return (one.count, one.dtype in FLOATS) == (count, True) and all(
        np.array_equal(*(tensor.read_range(start, min(start + chunk, count)) for tensor in (one, other)))
        for start in range(0, count, chunk)
    )


def _config(hparams: HParams, end_of_text: int | None) -> dict:
    """Return the content of `config.json`, with the settings for which transformers has other defaults."""
    sizes = {theirs: getattr(hparams, ours) for ours, theirs in SIZES.items()}
    dropouts = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), hparams.dropout)
    settings = {name: supported[0] for name, supported in SETTINGS.items() if supported[0] is not None}
    settings |= {"tie_word_embeddings": True}
    ends = {"bos_token_id": end_of_text, "eos_token_id": end_of_text}
    return {"architectures": ["GPT2LMHeadModel"], **settings, **sizes, **dropouts, **ends}
