"""The safetensors format, read and written a tensor at a time: a JSON header that says where each lies, then the bytes.

The library of that name writes only what is in memory at once. Format: github.com/huggingface/safetensors.
"""

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

MOST_HEADER = 100_000_000  # bytes, the library's own limit
FLOATS = {"F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16}


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file, read when NumPy asks for it (`np.asarray`), always as float32.

    Attributes:
        dtype: the format's name of its type, "F32" and so on.
        shape: its dimensions.
        offset, size: its place in the file, in bytes.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.part(0, math.prod(self.shape)).reshape(self.shape)

    def reshape(self, shape: tuple[int, ...]) -> "Stored":
        return dataclasses.replace(self, shape=shape)

    def part(self, start: int, stop: int) -> np.ndarray:
        """The numbers from `start` to `stop` in the order of the file, float32 [stop - start]."""
        kind = np.dtype(FLOATS[self.dtype])
        with open(self.path, "rb") as file:
            file.seek(self.offset + start * kind.itemsize)
            values = np.frombuffer(file.read((stop - start) * kind.itemsize), kind)
        return values.astype(np.float32, copy=False)


def read(path: str | os.PathLike) -> dict[str, Stored]:
    """The tensors of a file by name, none of them read yet.

    Raises:
        OSError: the file can't be read.
        ValueError: it isn't a whole safetensors file.
    """
    path = Path(path)
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        try:
            if size < 8 or length > min(size - 8, MOST_HEADER):
                raise ValueError(f"its header would have {length:,} bytes, and the file has {size:,}")
            return _tensors(path, json.loads(file.read(length)), 8 + length, size)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}; fetch it again") from None


def _tensors(path: Path, header: object, start: int, size: int) -> dict[str, Stored]:
    if not isinstance(header, dict):
        raise ValueError(f"its header is a JSON {type(header).__name__}, not an object")
    tensors, end = {}, start
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape, (begin, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        except (TypeError, KeyError, ValueError):
            raise ValueError(f"{name} has no dtype, shape and data_offsets") from None
        whole = all(type(number) is int and number >= 0 for number in (*shape, begin, stop))
        if not whole or not begin <= stop <= size - start:
            raise ValueError(f"{name} lies at {begin} to {stop} of {size - start:,} bytes")
        if dtype in FLOATS and stop - begin != math.prod(shape) * np.dtype(FLOATS[dtype]).itemsize:
            raise ValueError(f"{name} is {dtype} {list(shape)} and has {stop - begin:,} bytes")
        tensors[name] = Stored(path, dtype, shape, start + begin, stop - begin)
        end = max(end, start + stop)
    if end != size:
        raise ValueError(f"it has {size:,} bytes, but its header says {end:,}")
    return tensors


def write(path: str | os.PathLike, shapes: Mapping[str, tuple[int, ...]], arrays: Iterator[np.ndarray]) -> None:
    """Writes float32 tensors: their shapes by name, and what they hold, in the same order and only once asked for.

    Raises:
        OSError: the disk is full, and so on.
    """
    header, offset = {"__metadata__": {"format": "pt"}}, 0  # without it, transformers refuses the file
    for name, shape in shapes.items():
        end = offset + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)  # so that the tensors are aligned
    with open(path, "wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        for shape, array in zip(shapes.values(), arrays, strict=True):
            if array.size != math.prod(shape):
                raise ValueError(f"a tensor of shape {list(array.shape)} came for {list(shape)}")
            file.write(np.ascontiguousarray(array, "<f4").data)
