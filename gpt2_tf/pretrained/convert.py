"""A model's folder -> the same in another form, a tensor at a time and, but for KerasNLP's, without TensorFlow."""

import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from encoder import Encoder
from gpt2_tf.files import progress
from gpt2_tf.hparams import HParams
from gpt2_tf.pretrained import FORMS
from gpt2_tf.pretrained.load import VOCABULARY, find_model_dir
from gpt2_tf.weights import checkpoint, huggingface, tensor_bundle


class Source(NamedTuple):
    """A model that is read as it is needed.

    Attributes:
        form: one of `FORMS`.
        read: gives a weight by OpenAI's name, as float32 of OpenAI's shape.
        enc: None where the folder has no vocabulary.
        step: of a fork's checkpoint, `model-1000`; else 0.
    """

    form: str
    hparams: HParams
    read: Callable[[str], np.ndarray]
    enc: Encoder | None
    step: int = 0


def convert(
    model: str | os.PathLike, target: str | os.PathLike, to: str | None = None, models_dir: str | os.PathLike = "models"
) -> Path:
    """Writes a model as a folder of another form, which appears whole; a progress bar goes to stderr.

    Args:
        model: as `load` takes it, or a folder that KerasNLP's `save_to_preset` wrote.
        target: a folder that isn't there, or is empty.
        to: one of `FORMS`; None is "hf" for a model in OpenAI's form, else "openai".

    Returns:
        The folder.

    Raises:
        FileExistsError: the target is there.
        OSError, ValueError, ImportError: as `load` and the form's own, with the extra that is missing.
    """
    target = Path(target)
    if to not in (*FORMS, None):
        raise ValueError(f"there is no form {to!r}; expected {', '.join(FORMS)}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is there already; name a folder that isn't, or remove it")
    place = find_model_dir(model, models_dir)
    source = _source(place)
    to = to or ("hf" if source.form == "openai" else "openai")
    if source.enc is None:
        print(f"{place} has no vocabulary, so {target} gets none", file=sys.stderr)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.part-", dir=target.parent) as part:
        made = Path(part, target.name)
        made.mkdir()
        _write(made, to, source, _arrays(source, f"{place.name} -> {to}"))
        if target.exists():
            target.rmdir()  # Windows moves nothing over a folder
        os.replace(made, target)
    return target


def form(folder: Path) -> str:
    """In which of the `FORMS` a model's folder is."""
    if not huggingface.is_folder(folder):
        return "gpt-2-simple" if _step(folder) is not None else "openai"
    return "keras-nlp" if (folder / "metadata.json").exists() else "hf"  # KerasNLP's config.json is another


def _source(folder: Path) -> Source:
    kind = form(folder)
    if kind == "keras-nlp":
        from gpt2_tf.pretrained import keras_nlp

        source = Source(kind, *keras_nlp.load_preset(folder))
    elif kind == "hf":
        hparams = huggingface.hparams(folder)
        tensors = huggingface.tensors(folder, hparams)
        there = _any(folder, (*huggingface.VOCABULARY, "tokenizer.json"))
        enc = huggingface.encoder(folder, hparams.n_vocab) if there else None
        source = Source(kind, hparams, lambda name: np.asarray(tensors[name]), enc)
    else:
        hparams = HParams.from_json(folder / "hparams.json")
        checkpoint.check_parameter_count(folder, hparams.n_params)
        tensors = checkpoint.read_tensors(folder, hparams.shapes)
        enc = Encoder.from_folder(folder) if _any(folder, VOCABULARY) else None
        source = Source(kind, hparams, lambda name: np.asarray(tensors[name]), enc, _step(folder) or 0)
    if source.enc and source.enc.n_vocab != source.hparams.n_vocab:
        raise ValueError(
            f"{folder}: the vocabulary has {source.enc.n_vocab} tokens, but n_vocab is {source.hparams.n_vocab}"
        )
    return source


def _step(folder: Path) -> int | None:
    """The step in the name of a fork's checkpoint, `model-1000`."""
    return checkpoint.step_of(checkpoint.latest_checkpoint(folder))


def _any(folder: Path, names: tuple[str, ...]) -> bool:
    return any((folder / name).exists() for name in names)


def _arrays(source: Source, title: str) -> Iterator[np.ndarray]:
    """The weights in order of name, none of them held here."""
    with progress.bar(desc=title, total=4 * source.hparams.n_params, unit="B", unit_scale=True) as bar:
        for name, shape in source.hparams.shapes.items():
            yield source.read(name)
            bar.update(4 * int(np.prod(shape)))


def _write(folder: Path, to: str, source: Source, arrays: Iterator[np.ndarray]) -> None:
    hparams, enc = source.hparams, source.enc
    if to == "hf":
        return huggingface.save(folder, hparams, arrays, enc)
    if to == "keras-nlp":
        from gpt2_tf.pretrained import keras_nlp

        return keras_nlp.save_preset(folder, hparams, arrays, enc)
    step = source.step if to == "gpt-2-simple" else None
    name = checkpoint.NAME if step is None else f"model-{step}"
    tensor_bundle.write_bundle(folder / name, hparams.shapes, arrays)
    for file, content in checkpoint.pointer_files(name, step).items():
        (folder / file).write_text(content)
    dataclasses.replace(hparams, dropout=0).to_json(folder / "hparams.json")
    if enc is not None:
        enc.save(folder)
