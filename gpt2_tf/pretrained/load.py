"""A model's name -> its folder, of OpenAI's files or Hugging Face's -> the model and its encoder."""

import hashlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from encoder import Encoder
from gpt2_tf.hparams import OLDER_NAMES, SIZES, HParams, canonical_size
from gpt2_tf.pretrained import download
from gpt2_tf.weights import huggingface
from gpt2_tf.weights.checkpoint import latest_checkpoint
from gpt2_tf.weights.tensor_bundle import data_sizes, read_index

if TYPE_CHECKING:
    from gpt2_tf.model.gpt2 import GPT2

BUNDLED = "shakespeare"
HUB = "hf:"
VOCABULARY = ("encoder.json", "vocab.bpe")
UNREAD = {"checkpoint", download.META}  # for OpenAI's code; a folder without them loads


def find_model_dir(
    model: str | os.PathLike,
    models_dir: str | os.PathLike = "models",
    names: Collection[str] = download.FILES,
) -> Path:
    """The folder of a model: of a size ("124M"), "shakespeare", of Hugging Face's hub ("hf:user/name"), or a path.

    Those of a size's `names` that are missing in `models_dir` are fetched; files that are there stay as they are. The
    hub's files are kept where its library keeps them; the weights come with `download.INDEX` among the `names`.

    Raises:
        FileNotFoundError, NotADirectoryError: neither a model's name nor a folder.
        OSError: the download failed.
    """
    if str(model).startswith(HUB):
        return huggingface.fetch(str(model).removeprefix(HUB), weights=download.INDEX in names)
    folder = _place(model, models_dir)
    if _is_size(model):
        missing = [name for name in names if not (folder / name).exists()]
        if set(missing) - UNREAD:
            download.download(model, models_dir, names=missing)
        return folder
    if not folder.exists() or not str(model):
        raise FileNotFoundError(
            f"there is no model {str(model)!r}: expected a size ({', '.join(SIZES)}), {BUNDLED!r}, "
            f"{HUB}NAME of the Hugging Face hub, or a folder"
        )
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder; a model is one with hparams.json, model.ckpt.* and so on")
    return folder


def describe(model: str | os.PathLike, models_dir: str | os.PathLike = "models") -> dict[str, str]:
    """What a model is, by what its files say, without TensorFlow and without fetching weights.

    Raises:
        OSError, ValueError: as `load`, but for a size that isn't there: its table entry describes it.
    """
    folder = _place(model, models_dir)
    if _is_size(model) and not (folder / download.INDEX).exists():
        hparams = HParams.from_size(model)
        elsewhere = "" if os.fspath(models_dir) == "models" else f" --models-dir {models_dir}"
        weights = f"not in {folder}; `gpt2-tf download {canonical_size(model)}{elsewhere}` fetches them"
    else:
        folder = find_model_dir(model, models_dir, names=())
        if huggingface.is_folder(folder):
            hparams = huggingface.hparams(folder)
            weights = _safetensors(folder, hparams)
        else:
            hparams = HParams.from_json(folder / "hparams.json")
            checkpoint = latest_checkpoint(folder)
            tensors = read_index(f"{checkpoint}.index")
            weights = f"{len(tensors)} tensors, {_data(checkpoint, data_sizes(tensors))}"
    values = {"model": str(model), "folder": str(folder), **hparams.to_dict()}
    values |= {"parameters": f"{hparams.n_params:,}", "weights": weights}
    vocabulary = VOCABULARY
    if huggingface.is_folder(folder):
        vocabulary = () if (folder / "tokenizer.json").exists() else huggingface.VOCABULARY
    if folder.exists() and (missing := [name for name in vocabulary if not (folder / name).exists()]):
        values["vocabulary"] = f"{' and '.join(missing)} missing"
    return {key: str(value) for key, value in values.items()}


def fingerprint(folder: str | os.PathLike) -> str:
    """What tells a model from every other: of OpenAI's form by the index, which has the checksum of each tensor."""
    if huggingface.is_folder(folder):
        paths = huggingface.files(folder)
    else:
        paths = [
            Path(folder, name) for name in ("hparams.json", *VOCABULARY, f"{latest_checkpoint(folder).name}.index")
        ]
    hashes = []
    for path in paths:
        with open(path, "rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").digest())
    return sha256(b"".join(hashes))


def sha256(content: bytes) -> str:
    """The first 16 hexadecimal digits, which are enough to tell files apart, in words for a table."""
    return f"SHA-256 {hashlib.sha256(content).hexdigest()[:16]}"


def _safetensors(folder: Path, hparams: HParams) -> str:
    if not any((folder / name).exists() for name in huggingface.WEIGHTS):
        return f"no {huggingface.WEIGHTS[0]} in {folder}"
    tensors = huggingface.tensors(folder, hparams).values()
    files = sorted({tensor.path.name for tensor in tensors})
    return f"{len(tensors)} tensors, {sum(tensor.size for tensor in tensors):,} bytes in {' and '.join(files)}"


def _data(checkpoint: Path, sizes: dict[int, int]) -> str:
    """What is there of the files that hold the weights, `sizes` bytes each by their numbers."""
    expected = sum(sizes.values())
    paths = [Path(f"{checkpoint}.data-{shard:05d}-of-{len(sizes):05d}") for shard in sizes]
    found = sum(path.stat().st_size for path in paths if path.exists())
    if found == expected:
        return f"{expected:,} bytes in {checkpoint.name}"
    return (
        f"but {found:,} of {expected:,} bytes in {checkpoint.name}: {' and '.join(p.name for p in paths)} isn't whole"
    )


def _is_size(model: str | os.PathLike) -> bool:
    return model in SIZES or model in OLDER_NAMES


def _place(model: str | os.PathLike, models_dir: str | os.PathLike) -> Path:
    """Where a model's folder is, or would be."""
    if _is_size(model):
        return Path(models_dir, canonical_size(model))
    return Path(__file__).parents[1] / "bundled" / BUNDLED if model == BUNDLED else Path(model)


def load(model: str | os.PathLike, models_dir: str | os.PathLike = "models") -> "tuple[GPT2, Encoder]":
    """The model and its encoder, by a size ("124M"), by "shakespeare" (bundled), by "hf:user/name" of the
    Hugging Face hub (the extra `[hf]`), or from a folder of OpenAI's files or of Hugging Face's.

    Raises:
        OSError: it isn't there, or the download failed.
        ValueError: the files are damaged, or don't fit one another.
    """
    from gpt2_tf.model import GPT2  # here, so that `find_model_dir` does without TensorFlow

    folder = find_model_dir(model, models_dir)
    enc = _encoder(folder)
    gpt2 = GPT2.from_pretrained(folder) if huggingface.is_folder(folder) else GPT2.from_checkpoint(folder)
    if enc.n_vocab != gpt2.hparams.n_vocab:
        raise ValueError(
            f"{folder}: encoder.json has {enc.n_vocab} tokens, but hparams.json says n_vocab {gpt2.hparams.n_vocab}"
        )
    return gpt2, enc


def load_encoder(model: str | os.PathLike, models_dir: str | os.PathLike = "models") -> Encoder:
    """The encoder of a model alone, for which no weights are fetched. Raises as `load`."""
    return _encoder(find_model_dir(model, models_dir, VOCABULARY))


def _encoder(folder: Path) -> Encoder:
    if huggingface.is_folder(folder):
        return huggingface.encoder(folder, huggingface.hparams(folder).n_vocab)
    return Encoder.from_folder(folder)
