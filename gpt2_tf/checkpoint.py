"""OpenAI's TensorFlow checkpoint, `model.ckpt.*`, <-> variables by name; what was fine-tuned may be named otherwise.

It knows names and shapes, not the model, so that `model.py` may import it.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import keras
import tensorflow as tf

from gpt2_tf import bundle
from gpt2_tf.bundle import NAME, read_index

Variables = Mapping[str, keras.Variable]


def restore(folder: str | os.PathLike, variables: Variables) -> None:
    """Fills the variables, each from the tensor of its name, one tensor at a time.

    Raises:
        FileNotFoundError: `model.ckpt.index` or a data file is missing.
        ValueError: the tensors' names, shapes or dtypes aren't the variables' (all differences are named), a data
            file is of another size than the index says, or a tensor fails its checksum (it is named).
    """
    prefix = bundle.prefix(folder)
    entries = read_index(f"{prefix}.index")
    bundle.check(prefix, entries, {name: variable.shape for name, variable in variables.items()})
    reader = tf.train.load_checkpoint(str(prefix))
    for name, variable in variables.items():
        try:
            variable.assign(reader.get_tensor(name))
        except (tf.errors.OpError, IndexError) as error:  # IndexError: fewer bytes than the index says
            raise ValueError(f"{prefix}: {name} is damaged; fetch the file again ({_first_line(error)})") from None


def save(folder: str | os.PathLike, variables: Variables, step: int | None = None) -> None:
    """Writes the variables as float32 to `model.ckpt.*`, and the `checkpoint` file which names it.

    With a `step` to `model-1000.*`, and `counter` too, as gpt-2-simple and nshepperd's fork keep a run's folder.

    All is written beside its place first and moved there whole.

    Raises:
        OSError: the folder can't be made or written, or the disk is full.
    """
    folder, prefix = Path(folder), NAME if step is None else f"model-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(variables)  # the order of OpenAI's data file
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as part:
        try:
            tf.raw_ops.SaveV2(
                prefix=str(Path(part, prefix)),
                tensor_names=names,
                shape_and_slices=[""] * len(names),
                tensors=[tf.cast(variables[name], tf.float32) for name in names],
            )
        except tf.errors.OpError as error:
            raise OSError(f"{folder / prefix} could not be written: {_first_line(error)}") from None
        for name, content in bundle.beside(prefix, step).items():
            Path(part, name).write_text(content)
        # The index last: with a new index, the data is new too.
        for path in sorted(Path(part).iterdir(), key=lambda path: path.suffix == ".index"):
            os.replace(path, folder / path.name)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
