"""OpenAI's TensorFlow checkpoint, `model.ckpt.*`, <-> variables by name; what was fine-tuned may be named otherwise.

It knows names and shapes, not the model, so that `model.py` may import it.
"""

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import keras
import tensorflow as tf

from gpt2_tf import bundle
from gpt2_tf.bundle import NAME, data_sizes, read_index

Variables = Mapping[str, keras.Variable]
STEP = re.compile(r"(?:model|optimizer)-(\d+)\.(?:index|data-\d+-of-\d+)")


def restore(folder: str | os.PathLike, variables: Variables) -> None:
    """Fills the variables, each from the tensor of its name, one tensor at a time.

    Raises:
        FileNotFoundError: `model.ckpt.index` or a data file is missing.
        ValueError: the tensors' names, shapes or dtypes aren't the variables' (all differences are named), a data
            file is of another size than the index says, or a tensor fails its checksum (it is named).
    """
    prefix = bundle.prefix(folder)
    entries = read_index(f"{prefix}.index")
    _check_names(prefix, entries, variables)
    _check_sizes(prefix, entries)
    for name, variable in variables.items():
        try:  # the variable takes the tensor's memory as its own
            [tensor] = tf.raw_ops.RestoreV2(
                prefix=str(prefix), tensor_names=[name], shape_and_slices=[""], dtypes=[tf.float32]
            )
            variable.assign(tensor)
        except tf.errors.OpError as error:
            raise ValueError(f"{prefix}: {name} is damaged; fetch the file again ({_first_line(error)})") from None


def check_count(folder: str | os.PathLike, n_params: int) -> None:
    """Raises ValueError where a model of `n_params` weights is so far from the checkpoint that none should be built.

    It might not fit in memory; of a model that is nearer, `restore` names each difference.
    """
    path = Path(f"{bundle.prefix(folder)}.index")
    found = sum(data_sizes(read_index(path)).values()) // 4  # float32
    if n_params > 10 * found:
        raise ValueError(f"hparams.json describes a model of {n_params:,} weights, but {path} lists {found:,}")


def restore_state(folder: str | os.PathLike, step: int, variables: Variables) -> None:
    """Fills the variables from `optimizer-<step>.*`. Raises ValueError where they don't fit."""
    names = sorted(variables)
    try:
        tensors = tf.raw_ops.RestoreV2(
            prefix=str(Path(folder, f"optimizer-{step}")),
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            dtypes=[tf.as_dtype(variables[name].dtype) for name in names],
        )
    except tf.errors.OpError as error:
        raise ValueError(f"{folder}: the state of step {step} is damaged or another's ({_first_line(error)})") from None
    for name, tensor in zip(names, tensors, strict=True):
        variables[name].assign(tensor)


def save(
    folder: str | os.PathLike, variables: Variables, step: int | None = None, state: Variables | None = None
) -> None:
    """Writes the variables as float32 to `model.ckpt.*`, and the `checkpoint` file which names it.

    All is written beside its place first and moved there whole. With a `step`, to `model-<step>.*`, and `state`, as it
    is, to `optimizer-<step>.*`; the file `checkpoint` comes last, and then the other steps' files go.

    Raises:
        OSError: the folder can't be made or written, or the disk is full.
    """
    folder, name = Path(folder), NAME if step is None else f"model-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as part:
        _write(folder, Path(part, name), {name: tf.cast(value, tf.float32) for name, value in variables.items()})
        if state:
            _write(folder, Path(part, f"optimizer-{step}"), state)
        Path(part, "checkpoint").write_text(f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "{name}"\n')
        # An index after its data, and last of all what names the step: with it, all else is new too.
        for path in sorted(Path(part).iterdir(), key=lambda path: (path.name == "checkpoint", path.suffix == ".index")):
            os.replace(path, folder / path.name)
    if step is not None:
        for path in folder.iterdir():
            if (match := STEP.fullmatch(path.name)) and int(match[1]) != step:
                path.unlink()


def _write(folder: Path, prefix: Path, tensors: Mapping) -> None:
    names = sorted(tensors)  # the order of OpenAI's data file
    try:
        tf.raw_ops.SaveV2(
            prefix=str(prefix),
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            tensors=[tf.convert_to_tensor(tensors[name]) for name in names],
        )
    except tf.errors.OpError as error:
        raise OSError(f"{folder / prefix.name} could not be written: {_first_line(error)}") from None


def _check_names(prefix: Path, entries: Mapping, variables: Variables) -> None:
    differences = [f"{name} is missing" for name in variables if name not in entries]
    differences += [f"{name} isn't of this model" for name in entries if name not in variables]
    for name in variables.keys() & entries.keys():
        shape, entry = tuple(variables[name].shape), entries[name]
        if (entry.shape, entry.dtype) != (shape, "float32"):
            differences.append(f"{name} is {entry.dtype} {list(entry.shape)}, expected float32 {list(shape)}")
    if differences:
        raise ValueError(
            f"{prefix}.index doesn't fit the hyperparameters in hparams.json: " + "; ".join(sorted(differences))
        )


def _check_sizes(prefix: Path, entries: Mapping) -> None:
    sizes = data_sizes(entries)
    for shard, expected in sizes.items():
        path = Path(f"{prefix}.data-{shard:05d}-of-{len(sizes):05d}")
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing; it holds the weights that {prefix}.index lists")
        with open(path, "rb") as file:  # so that what may not be read isn't called damaged
            size = file.seek(0, os.SEEK_END)
        if size != expected:
            raise ValueError(f"{path} has {size:,} bytes, but {prefix}.index says {expected:,}; fetch the file again")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
