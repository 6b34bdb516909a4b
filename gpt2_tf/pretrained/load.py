"""Find the folder of a model by its name, and load the model and its encoder.

A name is one of OpenAI's sizes ("124M"), "shakespeare" (the bundled model), "hf:user/name" (a model of the Hugging
Face hub), or a folder in OpenAI's or Hugging Face's form.
"""

import hashlib
import os
import re
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from encoder import Encoder
from gpt2_tf.files.regular import open_regular
from gpt2_tf.files.terminal import escape_control_characters
from gpt2_tf.hparams import HUGGING_FACE_NAMES, OLDER_NAMES, SIZES, HParams, canonical_size, closest_size
from gpt2_tf.litert.kept import NotKept
from gpt2_tf.pretrained import download
from gpt2_tf.weights import hf_tokenizer, huggingface
from gpt2_tf.weights.checkpoint import latest_checkpoint
from gpt2_tf.weights.tensor_bundle import Entry, data_paths, data_sizes, read_index

if TYPE_CHECKING:
    from gpt2_tf.litert.engine import LiteRTEngine
    from gpt2_tf.model.gpt2 import GPT2

BUNDLED = "shakespeare"
HUB = "hf:"  # the prefix of names on the Hugging Face hub
VOCABULARY = ("encoder.json", "vocab.bpe")
NANOGPT_HINT = "; ckpt.pt is a checkpoint of nanoGPT, which examples/convert_nanogpt.py converts"
OPTIONAL = {"checkpoint", download.META}  # OpenAI's code needs these files; a folder loads here without them


def load(
    model: str | os.PathLike,
    models_dir: str | os.PathLike = "models",
    step: int | None = None,
    *,
    engine: str = "tensorflow",
    weights: str = "float32",
    threads: int | None = None,
) -> "tuple[GPT2 | LiteRTEngine, Encoder]":
    """Load a model and its encoder.

    Args:
        model: a size of OpenAI ("124M", "355M", "774M" or "1558M"), "shakespeare" (the bundled model), "hf:user/name"
            (a model of the Hugging Face hub; needs the extra `[hf]`), or a folder in OpenAI's or Hugging Face's form.
        models_dir: the folder that holds a folder for each of OpenAI's sizes; default "models". A size that is
            missing there is downloaded.
        step: choose the checkpoint `model-<step>` of a training run's folder; by default, the one that the file
            `checkpoint` names.
        engine: "tensorflow" (the default) returns a GPT2, which also trains. "litert" returns a `LiteRTEngine`, which
            writes and scores texts faster on a CPU and needs no TensorFlow. "auto" takes LiteRT where it is installed
            and no GPU is visible, or where `weights` or `threads` need it. Where its files can't be written, "auto"
            says so on stderr and takes TensorFlow.
        weights: how LiteRT stores the weights, "float32" (the default) or "int8". int8 takes a quarter of the memory
            and writes other texts, of nearly the same quality.
        threads: how many threads LiteRT uses. None takes what the process may use.

    Returns:
        The model, and its encoder.

    Raises:
        OSError: there is no such model, or the download failed.
        ValueError: a file is damaged, or the files don't fit one another.
        ImportError: an extra or LiteRT is missing.

    Example:
        >>> model, enc = load("shakespeare")
        >>> model.hparams.n_ctx
        256
        >>> enc.decode(enc.encode("ROMEO:"))
        'ROMEO:'
    """
    from gpt2_tf.pretrained import engines

    chosen = engines.choose_engine(engine, weights, threads)
    folder = find_model_dir(model, models_dir)
    if chosen == "litert":
        try:
            return engines.load_litert(folder, step, weights, threads)
        except NotKept as error:
            if (engine, weights, threads) != ("auto", "float32", None):
                raise
            notice = f"{error.filename}: {error.strerror}; it is taken now, and starts more slowly"
            print(escape_control_characters(notice), file=sys.stderr)
    from gpt2_tf.model import GPT2  # imported late, because the rest of this module does not need TensorFlow

    if huggingface.is_huggingface_folder(folder):
        check_has_no_step(folder, step)
        huggingface.check_files(folder)
        enc = read_encoder(folder)
        gpt2 = GPT2.from_pretrained(folder)
    else:
        enc = read_encoder(folder)
        gpt2 = GPT2.from_checkpoint(folder, step=step)
    check_vocabulary_size(folder, enc, gpt2.hparams)
    return gpt2, enc


def check_vocabulary_size(folder: Path, enc: Encoder, hparams: HParams) -> None:
    """Raise ValueError unless a folder's vocabulary and its model have the same number of tokens.

    Example:
        >>> check_vocabulary_size(bundled_folder(), enc, model.hparams)
    """
    if enc.n_vocab != hparams.n_vocab:
        raise ValueError(
            f"{folder}: encoder.json has {enc.n_vocab} tokens, but hparams.json says n_vocab {hparams.n_vocab}"
        )


def load_encoder(model: str | os.PathLike, models_dir: str | os.PathLike = "models") -> Encoder:
    """Load the encoder of a model. No weights are downloaded or read.

    Args and errors are those of `load`.

    Example:
        >>> load_encoder("shakespeare").n_vocab
        1024
    """
    return read_encoder(find_model_dir(model, models_dir, VOCABULARY))


def find_model_dir(
    model: str | os.PathLike,
    models_dir: str | os.PathLike = "models",
    names: Collection[str] = download.FILES,
) -> Path:
    """Return the folder of a model, after downloading the files that are missing.

    Args:
        model: as for `load`.
        models_dir: as for `load`.
        names: the needed files of a size. Files that exist are never replaced. The weights of a model on the Hugging
            Face hub are downloaded if `names` holds "model.ckpt.index".

    Raises:
        FileNotFoundError: there is no model of that name and no such folder.
        NotADirectoryError: `model` is a file.
        OSError: the download failed.

    Example:
        >>> find_model_dir("shakespeare").name
        'shakespeare'
        >>> find_model_dir("shakespear")
        Traceback (most recent call last):
            ...
        FileNotFoundError: there is no model 'shakespear' (did you mean 'shakespeare'?): expected a size (124M, ...
    """
    if str(model).startswith(HUB):
        return huggingface.download_snapshot(str(model).removeprefix(HUB), weights=download.INDEX in names)
    folder = _model_dir(model, models_dir)
    if _is_size(model):
        missing = [name for name in names if not (folder / name).exists()]
        if set(missing) - OPTIONAL:
            download.download(model, models_dir, names=missing)
        return folder
    if not folder.exists() or not str(model):
        raise FileNotFoundError(
            f"there is no model {str(model)!r}{_suggestion(str(model))}: expected a size ({', '.join(SIZES)}), "
            f"{BUNDLED!r}, {HUB}NAME of the Hugging Face hub, or a folder"
        )
    if not folder.is_dir():
        hint = NANOGPT_HINT if folder.suffix == ".pt" else ""
        raise NotADirectoryError(
            f"{folder} is not a folder; a model's folder holds hparams.json, model.ckpt.*, ...{hint}"
        )
    if (folder / "ckpt.pt").exists() and not any((folder / name).exists() for name in ("hparams.json", "config.json")):
        raise FileNotFoundError(f"{folder} holds no model that can be loaded{NANOGPT_HINT}")
    return folder


def check_has_no_step(folder: Path, step: int | None) -> None:
    """Raise ValueError where a step is chosen of a folder that is not in OpenAI's form.

    Example:
        >>> check_has_no_step(Path("my-hf"), step=1000)
        Traceback (most recent call last):
        ValueError: my-hf is not in OpenAI's form, so it has no steps; leave out --step
    """
    if step is not None:
        raise ValueError(f"{folder} is not in OpenAI's form, so it has no steps; leave out --step")


def describe(
    model: str | os.PathLike, models_dir: str | os.PathLike = "models", step: int | None = None
) -> dict[str, str]:
    """Describe a model by its files, without TensorFlow and without downloading weights.

    A size of OpenAI that has not been downloaded is described by its known sizes.

    Args and errors are those of `load`.

    Returns:
        Names and values, as `gpt2-tf info` prints them.

    Example:
        >>> describe("shakespeare")["n_layer"]
        '4'
    """
    folder = _model_dir(model, models_dir)
    if _is_size(model) and not (folder / download.INDEX).exists():
        hparams = HParams.from_size(model)
        option = "" if os.fspath(models_dir) == "models" else f" --models-dir {models_dir}"
        weights = f"not in {folder}; `gpt2-tf download {canonical_size(model)}{option}` fetches them"
        vocabulary = VOCABULARY
    else:
        folder = find_model_dir(model, models_dir, names=())
        if huggingface.is_huggingface_folder(folder):
            check_has_no_step(folder, step)
            hparams = huggingface.read_hparams(folder)
            weights = _describe_safetensors(folder, hparams)
            has_tokenizer = any((folder / name).exists() for name in hf_tokenizer.TOKENIZER)
            vocabulary = () if has_tokenizer else hf_tokenizer.VOCABULARY
        else:
            hparams = HParams.from_json(folder / "hparams.json")
            prefix = latest_checkpoint(folder, step)
            weights = _describe_checkpoint(prefix, read_index(f"{prefix}.index"))
            vocabulary = VOCABULARY
    values = {"model": str(model), "folder": str(folder), **hparams.to_dict()}
    values |= {"parameters": f"{hparams.n_params:,}", "weights": weights}
    if folder.exists() and (missing := [name for name in vocabulary if not (folder / name).exists()]):
        values["vocabulary"] = f"{' and '.join(missing)} missing"
    return {key: str(value) for key, value in values.items()}


def fingerprint(folder: str | os.PathLike, step: int | None = None) -> str:
    """Return a text that differs for any two models whose weights, sizes or vocabularies differ.

    It is computed from the files that determine the model. In OpenAI's form, the index stands for the weights, because
    it holds the checksum of each tensor.

    Args:
        folder: the model's folder.
        step: as for `load`.

    Raises:
        OSError: a file is missing or can't be read.

    Example:
        >>> fingerprint(find_model_dir("shakespeare"))
        'SHA-256 ...'
    """
    if huggingface.is_huggingface_folder(folder):
        paths = huggingface.model_files(folder)
    else:
        index = f"{latest_checkpoint(folder, step)}.index"
        paths = [*(Path(folder, name) for name in ("hparams.json", *VOCABULARY)), Path(index)]
    hashes = []
    for path in paths:
        with open_regular(path) as file:
            hashes.append(hashlib.file_digest(file, "sha256").digest())
    return sha256(b"".join(hashes))


def sha256(content: bytes) -> str:
    """Return the first 16 hexadecimal digits of a SHA-256, which are enough to tell files apart, for display.

    Example:
        >>> sha256(b"")
        'SHA-256 e3b0c44298fc1c14'
    """
    return f"SHA-256 {hashlib.sha256(content).hexdigest()[:16]}"


def read_encoder(folder: Path) -> Encoder:
    """Read the vocabulary of a model's folder, in OpenAI's or Hugging Face's form.

    Example:
        >>> read_encoder(bundled_folder()).n_vocab
        1024
    """
    if huggingface.is_huggingface_folder(folder):
        hparams = huggingface.read_hparams(folder)
        if huggingface.has_weights(folder):
            # config.json alone could claim any size, so the sizes are checked against the weights first.
            huggingface.read_tensors(folder, hparams)
        return hf_tokenizer.read_encoder(folder, hparams.n_vocab)
    return Encoder.from_folder(folder)


def _is_size(model: str | os.PathLike) -> bool:
    return model in SIZES or model in OLDER_NAMES


def _model_dir(model: str | os.PathLike, models_dir: str | os.PathLike) -> Path:
    """Return the path at which a model's folder is or would be."""
    if _is_size(model):
        return Path(models_dir, canonical_size(model))
    return bundled_folder() if model == BUNDLED else Path(model)


def bundled_folder() -> Path:
    """Return the folder of the bundled model.

    Example:
        >>> bundled_folder().name
        'shakespeare'
    """
    return Path(__file__).resolve().parents[1] / "bundled" / BUNDLED


def _suggestion(model: str) -> str:
    """Return " (did you mean ...?)" for a misspelled name, or nothing."""
    name = model.lower().removeprefix("openai-community/")
    if name in HUGGING_FACE_NAMES:
        return f" (did you mean '{HUGGING_FACE_NAMES[name]}', OpenAI's files, or '{HUB}{name}'?)"
    if os.path.basename(model) != model:
        is_hub_name = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model, re.ASCII) and not Path(model).parent.exists()
        return f" (did you mean '{HUB}{model}'?)" if is_hub_name else ""
    close = closest_size(model, BUNDLED)
    return f" (did you mean '{close}'?)" if close else ""


def _describe_safetensors(folder: Path, hparams: HParams) -> str:
    if not huggingface.has_weights(folder):
        return f"no {huggingface.WEIGHTS[0]} in {folder}"
    tensors = huggingface.read_tensors(folder, hparams).values()
    files = sorted({tensor.path.name for tensor in tensors})
    return f"{len(tensors)} tensors, {sum(tensor.size for tensor in tensors):,} bytes in {' and '.join(files)}"


def _describe_checkpoint(prefix: Path, entries: dict[str, Entry]) -> str:
    sizes = data_sizes(entries)
    paths = data_paths(prefix, sizes).values()
    expected = sum(sizes.values())
    found = sum(path.stat().st_size for path in paths if path.exists())
    if found == expected:
        return f"{len(entries)} tensors, {expected:,} bytes in {prefix.name}"
    files = " and ".join(path.name for path in paths)
    return f"{len(entries)} tensors, but {found:,} of {expected:,} bytes in {prefix.name}: {files} is incomplete"
