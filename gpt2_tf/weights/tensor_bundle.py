"""TensorFlow's checkpoints, read and written without TensorFlow, a tensor at a time.

A TensorFlow checkpoint ("tensor bundle") is an index, which names each tensor's type, shape, place and checksum, and
the `.data-0000i-of-0000n` files, which are the tensors' bytes and nothing else. The index is a sorted table in
LevelDB's format: blocks of prefix-compressed keys, an index block that says where they are, and a 48-byte footer.
Formats: github.com/google/leveldb, doc/table_format.md; tensorflow/core/protobuf/tensor_bundle.proto.
"""

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

NAME = "model.ckpt"
MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
FOOTER_SIZE = 48
CHUNK = 1 << 23  # bytes, of which the CRC is quickest
# TensorFlow's DataType enum; bfloat16 and the 8-bit floats are NumPy's names with ml_dtypes, "string" isn't NumPy's.
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


class Entry(NamedTuple):
    """Where one tensor lies.

    Attributes:
        dtype: NumPy's name of its type, or "string".
        shape: its dimensions.
        shard: i of the file `.data-0000i-of-0000n` that holds it.
        offset, size: its place in that file, in bytes.
        crc32c: plain CRC32C of those bytes (the file stores it masked). For "string", of something else.
    """

    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc32c: int


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a checkpoint, read when NumPy asks for it (`np.asarray`), and its checksum checked.

    Raises:
        ValueError: on reading, where the bytes aren't those that the index has the checksum of.
    """

    path: Path
    name: str
    entry: Entry

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        with open(self.path, "rb") as file:
            file.seek(self.entry.offset)
            data = file.read(self.entry.size)
        if len(data) != self.entry.size or _crc32c(data) != self.entry.crc32c:
            raise ValueError(f"{self.path}: {self.name} is damaged; fetch the file again")
        return np.frombuffer(data, self.entry.dtype).reshape(self.entry.shape)


def prefix(folder: str | os.PathLike) -> Path:
    """A folder's checkpoint, without the endings of its files: the one that its file `checkpoint` names, if it is
    there, as `tf.train.latest_checkpoint` says; else `model.ckpt`. Fine-tuned ones are named `model-1000` and so on.
    """
    with contextlib.suppress(OSError):
        named = re.match(rb'model_checkpoint_path: "([^"\n]+)"', Path(folder, "checkpoint").read_bytes())
        # The name alone: the folder may have been another when it was written.
        name = re.split(r"[/\\]", named[1].decode(errors="replace"))[-1] if named else ""
        if name and Path(folder, f"{name}.index").exists():
            return Path(folder, name)
    return Path(folder, NAME)


def beside(name: str, step: int | None) -> dict[str, str]:
    """The small files beside a checkpoint of this name, with which `prefix` and TensorFlow, and the forks, find it."""
    files = {"checkpoint": f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "{name}"\n'}
    return files if step is None else files | {"counter": f"{step}\n"}


def read_index(path: str | os.PathLike) -> dict[str, Entry]:
    """Reads a `model.ckpt.index`: each tensor's name and entry, in order of name.

    Raises:
        OSError: the file can't be read.
        ValueError: it isn't a whole, undamaged index of the kind that TensorFlow writes.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"{os.fspath(path)} is missing; it lists the weights, and comes with them")
    with open(path, "rb") as file:
        try:
            return _entries(_table(_read_table_file(file)))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)} is not a whole checkpoint index: {error}") from None


def tensors(prefix: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Stored]:
    """The checkpoint's tensors by name, none of them read yet.

    Raises:
        FileNotFoundError: the index or a data file is missing.
        ValueError: as `check`, and as `read_index`.
    """
    entries = read_index(f"{prefix}.index")
    check(prefix, entries, shapes)
    paths = _data_paths(prefix, data_sizes(entries))
    return {name: Stored(paths[entry.shard], name, entry) for name, entry in entries.items()}


def check(prefix: Path, entries: Mapping[str, Entry], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError unless the tensors are float32 of these names and shapes (all differences are named), and the
    data files as long as the index says; FileNotFoundError where one is missing.
    """
    differences = [f"{name} is missing" for name in shapes if name not in entries]
    differences += [f"{name} isn't of this model" for name in entries if name not in shapes]
    for name in shapes.keys() & entries.keys():
        shape, entry = tuple(shapes[name]), entries[name]
        if (entry.shape, entry.dtype) != (shape, "float32"):
            differences.append(f"{name} is {entry.dtype} {list(entry.shape)}, expected float32 {list(shape)}")
    if differences:
        raise ValueError(
            f"{prefix}.index doesn't fit the hyperparameters in hparams.json: " + "; ".join(sorted(differences))
        )
    sizes = data_sizes(entries)
    for shard, path in _data_paths(prefix, sizes).items():
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing; it holds the weights that {prefix}.index lists")
        with open(path, "rb") as file:  # so that what may not be read isn't called damaged
            size = file.seek(0, os.SEEK_END)
        if size != sizes[shard]:
            raise ValueError(
                f"{path} has {size:,} bytes, but {prefix}.index says {sizes[shard]:,}; fetch the file again"
            )


def check_count(prefix: Path, n_params: int) -> None:
    """Raises ValueError where a model of `n_params` weights is so far from the checkpoint that none should be built.

    It might not fit in memory; of a model that is nearer, `check` names each difference.
    """
    path = Path(f"{prefix}.index")
    found = sum(data_sizes(read_index(path)).values()) // 4  # float32
    if n_params > 10 * found:
        raise ValueError(f"hparams.json describes a model of {n_params:,} weights, but {path} lists {found:,}")


def write(prefix: str | os.PathLike, shapes: Mapping[str, tuple[int, ...]], arrays: Iterator[np.ndarray]) -> None:
    """Writes float32 tensors as a checkpoint of one data file, as TensorFlow's Saver lays it out.

    Args:
        shapes: their shapes by name, in order of name.
        arrays: what they hold, in the same order; each is asked for once the one before is written.

    Raises:
        OSError: the disk is full, and so on.
    """
    # The bundle's header: one shard (field 1), and version 1 of the format (the message in field 3).
    table, offset = {"": b"\x08\x01\x1a\x02\x08\x01"}, 0
    with open(f"{os.fspath(prefix)}.data-00000-of-00001", "wb") as file:
        for (name, shape), array in zip(shapes.items(), arrays, strict=True):
            data = memoryview(np.ascontiguousarray(array, "<f4")).cast("B")
            if len(data) != 4 * math.prod(shape):
                raise ValueError(f"{name} came as {list(array.shape)}, expected {list(shape)}")
            file.write(data)
            table[name] = _encoded(Entry("float32", tuple(shape), 0, offset, len(data), _crc32c(data)))
            offset += len(data)
    with open(f"{os.fspath(prefix)}.index", "wb") as file:
        file.write(_written_table(table))


def data_sizes(entries: Mapping[str, Entry]) -> dict[int, int]:
    """The exact size in bytes that each shard's data file must have: {shard: bytes}."""
    sizes: dict[int, int] = {}
    for entry in entries.values():
        sizes[entry.shard] = max(sizes.get(entry.shard, 0), entry.offset + entry.size)
    return sizes


def _data_paths(prefix: Path, shards: Collection[int]) -> dict[int, Path]:
    return {shard: Path(f"{prefix}.data-{shard:05d}-of-{len(shards):05d}") for shard in shards}


def damaged(path: str | os.PathLike, entries: Mapping[str, Entry], shard: int = 0) -> list[str]:
    """Names of the tensors whose bytes in a data file don't have the index's CRC32C; a few seconds for 1 GB."""
    names = []
    with open(path, "rb") as file:
        for name, entry in entries.items():
            if entry.shard != shard or entry.dtype == "string":
                continue
            file.seek(entry.offset)
            crc, left = 0, entry.size
            while left and (chunk := file.read(min(left, CHUNK))):
                crc, left = crc32c(chunk, crc), left - len(chunk)
            if crc != entry.crc32c:
                names.append(name)
    return names


def _crc32c(data: bytes | memoryview) -> int:
    """`crc32c` of many bytes, in chunks."""
    crc = 0
    for start in range(0, len(data), CHUNK):
        crc = crc32c(bytes(data[start : start + CHUNK]), crc)
    return crc


def crc32c(data: bytes, crc: int = 0) -> int:
    """The CRC-32C (Castagnoli) of `data`, or of what had `crc` and then `data`.

    A CRC register is linear over GF(2): the bytes are cut into equal lanes that advance side by side in NumPy, and
    the lanes' registers are joined in pairs, the left of each pair moved on by the zeros that the right stands for.
    """
    lanes = 1 << min(14, (len(data) // 256).bit_length())
    length = 2 * -(-len(data) // (2 * lanes))
    # Zeros in front leave a register of 0 at 0.
    padded = np.frombuffer(bytes(lanes * length - len(data)) + data, "<u2").reshape(lanes, length // 2)
    table = _two_bytes()
    registers = np.zeros(lanes, np.uint32)
    for column in np.ascontiguousarray(padded.T):
        registers = (registers >> 16) ^ table.take(registers.astype(np.uint16) ^ column)
    moved = _zeros(length)
    while len(registers) > 1:
        registers = _move(registers[0::2], moved) ^ registers[1::2]
        moved = _move(moved, moved)
    start = _move(np.array([~crc & 0xFFFFFFFF], np.uint32), _zeros(len(data)))
    return int(~(registers ^ start)[0])


def _shift_bit(registers: np.ndarray) -> np.ndarray:
    """What one zero bit does to registers: a division step by the Castagnoli polynomial, bits reversed."""
    return (registers >> 1) ^ (registers & 1) * np.uint32(0x82F63B78)


@cache
def _two_bytes() -> np.ndarray:
    """What two bytes do to a register of 0, for each pair: uint32 [65536]."""
    table = np.arange(1 << 16, dtype=np.uint32)
    for _ in range(16):
        table = _shift_bit(table)
    return table


@cache
def _zeros(count: int) -> np.ndarray:
    """What `count` zero bytes do to each bit of a register: uint32 [32]."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    power, left = _shift_bit(bits), 8 * count
    while left:
        if left & 1:
            bits = _move(bits, power)
        power = _move(power, power)
        left >>= 1
    return bits


def _move(registers: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Applies a linear map, given as the images of the 32 bits, to each register."""
    moved = np.zeros_like(registers)
    for bit, image in enumerate(matrix):
        moved ^= (registers >> np.uint32(bit) & 1) * image
    return moved


def _mask(crc: int) -> int:
    """LevelDB's disguise of a CRC that is stored next to what it covers."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _unmask(crc: int) -> int:
    """Undoes `_mask`."""
    crc = (crc - 0xA282EAD8) & 0xFFFFFFFF
    return (crc >> 17 | crc << 15) & 0xFFFFFFFF


def _read_table_file(file) -> bytes:
    """The whole file, once its last bytes show that it is a table: a `.data` file can have gigabytes."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - FOOTER_SIZE))
    if size < FOOTER_SIZE:
        raise ValueError(f"it has {size} bytes, but the footer alone has {FOOTER_SIZE}")
    if not file.read().endswith(MAGIC):
        raise ValueError("its last 8 bytes are not the table's magic number (cut short, or another kind of file)")
    file.seek(0)
    return file.read()


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The table's keys and values, in order of key."""
    footer = data[-FOOTER_SIZE:]
    metaindex, at = _handle(footer, 0)
    index, _ = _handle(footer, at)
    if any(_block(data, metaindex)):
        raise ValueError("its metaindex, which TensorFlow leaves empty, has something in it")
    previous = None
    for _, value in _block(data, index):
        for key, entry in _block(data, _handle(value, 0)[0]):
            if previous is not None and key <= previous:
                raise ValueError("its keys are not in order")
            previous = key
            yield key, entry


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Where a block is, (offset, size), and where in `data` what follows begins."""
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return (offset, size), at


def _block(data: bytes, handle: tuple[int, int]) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of one block, whose trailer (compression, CRC) is checked first."""
    offset, size = handle
    end = offset + size
    if size < 4 or end + 5 > len(data) - FOOTER_SIZE:
        raise ValueError(f"a block of {size} bytes at {offset} doesn't fit into its {len(data)} bytes")
    if crc32c(data[offset : end + 1]) != _unmask(int.from_bytes(data[end + 1 : end + 5], "little")):
        raise ValueError(f"the block of {size} bytes at {offset} doesn't have its checksum: a byte has changed")
    if data[end] != 0:
        raise ValueError(f"its blocks are compressed (type {data[end]}), and TensorFlow writes them plain")
    block = data[offset:end]
    restarts = int.from_bytes(block[-4:], "little")
    entries = block[: max(0, len(block) - 4 * (restarts + 1))]
    key, at = b"", 0
    while at < len(entries):
        shared, at = _varint(entries, at)
        rest, at = _varint(entries, at)
        length, at = _varint(entries, at)
        if shared > len(key) or at + rest + length > len(entries):
            raise ValueError(f"an entry of the block at {offset} reaches beyond its end")
        key = key[:shared] + entries[at : at + rest]
        at += rest
        yield key, entries[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A base-128 number of at most 64 bits, and where what follows begins."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("a number is cut short")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number has more than 64 bits")


def proto_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The numbers and values of a protocol buffer's fields: int for varint and fixed, bytes for length-delimited.

    Raises:
        ValueError: `data` isn't a whole message.
    """
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if number == 0 or wire not in (0, 1, 2, 5):
            raise ValueError("a message has a field that protocol buffers don't know")
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        length, at = _varint(data, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
        if at + length > len(data):
            raise ValueError("a message's field reaches beyond its end")
        value = data[at : at + length]
        at += length
        yield number, value if wire == 2 else int.from_bytes(value, "little")


def _entries(table: Iterator[tuple[bytes, bytes]]) -> dict[str, Entry]:
    """The tensors, once the header (under the empty key, so the first) shows that their form is known."""
    key, header = next(table, (None, b""))
    if key != b"":
        raise ValueError("it doesn't begin with a checkpoint's header")
    fields = dict(proto_fields(header))
    shards = _number(fields, 1)
    if _number(fields, 2) != 0:
        raise ValueError("its checkpoint was written on a big-endian machine")
    entries = {}
    for key, value in table:
        try:
            name = key.decode()
        except UnicodeDecodeError:
            raise ValueError(f"a tensor's name, {key!r}, is not UTF-8") from None
        entries[name] = _entry(name, value)
        if entries[name].shard >= shards:
            raise ValueError(f"{name} is in shard {entries[name].shard} of {shards}")
    return entries


def _entry(name: str, value: bytes) -> Entry:
    fields = dict(proto_fields(value))
    if 7 in fields:
        raise ValueError(f"{name} is stored in slices (a partitioned variable), which GPT-2's never are")
    dtype = DTYPES.get(_number(fields, 1))
    if dtype is None:
        raise ValueError(f"{name} has the type {_number(fields, 1)} of TensorFlow's DataType, which isn't known here")
    dims = [
        dict(proto_fields(_message(dim))) for number, dim in proto_fields(_message(fields.get(2, b""))) if number == 2
    ]
    shape = tuple(_number(dim, 1) for dim in dims)
    return Entry(dtype, shape, *(_number(fields, n) for n in (3, 4, 5)), _unmask(_number(fields, 6)))


def _message(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a message's field is a number and should be a message")
    return value


def _encoded(entry: Entry) -> bytes:
    """What `_entry` reads, of a float32 in the first shard."""
    dims = b"".join(_field(2, _field(1, n)) for n in entry.shape)
    place = _field(4, entry.offset) * bool(entry.offset) + _field(5, entry.size)  # a 0 is left out
    return _field(1, 1) + _field(2, dims) + place + b"\x35" + _mask(entry.crc32c).to_bytes(4, "little")


def _field(number: int, value: int | bytes) -> bytes:
    """A field of a protocol buffer: a varint, or a message."""
    if isinstance(value, bytes):
        return _written_varint(number << 3 | 2) + _written_varint(len(value)) + value
    return _written_varint(number << 3) + _written_varint(value)


def _written_varint(value: int) -> bytes:
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _written_table(values: Mapping[str, bytes]) -> bytes:
    """A table of one block, which `_table` reads."""
    table = bytearray()
    handles = []
    last = max(values).encode()
    for entries in ({name.encode(): value for name, value in values.items()}, {}):  # the second is the metaindex
        handles.append(_add_block(table, entries))
    index = _add_block(table, {last: handles[0]})
    footer = handles[1] + index
    return bytes(table) + footer.ljust(FOOTER_SIZE - len(MAGIC), b"\0") + MAGIC


def _add_block(table: bytearray, entries: Mapping[bytes, bytes]) -> bytes:
    """Appends a block, every entry with its whole key; returns its handle: offset and size."""
    block, restarts = bytearray(), []
    for key, value in entries.items():
        restarts.append(len(block))
        block += b"\0" + _written_varint(len(key)) + _written_varint(len(value)) + key + value
    restarts = restarts or [0]
    block += b"".join(n.to_bytes(4, "little") for n in [*restarts, len(restarts)])
    handle = _written_varint(len(table)) + _written_varint(len(block))
    block += b"\0"  # not compressed
    table += block + _mask(crc32c(bytes(block))).to_bytes(4, "little")
    return handle


def _number(fields: dict[int, int | bytes], number: int) -> int:
    """A field's value, 0 where absent, as protocol buffers have it."""
    value = fields.get(number, 0)
    if not isinstance(value, int) or value >= 1 << 63:
        raise ValueError("a size or an offset is negative or not a number")
    return value
