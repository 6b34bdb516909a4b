"""The folder from which the engine runs a model: its weights, its graphs, and XNNPACK's packed form of the weights.

    hparams.json           the model's sizes
    weights.bin            the weights, as `model_file.layout` says
    decode-1x128.tflite    the graphs of a batch and capacity; they read weights.bin
    xnnpack-....cache      the weights as XNNPACK packs them for this machine, so that a start needs no packing
    NAME.check             size and checksum of the file NAME

LiteRT trusts its files: a damaged one may end the process, or give other numbers. So each file is checked before it is
used, and made again where it is missing or damaged. A file whose times have not changed since its last check is not
read again.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import google_crc32c
import numpy as np

from gpt2_tf.files.atomic import atomic_path, atomic_write, staging_folder
from gpt2_tf.files.lock import folder_lock
from gpt2_tf.hparams import HParams
from gpt2_tf.litert.graph import Signature
from gpt2_tf.litert.model_file import WEIGHTS, build, layout, pack, read_scales, write_weights

FORMAT = 1  # a change of the graphs or of the weights' layout takes the next number
LENGTHS = (16, 128)  # how many tokens of one row a graph runs together
CHUNK = 1 << 22  # bytes that are read at a time for a checksum
OpenWeights = Callable[[], AbstractContextManager[Callable[[str], np.ndarray]]]  # see `prepare`


def is_whole(path: Path) -> bool:
    """Return whether a file is as it was when `seal` was called, and record when this was found out.

    Example:
        >>> _ = Path("numbers").write_bytes(b"1, 2, 3")
        >>> is_whole(Path("numbers"))
        False
        >>> seal(Path("numbers"))
        >>> is_whole(Path("numbers"))
        True
        >>> _ = Path("numbers").write_bytes(b"1, 2, 4")
        >>> is_whole(Path("numbers"))
        False
    """
    try:
        known = json.loads(_check_file(path).read_bytes())
        status = path.stat()
        if status.st_size != known["size"]:
            return False
        if _stamp(status) == known["stamp"]:
            return True
        if _checksum(path) != known["crc32c"]:
            return False
        seal(path)
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def seal(path: Path) -> None:
    """Record the size, checksum and times of a complete file in NAME.check.

    Example:
        >>> _ = Path("numbers").write_bytes(b"1, 2, 3")
        >>> seal(Path("numbers"))
        >>> json.loads(Path("numbers.check").read_bytes())["size"]
        7
    """
    status = path.stat()
    values = {"size": status.st_size, "crc32c": _checksum(path), "stamp": _stamp(status)}
    atomic_write(_check_file(path), json.dumps(values).encode())


def prepare(
    folder: Path,
    hparams: HParams,
    weights: str,
    open_weights: OpenWeights,
) -> None:
    """Write a model's weights into its folder, unless they are there and whole.

    Args:
        folder: made if missing.
        hparams: the model's sizes.
        weights: "float32" or "int8".
        open_weights: called where the weights have to be written. It gives a context with a function that returns the
            weight of OpenAI's name, as float32 in OpenAI's shape.

    Raises:
        OSError: the folder can't be written.

    Example:
        >>> hparams = HParams(n_vocab=300, n_ctx=32, n_embd=16, n_head=2, n_layer=2)
        >>> def read_weight(name):
        ...     return np.ones(hparams.shapes[name], np.float32)
        >>> prepare(Path("graphs"), hparams, "int8", lambda: contextlib.nullcontext(read_weight))
        >>> sorted(path.name for path in Path("graphs").iterdir())
        ['hparams.json', 'weights.bin', 'weights.bin.check']
    """
    if is_whole(folder / WEIGHTS) and (folder / "hparams.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder, wait=True):
        if is_whole(folder / WEIGHTS) and (folder / "hparams.json").exists():
            return  # another process has written them meanwhile
        with atomic_path(folder / WEIGHTS) as temporary, open(temporary, "w+b") as file, open_weights() as read_weight:
            write_weights(file, 0, layout(hparams, weights), read_weight)
        values = {**hparams.to_dict(), "weights": weights}
        atomic_write(folder / "hparams.json", json.dumps(values).encode())
        seal(folder / WEIGHTS)


def graph_file(folder: Path, kind: str, batch: int, capacity: int) -> Path:
    """Return the file of the graphs of this kind, batch and capacity. It is written where it is missing or damaged.

    Args:
        folder: a folder that `prepare` has filled.
        kind: "decode" for the next token's logits, "score" for the logits of all tokens of one row.
        batch: the number of rows.
        capacity: the number of columns of the KV cache.

    Example:
        >>> graph_file(engine.decoder.folder, "decode", batch=2, capacity=128).name
        'decode-2x128.tflite'
    """
    path = folder / f"{kind}-{batch}x{capacity}.tflite"
    if not is_whole(path):
        with folder_lock(folder, wait=True):
            hparams, weights = read_sizes(folder)
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
    lengths = sorted({min(seq, capacity) for seq in LENGTHS})
    with_logits = (1,) if kind == "decode" else lengths
    return [
        Signature(1, seq, capacity, logits) for logits, seqs in ((True, with_logits), (False, lengths)) for seq in seqs
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
    path = folder / f"xnnpack-{_machine()}.cache"
    if not is_whole(path):
        with folder_lock(folder, wait=True):
            if not is_whole(path):
                with staging_folder(folder) as staging:
                    write(staging / path.name)
                    os.replace(staging / path.name, path)
                seal(path)
    return path


def read_sizes(folder: Path) -> tuple[HParams, str]:
    """Return the sizes of the model in a folder, and how its weights are stored.

    Example:
        >>> hparams, weights = read_sizes(engine.decoder.folder)
        >>> hparams.n_ctx, weights
        (256, 'float32')
    """
    values = json.loads((folder / "hparams.json").read_bytes())
    weights = values.pop("weights")
    return HParams.from_dict(values), weights


def _machine() -> str:
    """Return a text that differs where XNNPACK may pack weights differently: its version, and the CPU's features."""
    features = ""
    with contextlib.suppress(OSError):  # only Linux has this file
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    text = f"{importlib.metadata.version('ai-edge-litert')} {platform.machine()} {features}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _check_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.check")


def _stamp(status: os.stat_result) -> list[int]:
    """The times of a file: any change of its content changes one of them, even if the other is set back."""
    return [status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _checksum(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while content := file.read(CHUNK):
            crc = google_crc32c.extend(crc, content)
    return crc
