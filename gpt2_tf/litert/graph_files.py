"""The folder from which the engine runs a model: its weights, its graphs, and XNNPACK's packed form of the weights.

    weights.bin            the weights, as `model_file.layout` says
    decode-1x128.tflite    the graphs of a batch and capacity; they read weights.bin
    xnnpack-....cache      the weights as XNNPACK packs them for this machine, so that a start needs no packing
    NAME.check             size and checksum of the file NAME

LiteRT trusts its files: a damaged one may end the process, or give other numbers. So each file is checked before it is
used, and made again where it is missing or damaged. A file whose times have not changed since its last check is not
read again. A folder whose files are all there may be read-only.
"""

import contextlib
import errno
import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from gpt2_tf.files.atomic import atomic_path, atomic_write, staging_folder
from gpt2_tf.hparams import HParams
from gpt2_tf.litert.graph import Signature
from gpt2_tf.litert.kept import WEIGHTS, is_intact, seal, writing
from gpt2_tf.litert.model_file import build, layout, pack, read_scales, write_weights

LENGTHS = (16, 128)  # how many tokens of one row a graph runs together
VERIFIED = 6  # how many tokens of a draft one graph verifies; for up to six rows, XNNPACK takes nearly the same time
OpenWeights = Callable[[], AbstractContextManager[Callable[[str], np.ndarray]]]  # see `prepare`


def prepare(
    folder: Path,
    hparams: HParams,
    weights: str,
    open_weights: OpenWeights,
) -> None:
    """Write a model's weights into its folder, unless they are there and intact.

    Args:
        folder: made if missing.
        hparams: the model's sizes.
        weights: "float32" or "int8".
        open_weights: called where the weights have to be written. It gives a context with a function that returns the
            weight of OpenAI's name, as float32 in OpenAI's shape.

    Raises:
        NotKept: the folder can't be written.

    Example:
        >>> hparams = HParams(n_vocab=300, n_ctx=32, n_embd=16, n_head=2, n_layer=2)
        >>> def read_weight(name):
        ...     return np.ones(hparams.shapes[name], np.float32)
        >>> prepare(Path("graphs"), hparams, "int8", lambda: contextlib.nullcontext(read_weight))
        >>> sorted(path.name for path in Path("graphs").iterdir())
        ['weights.bin', 'weights.bin.check']
    """
    if is_intact(folder / WEIGHTS):
        return
    with writing(folder):
        if not is_intact(folder / WEIGHTS):  # another process may have written them meanwhile
            path = folder / WEIGHTS
            with atomic_path(path) as temporary, open(temporary, "w+b") as file, open_weights() as read_weight:
                write_weights(file, 0, layout(hparams, weights), read_weight)
            seal(folder / WEIGHTS)


def graph_file(folder: Path, hparams: HParams, weights: str, kind: str, batch: int, capacity: int) -> Path:
    """Return the file of the graphs of this kind, batch and capacity. It is written where it is missing or damaged.

    Args:
        folder: a folder that `prepare` has filled, for the same `hparams` and `weights`.
        hparams: the model's sizes.
        weights: "float32" or "int8".
        kind: "decode" for the next token's logits, "verify" and "score" for the logits of a few or of many tokens of
            one row.
        batch: the number of rows.
        capacity: the number of columns of the KV cache.

    Raises:
        NotKept: the folder can't be written.
        FileNotFoundError: the folder was removed.

    Example:
        >>> graph_file(engine.decoder.folder, engine.hparams, "float32", "decode", batch=2, capacity=128).name
        'decode-2x128.tflite'
    """
    path = folder / f"{kind}-{batch}x{capacity}.tflite"
    if is_intact(path):
        return path
    if not (folder / WEIGHTS).exists():
        raise FileNotFoundError(errno.ENOENT, "was removed while a model used it; load the model again", str(folder))
    with writing(folder):
        if not is_intact(path):
            stored = layout(hparams, weights)
            with open(folder / WEIGHTS, "rb") as file:
                scales = read_scales(file, 0, stored)
            atomic_write(path, bytes(pack(build(hparams, stored, scales, signatures(kind, batch, capacity)))))
            seal(path)
    return path


def signatures(kind: str, batch: int, capacity: int) -> list[Signature]:
    """List the graphs of one file.

    Example:
        >>> [signature.name for signature in signatures("decode", batch=1, capacity=256)]
        ['decode_1x1_256', 'prefill_1x16_256', 'prefill_1x128_256']
    """
    if batch > 1:
        return [Signature(batch, 1, capacity, logits=True)]
    with_logits = {"decode": (1,), "verify": (1, VERIFIED), "score": LENGTHS}[kind]
    return [
        Signature(1, seq, capacity, logits)
        for logits, seqs in ((True, with_logits), (False, LENGTHS))
        for seq in sorted({min(seq, capacity) for seq in seqs})
    ]


def weight_cache(folder: Path, write: Callable[[Path], object]) -> Path:
    """Return XNNPACK's file of packed weights for this machine. It is written where it is missing or damaged.

    Args:
        folder: a folder that `prepare` has filled.
        write: called with the path of a new file, which it makes XNNPACK write.

    Example:
        >>> folder = Path("folder")
        >>> folder.mkdir()
        >>> weight_cache(folder, write=lambda path: path.write_bytes(b"packed")).read_bytes()
        b'packed'
    """
    version = importlib.metadata.version("ai-edge-litert")
    path = folder / f"xnnpack-{version}-{_machine()}.cache"
    if is_intact(path):
        return path
    with writing(folder):
        if not is_intact(path):
            for other in folder.glob("xnnpack-*"):
                if not other.name.startswith(f"xnnpack-{version}-"):
                    other.unlink(missing_ok=True)
            with staging_folder(folder) as staging:
                write(staging / path.name)
                os.replace(staging / path.name, path)
            seal(path)
    return path


def _machine() -> str:
    """Return a text that differs where XNNPACK may pack weights differently, by the features of the CPU."""
    features = ""
    with contextlib.suppress(OSError):  # only Linux has this file
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return hashlib.sha256(f"{platform.machine()} {features}".encode()).hexdigest()[:12]
