"""OpenAI's TensorFlow checkpoint, `model.ckpt.*`, <-> variables by name; what was fine-tuned may be named otherwise.

It knows names and shapes, not the model, so that `model.py` may import it.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import keras
import tensorflow as tf

from gpt2_tf.weights import tensor_bundle
from gpt2_tf.weights.tensor_bundle import NAME, read_index

Variables = Mapping[str, keras.Variable]
PART = ".part-"
STEP = re.compile(r"(?:model|optimizer)-(\d+)\.(?:index|data-\d+-of-\d+)")


def restore(folder: str | os.PathLike, variables: Variables) -> None:
    """Fills the variables, each from the tensor of its name, one tensor at a time.

    Raises:
        FileNotFoundError: `model.ckpt.index` or a data file is missing.
        ValueError: the tensors' names, shapes or dtypes aren't the variables' (all differences are named), a data
            file is of another size than the index says, or a tensor fails its checksum (it is named).
    """
    prefix = tensor_bundle.prefix(folder)
    entries = read_index(f"{prefix}.index")
    tensor_bundle.check(prefix, entries, {name: variable.shape for name, variable in variables.items()})
    for name, variable in variables.items():
        try:  # the variable takes the tensor's memory as its own
            [tensor] = tf.raw_ops.RestoreV2(
                prefix=str(prefix), tensor_names=[name], shape_and_slices=[""], dtypes=[tf.float32]
            )
            variable.assign(tensor)
        except tf.errors.OpError as error:
            raise ValueError(f"{prefix}: {name} is damaged; fetch the file again ({_first_line(error)})") from None


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

    With a `step` to `model-1000.*`, and `counter` too, as gpt-2-simple and nshepperd's fork keep a run's folder; and
    `state`, as it is, to `optimizer-1000.*`.

    All is written beside its place first and moved there whole; `checkpoint` last. It is on the disk before this
    returns, so that an older checkpoint may go.

    Raises:
        OSError: the folder can't be made or written, or the disk is full.
    """
    folder, name = Path(folder), NAME if step is None else f"model-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PART, dir=folder) as part:
        _write(folder, Path(part, name), {name: tf.cast(value, tf.float32) for name, value in variables.items()})
        if state:
            _write(folder, Path(part, f"optimizer-{step}"), state)
        for small, content in tensor_bundle.beside(name, step).items():
            Path(part, small).write_text(content)
        # An index after its data, and last of all what names the step: with it, all else is new too.
        paths = sorted(Path(part).iterdir(), key=lambda path: (path.name == "checkpoint", path.suffix == ".index"))
        for path in paths:
            with open(path, "r+b") as file:
                os.fsync(file.fileno())
        for path in paths:
            os.replace(path, folder / path.name)
        _sync(folder)


def remove_others(folder: str | os.PathLike, step: int) -> None:
    """Removes the checkpoints of all other steps, and what a process that was killed had begun."""
    for path in Path(folder).iterdir():
        if (match := STEP.fullmatch(path.name)) and int(match[1]) != step:
            path.unlink()
        elif path.name.startswith(PART):
            shutil.rmtree(path)


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


def _sync(folder: Path) -> None:
    """Has the disk keep what was moved into the folder, where the system can."""
    if os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # as some network file systems answer
        pass
    finally:
        os.close(descriptor)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
