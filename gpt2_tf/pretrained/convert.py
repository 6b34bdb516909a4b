"""Convert a model's folder to another form, one tensor at a time.

TensorFlow is needed only for KerasNLP's form.
"""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from encoder import Encoder
from gpt2_tf.files import progress
from gpt2_tf.files.atomic import atomic_path, new_folder
from gpt2_tf.files.terminal import escape_control_characters
from gpt2_tf.hparams import HParams
from gpt2_tf.lazy import without_tensorflow_noise
from gpt2_tf.pretrained import FORMS
from gpt2_tf.pretrained.load import VOCABULARY, check_has_no_step, find_model_dir
from gpt2_tf.weights import checkpoint, hf_tokenizer, huggingface, tensor_bundle


class Source(NamedTuple):
    """The model to convert. Its weights are read when they are needed.

    Attributes:
        form: one of `FORMS`.
        hparams: the model's sizes.
        read_weight: returns the weight of OpenAI's name, as float32 in OpenAI's shape.
        enc: the encoder, or None for a folder without a vocabulary.
        step: the step in the name of a checkpoint such as `model-1000`, or 0.

    Example:
        >>> Source("openai", model.hparams, read_weight=lambda name: model.named_weights()[name].numpy(), enc=enc).step
        0
    """

    form: str
    hparams: HParams
    read_weight: Callable[[str], np.ndarray]
    enc: Encoder | None
    step: int = 0


def convert(
    model: str | os.PathLike,
    target: str | os.PathLike,
    to: str | None = None,
    models_dir: str | os.PathLike = "models",
    step: int | None = None,
) -> Path:
    """Write a model to a new folder of another form. A progress bar is shown on stderr.

    Args:
        model: a name or folder as for `load`, or a folder that KerasNLP's `save_to_preset` wrote.
        target: the new folder. It may exist if it is empty. It appears complete or not at all.
        to: "openai", "hf", "gpt-2-simple" or "keras-nlp". By default, "hf" for a model in OpenAI's form and "openai"
            for any other.
        models_dir: the folder that holds a folder for each of OpenAI's sizes.
        step: of a folder with several checkpoints, choose `model-<step>`; by default, the one that the file
            `checkpoint` names.

    Returns:
        The new folder.

    Raises:
        FileExistsError: `target` exists and is not an empty folder.
        ValueError: there is no such form, or a file of the model is damaged.
        OSError: there is no such model, or `target` can't be written.
        ImportError: an extra is missing.

    Example:
        >>> sorted(path.name for path in convert("shakespeare", "my-hf", to="hf").iterdir())[:3]
        ['config.json', 'merges.txt', 'model.safetensors']
    """
    target = Path(target)
    if to not in (*FORMS, None):
        raise ValueError(f"there is no form {to!r}; expected {', '.join(FORMS)}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists already; name a new folder, or remove this one")
    model_dir = find_model_dir(model, models_dir)
    source = _open_source(model_dir, step)
    to = to or ("hf" if source.form == "openai" else "openai")
    if source.enc is None:
        notice = f"{model_dir} has no vocabulary, so {target} gets none"
        print(escape_control_characters(notice), file=sys.stderr)
    with new_folder(target.parent), atomic_path(target) as temporary:
        temporary.mkdir()
        # Close the generator first, so that the progress bar ends before an error is printed.
        with contextlib.closing(_read_weights(source, f"{model_dir.name} -> {to}")) as arrays:
            _write(temporary, to, source, arrays)
    return target


def find_form(folder: Path, step: int | None = None) -> str:
    """Return the form of a model's folder, one of `FORMS`. `step` is that of `convert`.

    Example:
        >>> find_form(find_model_dir("shakespeare"))
        'openai'
    """
    if not huggingface.is_huggingface_folder(folder):
        return "openai" if _step(folder, step) is None else "gpt-2-simple"
    return "keras-nlp" if huggingface.is_keras_nlp_folder(folder) else "hf"


def open_weights(folder: Path, step: int | None = None) -> tuple[HParams, Callable[[str], np.ndarray]]:
    """Open the weights of a folder in OpenAI's or Hugging Face's form. None is read yet.

    Returns:
        The model's sizes, and a function that reads the weight of OpenAI's name, as float32 in OpenAI's shape.

    Example:
        >>> hparams, read_weight = open_weights(find_model_dir("shakespeare"))
        >>> read_weight("model/wte").shape
        (1024, 256)
    """
    if huggingface.is_huggingface_folder(folder):
        hparams = huggingface.read_hparams(folder)
        tensors = huggingface.read_tensors(folder, hparams)
    else:
        hparams = HParams.from_json(folder / "hparams.json")
        checkpoint.check_parameter_count(folder, hparams.n_params, step)
        tensors = checkpoint.read_tensors(folder, hparams.shapes, step)
    return hparams, lambda name: np.asarray(tensors[name])


def _open_source(folder: Path, step: int | None) -> Source:
    form = find_form(folder, step)
    if form in ("hf", "keras-nlp"):
        check_has_no_step(folder, step)
    if form == "keras-nlp":
        with without_tensorflow_noise():
            from gpt2_tf.pretrained import keras_nlp

        source = Source(form, *keras_nlp.load_preset(folder))
    elif form == "hf":
        hparams, read_weight = open_weights(folder, step)
        enc = hf_tokenizer.read_encoder(folder, hparams.n_vocab) if hf_tokenizer.has_tokenizer(folder) else None
        source = Source(form, hparams, read_weight, enc)
    else:
        hparams, read_weight = open_weights(folder, step)
        enc = Encoder.from_folder(folder) if _any_exists(folder, VOCABULARY) else None
        source = Source(form, hparams, read_weight, enc, _step(folder, step) or 0)
    if source.enc and source.enc.n_vocab != source.hparams.n_vocab:
        raise ValueError(
            f"{folder}: the vocabulary has {source.enc.n_vocab} tokens, but n_vocab is {source.hparams.n_vocab}"
        )
    return source


def _step(folder: Path, step: int | None) -> int | None:
    return checkpoint.step_of(checkpoint.latest_checkpoint(folder, step))


def _any_exists(folder: Path, names: tuple[str, ...]) -> bool:
    return any((folder / name).exists() for name in names)


def _read_weights(source: Source, title: str) -> Generator[np.ndarray]:
    """Yield the weights in the order of `hparams.shapes`, one at a time."""
    with progress.bar(desc=title, total=4 * source.hparams.n_params, unit="B", unit_scale=True) as bar:
        for name, shape in source.hparams.shapes.items():
            yield source.read_weight(name)
            bar.update(4 * int(np.prod(shape)))


def _write(folder: Path, to: str, source: Source, arrays: Iterator[np.ndarray]) -> None:
    """Write the model to a folder of the form `to`."""
    hparams, enc = source.hparams, source.enc
    if to == "hf":
        return huggingface.save(folder, hparams, arrays, enc)
    if to == "keras-nlp":
        with without_tensorflow_noise():
            from gpt2_tf.pretrained import keras_nlp

        return keras_nlp.save_preset(folder, hparams, arrays, enc)
    step = source.step if to == "gpt-2-simple" else None
    name = checkpoint.NAME if step is None else f"model-{step}"
    tensor_bundle.write_bundle(folder / name, hparams.shapes, arrays)
    for file_name, content in checkpoint.pointer_files(name, step).items():
        (folder / file_name).write_text(content)
    dataclasses.replace(hparams, dropout=0).to_json(folder / "hparams.json")
    if enc is not None:
        enc.save(folder)
