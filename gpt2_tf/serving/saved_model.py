"""A model -> a SavedModel that takes text and gives text, with all of it in the graph: encoding, sampling, decoding."""

import os
import shutil
import tempfile
from pathlib import Path

import tensorflow as tf

from encoder import Encoder
from gpt2_tf.generation.generate import LENGTH, check_vocabulary
from gpt2_tf.generation.sampler import choice
from gpt2_tf.hparams import is_whole
from gpt2_tf.model.gpt2 import GPT2
from gpt2_tf.serving.check import check_export
from gpt2_tf.serving.signatures import Limits, Signatures
from gpt2_tf.serving.tensorflow_serving import BATCHING, write_warm_up_requests

MAX_BATCH = 16
DTYPES = ("float32", "bfloat16")


def export(
    model: GPT2,
    enc: Encoder,
    out: str | os.PathLike,
    *,
    length: int | None = None,
    max_length: int | None = None,
    max_batch: int = MAX_BATCH,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    dtype: str = "float32",
    check: bool = False,
) -> Path:
    """Writes `out/<version>/`, the next whole number, which appears whole, and `out/batching_parameters.txt`.

    With the extra `[serving]`, TensorFlow Serving finds requests to warm up with; without it, a line on stderr says so.

    Args:
        length: new tokens where a request doesn't say; None takes 100, or what fits.
        max_length: new tokens at most; None takes the model's window.
        max_batch: rows at most.
        temperature, top_k, top_p, seed: as `generate` says, where a request doesn't.
        dtype: of the weights; of bfloat16 they take half the space, and numbers are rounded to three digits.
        check: load it in a process that has TensorFlow alone, and compare its answers with the model's.

    Returns:
        The folder of the version.

    Raises:
        ValueError: an argument out of its range, or answers that differ; nothing is written.
        OSError: `out` is no folder and can't be made one, or the disk is full.
    """
    check_vocabulary(model, enc)
    n_ctx = model.hparams.n_ctx
    max_length = n_ctx if max_length is None else max_length
    if not is_whole(max_length, 1, n_ctx):
        raise ValueError(f"max_length is {max_length!r}, but must be 1 to {n_ctx:,}, the model's window")
    length = min(LENGTH, max_length) if length is None else length
    if not is_whole(length, 1, max_length):
        raise ValueError(f"length is {length!r}, but must be 1 to {max_length:,}, the largest length")
    if not is_whole(max_batch, 1, 2**31 - 1):
        raise ValueError(f"max_batch is {max_batch!r}, but must be a whole number, at least 1")
    if not is_whole(seed, -(2**63), 2**63 - 1):
        raise ValueError(f"seed is {seed!r}, but must be a whole number of 64 bits")
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, but must be one of {', '.join(DTYPES)}")
    choice(enc.n_vocab, temperature=temperature, top_k=top_k, top_p=top_p)  # checks them
    limits = Limits(length, max_length, max_batch, temperature, top_k, top_p, seed)

    out = Path(out)
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is not a folder; an export is one, with a folder for each version")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=out) as part:
        made = Path(part, "model")
        model = _in_dtype(model, dtype)
        _save(model, enc, limits, made)
        write_warm_up_requests(out.resolve().name, made)
        if check:
            check_export(model, enc, limits, made)
        batching = Path(part, "batching_parameters.txt")
        batching.write_text(BATCHING.format(max_batch=max_batch))
        os.replace(batching, out / batching.name)
        version = 1 + max((int(entry.name) for entry in out.iterdir() if entry.name.isdecimal()), default=0)
        os.rename(made, out / str(version))
    return out / str(version)


def _in_dtype(model: GPT2, dtype: str) -> GPT2:
    """The model, or a copy whose variables have the dtype, and adapters merged."""
    if dtype == model.variable_dtype == model.compute_dtype and not model.lora_rank:
        return model
    copy = GPT2(model.hparams, w_init_stdev=None, dtype=dtype)
    weights = model.merged_weights()
    for name, variable in copy.named_weights().items():
        variable.assign(tf.cast(weights[name], dtype))
    return copy


def _save(model: GPT2, enc: Encoder, limits: Limits, folder: Path) -> None:
    module = tf.Module()
    # The variables alone: the model itself would come with what Keras keeps of it.
    module.weights = [variable.value for variable in model.weights]
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, folder, Signatures(model, enc, limits).functions(), options)
    shutil.rmtree(folder / "assets", ignore_errors=True)  # it is empty
