"""Write a SavedModel that takes text and gives text: encoding, sampling and decoding are in its graph.

TensorFlow alone runs it, in any language, and TensorFlow Serving serves it. `gpt2_tf.serving.signatures` describes its
functions.
"""

import os
import shutil
import sys
from pathlib import Path

import tensorflow as tf

from encoder import Encoder
from gpt2_tf.files.atomic import move_into_place, staging_folder
from gpt2_tf.generation.generate import check_vocabulary
from gpt2_tf.generation.params import DEFAULT_LENGTH, SamplingParams
from gpt2_tf.hparams import is_whole
from gpt2_tf.model.gpt2 import GPT2
from gpt2_tf.model.persistence import check_saved_model_path
from gpt2_tf.serving.compare import compare_with_model
from gpt2_tf.serving.signatures import Limits, Signatures
from gpt2_tf.serving.tensorflow_serving import BATCHING_PARAMETERS, write_warm_up_requests

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
    """Write the SavedModel `out/1`, or the next number where `out` has exports already.

    The export appears complete or not at all. `out/batching_parameters.txt` is for TensorFlow Serving's option
    `--batching_parameters_file`. With the extra `[serving]`, TensorFlow Serving also finds requests to warm up with.

    Args:
        model: the model to export; LoRA adapters are merged.
        enc: its encoder, of the same vocabulary.
        out: a folder, which is made if it is missing.
        length: at most this many new tokens where a request gives no length. None: 100, or as many as fit.
        max_length: the largest length that a request may give, in tokens. None: the model's window, n_ctx.
        max_batch: the most rows per request. Default: 16.
        temperature: used if a request gives no temperature; at least 0. Default: 1.
        top_k: used if a request gives no top_k; 0, the default, keeps all tokens.
        top_p: used if a request gives no top_p; above 0 and at most 1. The default 1 keeps all tokens.
        seed: used if a request gives no seed; an integer of 64 bits. Default: 0.
        dtype: the weights' dtype, "float32" or "bfloat16". bfloat16 halves their size and keeps about three digits.
        check: load the export in a process that has TensorFlow alone, and compare its answers with the model's. A line
            on stderr gives the result.

    Returns:
        The folder of the SavedModel.

    Raises:
        ValueError: an argument is out of its range, TensorFlow cannot load from a path such as `out`, or the check
            fails. Nothing is written.
        OSError: `out` is not a folder and cannot be made one, or the disk is full.

    Example:
        >>> import tensorflow as tf
        >>> from gpt2_tf.serving import export
        >>> folder = export(model, enc, "gpt2", length=20)
        >>> folder.as_posix()
        'gpt2/1'
        >>> loaded = tf.saved_model.load(folder)
        >>> answer = loaded.generate(text=["ROMEO:"], temperature=[0.0], length=[5])
        >>> answer["finish_reason"].numpy()
        array([b'length'], dtype=object)
    """
    check_vocabulary(model, enc)
    limits = _checked_limits(model, max_length, max_batch)
    defaults = _checked_defaults(enc, limits, length, temperature, top_k, top_p, seed)
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, but must be one of {', '.join(DTYPES)}")
    out = _checked_folder(out)
    with staging_folder(out) as staging:
        version = 1 + max((int(entry.name) for entry in out.iterdir() if entry.name.isdecimal()), default=0)
        folder, batching = staging / str(version), staging / "batching_parameters.txt"
        model = copy_with_dtype(model, dtype)
        _save(Signatures(model, enc, defaults, limits), folder, out)
        write_warm_up_requests(out.resolve().name, folder)
        if check:
            count = compare_with_model(folder, model, enc, limits.max_length)
            print(
                f"gpt2-tf: checked: {count} requests answered as the model does, in a process with TensorFlow alone",
                file=sys.stderr,
            )
        batching.write_text(BATCHING_PARAMETERS.format(max_batch=max_batch))
        move_into_place([batching, folder], out)
    return out / str(version)


def _checked_limits(model: GPT2, max_length: int | None, max_batch: int) -> Limits:
    n_ctx = model.hparams.n_ctx
    max_length = n_ctx if max_length is None else max_length
    if not is_whole(max_length, 1, n_ctx):
        raise ValueError(f"max_length is {max_length!r}, but must be 1 to {n_ctx:,}, the model's window in tokens")
    if not is_whole(max_batch, 1, 2**31 - 1):
        raise ValueError(f"max_batch is {max_batch!r}, but must be a whole number of at least 1")
    return Limits(max_length, max_batch)


def _checked_defaults(
    enc: Encoder,
    limits: Limits,
    length: int | None,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
) -> SamplingParams:
    length = min(DEFAULT_LENGTH, limits.max_length) if length is None else length
    if not is_whole(length, 1, limits.max_length):
        raise ValueError(f"length is {length!r}, but must be 1 to {limits.max_length:,}, the value of max_length")
    if seed is None:
        raise ValueError("seed is None, but an export needs a number: requests without a seed get it")
    params = SamplingParams(length=length, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    return params.for_vocabulary(enc)


def _checked_folder(out: str | os.PathLike) -> Path:
    """The folder as a Path, before anything is written."""
    check_saved_model_path(out)
    if Path(out).exists() and not Path(out).is_dir():
        raise NotADirectoryError(f"{out} is not a folder; an export is a folder with a folder per version")
    return Path(out)


def copy_with_dtype(model: GPT2, dtype: str) -> GPT2:
    """The model itself, or a copy whose variables have the dtype and whose LoRA adapters are merged.

    Example:
        >>> copy_with_dtype(model, "bfloat16").wte.dtype
        'bfloat16'
    """
    if dtype == model.variable_dtype == model.compute_dtype and not model.lora_rank:
        return model
    copy = GPT2(model.hparams, w_init_stdev=None, dtype=dtype)
    weights = model.merged_weights()
    for name, variable in copy.named_weights().items():
        variable.assign(tf.cast(weights[name], dtype))
    return copy


def _save(signatures: Signatures, folder: Path, out: Path) -> None:
    module = tf.Module()
    # Only the variables: the model itself would bring along what Keras saves of a model.
    module.weights = [variable.value for variable in signatures.model.weights]
    functions = signatures.functions()
    # As attributes, the functions can be called from Python with lists, and inputs may be left out.
    for name in functions.keys() - {"serving_default"}:
        setattr(module, name, functions[name])
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    try:
        tf.saved_model.save(module, folder, functions, options)
    except tf.errors.OpError as error:  # such as a full disk, for which TensorFlow has several kinds of errors
        reason = error.message.rpartition("; ")[2]
        raise OSError(f"{out} could not be written: {reason}") from error
    shutil.rmtree(folder / "assets", ignore_errors=True)  # an empty folder
