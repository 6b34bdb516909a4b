"""The safetensors format, read and written one tensor at a time.

A file holds a JSON header, which says where each tensor lies, and then the tensors' bytes. The `safetensors` library
is not used: it writes a file only from tensors that are all in memory.
Format: https://github.com/huggingface/safetensors#format
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from gpt2_tf.files.regular import open_regular
from gpt2_tf.weights.lazy_tensor import LazyTensor

MAX_HEADER = 100_000_000  # bytes; the limit of Hugging Face's library
# The format's names of dtypes -> NumPy's.
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}


def read_tensors(path: str | os.PathLike) -> dict[str, LazyTensor]:
    """Read the header of a file and return its tensors by name. Their values are read later, by `np.asarray`.

    Raises:
        OSError: the file can't be read.
        ValueError: the file is not a complete safetensors file. The tensors must fill the file without gaps or
            overlaps, each with as many bytes as its dtype and shape need, and no name may occur twice.

    Example:
        >>> write_tensors("model.safetensors", {"x": (2,)}, [np.ones(2, np.float32)])
        >>> np.asarray(read_tensors("model.safetensors")["x"])
        array([1., 1.], dtype=float32)
    """
    path = Path(path)
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        try:
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise ValueError(f"the header would have {length:,} bytes, but the file has {size:,}")
            header = json.loads(file.read(length), object_pairs_hook=_dict_without_duplicates)
            return _tensors(path, header, 8 + length, size)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a complete safetensors file: {error}; fetch it again") from None


def write_tensors(path: str | os.PathLike, shapes: Mapping[str, tuple[int, ...]], arrays: Iterable[np.ndarray]) -> None:
    """Write tensors as float32.

    Args:
        path: the new file.
        shapes: the shape of each tensor by name.
        arrays: the values in the same order. Each array is taken after the one before it is written, so a generator
            needs memory for one array only.

    Raises:
        OSError: the file can't be written, as when the disk is full.
        ValueError: an array has another count of values than its shape says.

    Example:
        >>> write_tensors("model.safetensors", {"x": (2,)}, [np.ones(2, np.float32)])
        >>> Path("model.safetensors").read_bytes()[8:35]
        b'{"__metadata__": {"format":'
    """
    # transformers refuses a file without this metadata.
    header: dict = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)  # aligns the tensors to 8 bytes
    with open(path, "wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        for (name, shape), array in zip(shapes.items(), arrays, strict=True):
            if array.size != math.prod(shape):
                raise ValueError(f"{name} has the shape {list(array.shape)}, expected {list(shape)}")
            file.write(np.ascontiguousarray(array, "<f4").data)


def _dict_without_duplicates(pairs: list[tuple[str, object]]) -> dict:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} occurs twice in the header")
    return values


def _tensors(path: Path, header: object, start: int, size: int) -> dict[str, LazyTensor]:
    """Return the tensors that a header describes.

    Args:
        start: the position of the first byte after the header.
        size: the size of the file in bytes.
    """
    if not isinstance(header, dict):
        raise ValueError(f"the header is a JSON {type(header).__name__}, not an object")
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            tensors[name] = _tensor(path, name, entry, start, size)
    end = start
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.size)):
        if tensor.offset != end:
            problem = "overlaps the tensor before it" if tensor.offset < end else "leaves a gap before it"
            raise ValueError(f"{tensor.name} at {tensor.offset - start:,} {problem}, which ends at {end - start:,}")
        end += tensor.size
    if end != size:
        raise ValueError(f"the file has {size:,} bytes, but the header describes {end:,}")
    return tensors


def _tensor(path: Path, name: str, entry: object, start: int, size: int) -> LazyTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"{name} lacks a dtype, a shape or data_offsets") from None
    if not isinstance(dtype, str) or not isinstance(shape, list):
        raise ValueError(f"{name} has the dtype {dtype!r:.40} and the shape {shape!r:.40}; expected text and a list")
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"{name} has a shape or data_offsets that are not whole numbers of at least 0")
    if not begin <= end <= size - start:
        raise ValueError(f"{name} lies at {begin:,} to {end:,}, but the tensors have {size - start:,} bytes")
    dtype = DTYPES.get(dtype, dtype)
    if dtype in DTYPES.values() and end - begin != math.prod(shape) * np.dtype(dtype).itemsize:
        raise ValueError(f"{name} is {dtype} {shape}, which {end - begin:,} bytes can't hold")
    return LazyTensor(path, name, dtype, tuple(shape), start + begin, end - begin)
