"""TensorFlow's checkpoint format ("tensor bundle"), read and written without TensorFlow, one tensor at a time.

A checkpoint `PREFIX` is the file `PREFIX.index` and the data files `PREFIX.data-0000i-of-0000n`. The index is a table
that holds each tensor's dtype, shape, place and checksum. The data files hold the tensors' bytes and nothing else.
Format: tensorflow/core/protobuf/tensor_bundle.proto in TensorFlow's repository.
"""

import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np

from gpt2_tf.files.regular import open_regular
from gpt2_tf.weights.lazy_tensor import LazyTensor
from gpt2_tf.weights.leveldb_table import encode_table, mask_crc, read_table, unmask_crc
from gpt2_tf.weights.protobuf import decode_fields, encode_field

CHUNK = 1 << 20  # bytes per read of `damaged_tensors`
# TensorFlow's DataType enum by NumPy's names; bfloat16 and the 8-bit floats are those of ml_dtypes.
# NumPy has no "string".
DTYPES = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    7: "string",
    8: "complex64",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    17: "uint16",
    18: "complex128",
    19: "float16",
    22: "uint32",
    23: "uint64",
    24: "float8_e5m2",
    25: "float8_e4m3fn",
}
DTYPE_NUMBERS = {name: number for number, name in DTYPES.items()}
# The first entry of an index, under the empty key: one data file (field 1), version 1 of the format (in field 3).
HEADER = encode_field(1, 1) + encode_field(3, encode_field(1, 1))


class Entry(NamedTuple):
    """What an index says of one tensor.

    Attributes:
        dtype: NumPy's name of the dtype, or "string".
        shape: the dimensions.
        shard: the number i of the data file `.data-0000i-of-0000n` that holds the tensor.
        offset: the position of the first byte in that file.
        size: the count of bytes.
        crc32c: the CRC32C of the bytes, unmasked. For "string", a checksum of something else.

    Example:
        >>> Entry(dtype="float32", shape=(1024, 768), shard=0, offset=0, size=4 * 1024 * 768, crc32c=0).shape
        (1024, 768)
    """

    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc32c: int


def read_index(path: str | os.PathLike) -> dict[str, Entry]:
    """Read a file such as `model.ckpt.index`.

    Returns:
        Each tensor's entry by its name, in ascending order of the names.

    Raises:
        OSError: the file can't be read.
        ValueError: the file is not a complete, undamaged index as TensorFlow writes it.

    Example:
        >>> write_bundle("model.ckpt", {"x": (2, 3)}, [np.ones((2, 3), np.float32)])
        >>> read_index("model.ckpt.index")["x"]
        Entry(dtype='float32', shape=(2, 3), shard=0, offset=0, size=24, crc32c=...)
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"{os.fspath(path)} is missing; it lists the weights and comes with them")
    with open_regular(path) as file:
        try:
            return _decode_index(read_table(file))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)} is not a whole checkpoint index: {error}") from None


def lazy_tensors(prefix: str | os.PathLike, entries: Mapping[str, Entry]) -> dict[str, LazyTensor]:
    """Return the tensors of a checkpoint by name. Their values are read later, by `np.asarray`.

    Args:
        prefix: the path of the checkpoint's files without their endings.
        entries: the checkpoint's index, from `read_index`.

    Example:
        >>> write_bundle("model.ckpt", {"x": (2,)}, [np.ones(2, np.float32)])
        >>> np.asarray(lazy_tensors("model.ckpt", read_index("model.ckpt.index"))["x"])
        array([1., 1.], dtype=float32)
    """
    paths = data_paths(prefix, data_sizes(entries))
    return {
        name: LazyTensor(paths[entry.shard], name, entry.dtype, entry.shape, entry.offset, entry.size, entry.crc32c)
        for name, entry in entries.items()
    }


def check_data_files(prefix: str | os.PathLike, entries: Mapping[str, Entry]) -> None:
    """Check that the data files are there and have the sizes that the index implies.

    Raises:
        FileNotFoundError: a data file is missing.
        OSError: a data file can't be read.
        ValueError: a data file has another size.

    Example:
        >>> write_bundle("model.ckpt", {"x": (2,)}, [np.ones(2, np.float32)])
        >>> check_data_files("model.ckpt", read_index("model.ckpt.index"))
    """
    sizes = data_sizes(entries)
    for shard, path in data_paths(prefix, sizes).items():
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing; it holds the weights that {prefix}.index lists")
        with open_regular(path) as file:  # opened, so that a file without read permission is not called damaged
            size = file.seek(0, os.SEEK_END)
        if size != sizes[shard]:
            raise ValueError(
                f"{path} has {size:,} bytes, but {prefix}.index says {sizes[shard]:,}; fetch the file again"
            )


def data_sizes(entries: Mapping[str, Entry]) -> dict[int, int]:
    """Return the size in bytes that each data file must have, by the file's number.

    Example:
        >>> data_sizes({"x": Entry("float32", (2,), shard=0, offset=24, size=8, crc32c=0)})
        {0: 32}
    """
    sizes: dict[int, int] = {}
    for entry in entries.values():
        sizes[entry.shard] = max(sizes.get(entry.shard, 0), entry.offset + entry.size)
    return sizes


def data_paths(prefix: str | os.PathLike, shards: Collection[int]) -> dict[int, Path]:
    """Return the path of each data file of a checkpoint, by the file's number.

    Example:
        >>> data_paths("model.ckpt", [0])[0].name
        'model.ckpt.data-00000-of-00001'
    """
    return {shard: Path(f"{os.fspath(prefix)}.data-{shard:05d}-of-{len(shards):05d}") for shard in shards}


def damaged_tensors(path: str | os.PathLike, entries: Mapping[str, Entry], shard: int = 0) -> list[str]:
    """Return the names of the tensors in a data file whose bytes fail the checksum of the index.

    Args:
        path: the data file; it may have any name and any length.
        entries: the index, from `read_index`.
        shard: the data file's number.

    Example:
        >>> write_bundle("model.ckpt", {"x": (2,)}, [np.ones(2, np.float32)])
        >>> damaged_tensors("model.ckpt.data-00000-of-00001", read_index("model.ckpt.index"))
        []
    """
    names = []
    with open_regular(path) as file:
        for name, entry in entries.items():
            if entry.shard != shard or entry.dtype == "string":
                continue
            file.seek(entry.offset)
            crc, remaining = 0, entry.size
            while remaining and (chunk := file.read(min(remaining, CHUNK))):
                crc, remaining = google_crc32c.extend(crc, chunk), remaining - len(chunk)
            if remaining or crc != entry.crc32c:
                names.append(name)
    return names


def write_bundle(
    prefix: str | os.PathLike, shapes: Mapping[str, tuple[int, ...]], arrays: Iterable[np.ndarray]
) -> None:
    """Write a checkpoint with one data file, laid out as TensorFlow's Saver does.

    Args:
        prefix: the path of the files without their endings.
        shapes: the shape of each tensor by name, in ascending order of the names.
        arrays: the values in the same order. Each array is taken after the one before it is written, so a generator
            needs memory for one array only.

    Raises:
        OSError: a file can't be written, as when the disk is full.
        ValueError: an array has another shape than `shapes` says.

    Example:
        >>> write_bundle("model.ckpt", {"x": (2,)}, [np.ones(2, np.float32)])
        >>> sorted(path.name for path in Path().glob("model.ckpt.*"))
        ['model.ckpt.data-00000-of-00001', 'model.ckpt.index']
    """
    table, offset = {b"": HEADER}, 0
    with open(f"{os.fspath(prefix)}.data-00000-of-00001", "wb") as file:
        for (name, shape), array in zip(shapes.items(), arrays, strict=True):
            if array.shape != tuple(shape):
                raise ValueError(f"{name} has the shape {list(array.shape)}, expected {list(shape)}")
            content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            file.write(content)
            crc = google_crc32c.value(content)
            entry = Entry(array.dtype.name, tuple(shape), 0, offset, content.nbytes, crc)
            table[name.encode()] = _encode_entry(entry)
            offset += content.nbytes
    with open(f"{os.fspath(prefix)}.index", "wb") as file:
        file.write(encode_table(table))


def _decode_index(table: Iterator[tuple[bytes, bytes]]) -> dict[str, Entry]:
    key, header = next(table, (None, b""))
    if key != b"":
        raise ValueError("the table doesn't begin with a checkpoint's header")
    fields = dict(decode_fields(header))
    shards = _int_field(fields, 1)
    if _int_field(fields, 2) != 0:
        raise ValueError("the checkpoint was written on a big-endian machine")
    entries = {}
    for key, value in table:
        try:
            name = key.decode()
        except UnicodeDecodeError:
            raise ValueError(f"a tensor's name, {key!r}, is not UTF-8") from None
        entry = entries[name] = _decode_entry(name, value)
        if entry.shard >= shards:
            raise ValueError(f"{name} is in shard {entry.shard} of {shards}")
        if entry.dtype != "string" and entry.size != math.prod(entry.shape) * np.dtype(entry.dtype).itemsize:
            raise ValueError(f"{name} is {entry.dtype} {list(entry.shape)}, which {entry.size} bytes can't hold")
    return entries


def _decode_entry(name: str, value: bytes) -> Entry:
    fields = dict(decode_fields(value))
    if 7 in fields:
        raise ValueError(f"{name} is stored in slices (a partitioned variable), but GPT-2's tensors never are")
    dtype_number = _int_field(fields, 1)
    if dtype_number not in DTYPES:
        raise ValueError(f"{name} has the dtype {dtype_number} of TensorFlow's DataType, which is unknown here")
    dims = [value for number, value in decode_fields(_message(fields.get(2, b""))) if number == 2]
    shape = tuple(_int_field(dict(decode_fields(_message(dim))), 1) for dim in dims)
    shard, offset, size = (_int_field(fields, number) for number in (3, 4, 5))
    return Entry(DTYPES[dtype_number], shape, shard, offset, size, unmask_crc(_int_field(fields, 6)))


def _encode_entry(entry: Entry) -> bytes:
    """Encode an entry of the first shard."""
    dims = b"".join(encode_field(2, encode_field(1, dim)) for dim in entry.shape)
    fields = encode_field(1, DTYPE_NUMBERS[entry.dtype]) + encode_field(2, dims)
    if entry.offset:  # Protocol Buffers leave out a value of 0
        fields += encode_field(4, entry.offset)
    fields += encode_field(5, entry.size)
    # Field 6 is a fixed 32-bit number, wire type 5.
    return fields + bytes([6 << 3 | 5]) + mask_crc(entry.crc32c).to_bytes(4, "little")


def _message(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a message's field is a number and should be a message")
    return value


def _int_field(fields: Mapping[int, int | bytes], number: int) -> int:
    """Return a field's value. A missing field stands for 0 in Protocol Buffers."""
    value = fields.get(number, 0)
    if not isinstance(value, int) or value >= 1 << 63:
        raise ValueError("a size or an offset is negative or not a number")
    return value
