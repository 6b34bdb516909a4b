"""A folder's checkpoint in OpenAI's form: finding, restoring, saving and removing it.

OpenAI's folders hold `model.ckpt.*`. The folders of a training run hold `model-1000.*`, where 1000 is the step, as
gpt-2-simple and nshepperd's fork of OpenAI's code do. The small text file `checkpoint` names the latest checkpoint.
TensorFlow is not needed.
"""

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpt2_tf.files.atomic import move_into_place, staging_folder
from gpt2_tf.weights.lazy_tensor import LazyTensor
from gpt2_tf.weights.tensor_bundle import (
    Entry,
    check_data_files,
    data_sizes,
    lazy_tensors,
    read_index,
    write_bundle,
)

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    Variables = Mapping[str, keras.Variable]
    Values = Mapping[str, keras.Variable | tf.Tensor | np.ndarray]

NAME = "model.ckpt"  # OpenAI's name of a checkpoint
STEP_FILE = re.compile(r"(?:model|optimizer)-(\d+)\.(?:index|data-\d+-of-\d+)")


def latest_checkpoint(folder: str | os.PathLike) -> Path:
    """Return the path of a folder's checkpoint without the endings of its files.

    The checkpoint is the one that the file `checkpoint` names, as for `tf.train.latest_checkpoint`. Without that
    checkpoint, `model.ckpt` is returned, whether it exists or not.

    Example:
        >>> save(".", {"x": np.ones(2)}, step=1000)
        >>> latest_checkpoint(".").name
        'model-1000'
    """
    with contextlib.suppress(OSError):
        named = re.match(rb'model_checkpoint_path: "([^"\n]+)"', Path(folder, "checkpoint").read_bytes())
        # Only the last part of a path counts: the folder may have been moved since the file was written.
        name = re.split(r"[/\\]", named[1].decode(errors="replace"))[-1] if named else ""
        if name and Path(folder, f"{name}.index").exists():
            return Path(folder, name)
    return Path(folder, NAME)


def step_of(prefix: str | os.PathLike) -> int | None:
    """Return the step in a checkpoint's name, or None for a checkpoint without a step.

    Example:
        >>> step_of("models/run/model-1000"), step_of("models/124M/model.ckpt")
        (1000, None)
    """
    match = re.fullmatch(r"model-(\d+)", Path(prefix).name)
    return int(match[1]) if match else None


def pointer_files(name: str, step: int | None = None) -> dict[str, str]:
    """Return the text files that belong beside a checkpoint, by their names.

    `checkpoint` names the checkpoint. With a step, `counter` holds the step, from which the forks resume.

    Example:
        >>> pointer_files("model-7", step=7)["counter"]
        '7\\n'
    """
    files = {"checkpoint": f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "{name}"\n'}
    return files if step is None else files | {"counter": f"{step}\n"}


def check_parameter_count(folder: str | os.PathLike, n_params: int) -> None:
    """Check that a model of `n_params` weights is not far larger than the folder's checkpoint.

    Such a model might not fit in memory, so this check comes before the model is built. Ten times as many weights
    are allowed: for those, `read_tensors` names each difference.

    Raises:
        OSError: the index can't be read.
        ValueError: `n_params` is more than ten times the count of weights, or the index is damaged.

    Example:
        >>> write_bundle("model.ckpt", {"x": (2,)}, [np.ones(2, np.float32)])
        >>> check_parameter_count(".", 20)
    """
    path = Path(f"{latest_checkpoint(folder)}.index")
    found = sum(data_sizes(read_index(path)).values()) // 4  # 4 bytes per float32
    if n_params > 10 * found:
        raise ValueError(f"hparams.json describes a model of {n_params:,} weights, but {path} lists {found:,}")


def read_tensors(folder: str | os.PathLike, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, LazyTensor]:
    """Return the weights of a folder's checkpoint by name. Their values are read later, by `np.asarray`.

    Args:
        folder: the folder of the checkpoint.
        shapes: the expected shape of each weight by name; all weights are float32.

    Raises:
        FileNotFoundError: the index or a data file is missing.
        ValueError: a name, shape or dtype differs from the expected one (all differences are named), a data file has
            another size than the index implies, or the index is damaged.

    Example:
        >>> write_bundle("model.ckpt", {"x": (2,)}, [np.ones(2, np.float32)])
        >>> np.asarray(read_tensors(".", {"x": (2,)})["x"])
        array([1., 1.], dtype=float32)
    """
    prefix = latest_checkpoint(folder)
    entries = read_index(f"{prefix}.index")
    if differences := _differences(entries, shapes):
        raise ValueError(f"{prefix}.index doesn't fit the hyperparameters in hparams.json: {'; '.join(differences)}")
    check_data_files(prefix, entries)
    return lazy_tensors(prefix, entries)


def restore(folder: str | os.PathLike, variables: "Variables") -> None:
    """Assign to each variable the tensor of its name, one tensor at a time.

    Args:
        folder: the folder of the checkpoint.
        variables: the model's variables by OpenAI's names, as `GPT2.named_weights` returns them.

    Raises:
        FileNotFoundError: the index or a data file is missing.
        ValueError: as for `read_tensors`, or a tensor fails its checksum (the tensor is named).

    Example:
        >>> from gpt2_tf.pretrained.load import find_model_dir
        >>> restore(find_model_dir("shakespeare"), model.named_weights())
    """
    tensors = read_tensors(folder, {name: tuple(variable.shape) for name, variable in variables.items()})
    for name, variable in variables.items():
        variable.assign(np.asarray(tensors[name]))


def restore_state(folder: str | os.PathLike, step: int, variables: "Variables") -> None:
    """Assign the training state of a step to the variables, from `optimizer-<step>.*`.

    Args:
        folder: the folder of the training run.
        step: the step of the checkpoint, as in `model-1000`.
        variables: the optimizer's variables and the run's counters by name.

    Raises:
        ValueError: the state is missing or damaged, or differs from the variables in names, shapes or dtypes.

    Example:
        >>> import keras
        >>> momentum = keras.Variable([0.0, 0.0])
        >>> save(".", {"x": np.ones(2)}, step=7, state={"momentum": keras.Variable([1.0, 2.0])})
        >>> restore_state(".", 7, {"momentum": momentum}); momentum.numpy()
        array([1., 2.], dtype=float32)
    """
    import keras

    prefix = Path(folder, f"optimizer-{step}")
    try:
        entries = read_index(f"{prefix}.index")
        tensors = lazy_tensors(prefix, entries)
        for name in sorted(variables):
            variable = variables[name]
            if name not in entries:
                raise ValueError(f"{name} is missing")
            expected = keras.backend.standardize_dtype(variable.dtype), tuple(variable.shape)
            found = entries[name].dtype, entries[name].shape
            if found != expected:
                raise ValueError(f"{name} is {found[0]} {list(found[1])}, expected {expected[0]} {list(expected[1])}")
        values = {name: np.asarray(tensors[name]) for name in variables}
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: the state of step {step} is damaged or of another run ({error})") from None
    for name, variable in variables.items():
        variable.assign(values[name])


def save(folder: str | os.PathLike, weights: "Values", step: int | None = None, state: "Values | None" = None) -> None:
    """Save weights as float32 in `model.ckpt.*`, and write the file `checkpoint`, which names them.

    All files are first written to a temporary folder and then moved to their places; `checkpoint` is moved last. All
    files are on the disk when this function returns, so that older checkpoints may be removed.

    Args:
        folder: made if it is missing.
        weights: variables, tensors or arrays by OpenAI's names.
        step: with a step such as 1000, the weights go to `model-1000.*`, and `counter` holds the step.
        state: the training state, saved with its own dtypes in `optimizer-1000.*`; needs a step.

    Raises:
        OSError: the folder can't be made or written, or the disk is full.

    Example:
        >>> save("run", {"x": np.ones(2)}, step=1000)
        >>> sorted(path.name for path in Path("run").iterdir())
        ['checkpoint', 'counter', 'model-1000.data-00000-of-00001', 'model-1000.index']
    """
    folder, name = Path(folder), NAME if step is None else f"model-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    with staging_folder(folder) as staging:
        _write(folder, staging / name, weights, np.float32)
        if state:
            _write(folder, staging / f"optimizer-{step}", state)
        for file_name, content in pointer_files(name, step).items():
            Path(staging, file_name).write_text(content)
        # An index is moved after its data, and the file that names the checkpoint last of all.
        paths = sorted(staging.iterdir(), key=lambda path: (path.name == "checkpoint", path.suffix == ".index"))
        move_into_place(paths, folder)


def remove_other_steps(folder: str | os.PathLike, step: int) -> None:
    """Remove the checkpoints of all steps but one.

    Example:
        >>> save("other", {"x": np.ones(2)}, step=1)
        >>> save("other", {"x": np.ones(2)}, step=2)
        >>> remove_other_steps("other", 2)
        >>> sorted(path.name for path in Path("other").glob("*.index"))
        ['model-2.index']
    """
    for path in Path(folder).iterdir():
        if (match := STEP_FILE.fullmatch(path.name)) and int(match[1]) != step:
            path.unlink()


def _differences(entries: Mapping[str, Entry], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Describe each difference between a checkpoint and the expected float32 weights."""
    differences = [f"{name} is missing" for name in shapes if name not in entries]
    differences += [f"{name} isn't of this model" for name in entries if name not in shapes]
    for name in shapes.keys() & entries.keys():
        shape, entry = tuple(shapes[name]), entries[name]
        if (entry.shape, entry.dtype) != (shape, "float32"):
            differences.append(f"{name} is {entry.dtype} {list(entry.shape)}, expected float32 {list(shape)}")
    return sorted(differences)


def _write(folder: Path, prefix: Path, values: "Values", dtype: type | None = None) -> None:
    """Write values as the checkpoint `prefix`, one after the other in order of their names.

    An error names the place in `folder` for which the files are meant.
    """
    import keras

    def array(value: object) -> np.ndarray:
        converted = keras.ops.convert_to_numpy(value)
        return converted if dtype is None else converted.astype(dtype, copy=False)

    names = sorted(values)  # the order in OpenAI's data file
    shapes = {name: tuple(values[name].shape) for name in names}
    try:
        write_bundle(prefix, shapes, (array(values[name]) for name in names))
    except OSError as error:
        raise OSError(f"{folder / prefix.name} could not be written: {error.strerror or error}") from None
