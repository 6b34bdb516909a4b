"""Sorted tables of keys and values in LevelDB's file format; TensorFlow stores a checkpoint's index as such a table.

The file holds data blocks, a metaindex block, an index block and a footer of 48 bytes. Each block ends with a
checksum. A block stores each key without the prefix that it shares with the key before it. The index block lists the
data blocks; the footer says where the metaindex block and the index block are.
Format: https://github.com/google/leveldb/blob/main/doc/table_format.md
"""

import os
from collections.abc import Iterator, Mapping
from typing import BinaryIO

import google_crc32c

from gpt2_tf.weights.protobuf import decode_varint, encode_varint

MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")  # the last bytes of every table
FOOTER_SIZE = 48  # bytes
TRAILER_SIZE = 5  # bytes after each block: a compression type and a masked CRC32C


def read_table(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Yield a table's keys and values, in ascending order of the keys.

    The file's end is checked before the rest is read, so that a wrong file of gigabytes is refused at once.

    Raises:
        ValueError: the file is not a complete, undamaged and uncompressed table.

    Example:
        >>> import io
        >>> list(read_table(io.BytesIO(encode_table({b"a": b"1", b"b": b"2"}))))
        [(b'a', b'1'), (b'b', b'2')]
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - FOOTER_SIZE))
    if size < FOOTER_SIZE:
        raise ValueError(f"the file has {size} bytes, but the footer alone has {FOOTER_SIZE}")
    if not file.read().endswith(MAGIC):
        raise ValueError("the last 8 bytes are not the table's magic number (cut short, or another kind of file)")
    file.seek(0)
    yield from _entries(file.read())


def encode_table(values: Mapping[bytes, bytes]) -> bytes:
    """Encode a table with a single data block.

    Args:
        values: at least one value, in ascending order of the keys.

    Example:
        >>> encode_table({b"a": b"1"})[-8:] == MAGIC
        True
    """
    table = bytearray()
    data_handle = _append_block(table, values)
    metaindex_handle = _append_block(table, {})
    index_handle = _append_block(table, {max(values): data_handle})
    footer = metaindex_handle + index_handle
    return bytes(table) + footer.ljust(FOOTER_SIZE - len(MAGIC), b"\0") + MAGIC


def mask_crc(crc: int) -> int:
    """Mask a CRC32C as LevelDB does before it stores the checksum next to the bytes that it covers.

    Example:
        >>> unmask_crc(mask_crc(123))
        123
    """
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def unmask_crc(masked: int) -> int:
    """Undo `mask_crc`.

    Example:
        >>> unmask_crc(0xA282EAD8)
        0
    """
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


def _entries(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    footer = data[-FOOTER_SIZE : -len(MAGIC)]
    metaindex_handle, position = _decode_handle(footer, 0)
    index_handle, position = _decode_handle(footer, position)
    if any(footer[position:]):
        raise ValueError("the footer's padding is not zero: a byte has changed")
    if any(_read_block(data, metaindex_handle)):
        raise ValueError("the metaindex block has entries, but TensorFlow writes an empty one")
    previous = None
    for _, value in _read_block(data, index_handle):
        block_handle, _ = _decode_handle(value, 0)
        for key, entry in _read_block(data, block_handle):
            if previous is not None and key <= previous:
                raise ValueError("the keys are not in ascending order")
            previous = key
            yield key, entry


def _decode_handle(data: bytes, start: int) -> tuple[tuple[int, int], int]:
    """Decode a block's place, (offset, size), and return the position after it too."""
    offset, position = decode_varint(data, start)
    size, position = decode_varint(data, position)
    return (offset, size), position


def _read_block(data: bytes, handle: tuple[int, int]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of one block, after checking its trailer."""
    offset, size = handle
    end = offset + size
    if size < 4 or end + TRAILER_SIZE > len(data) - FOOTER_SIZE:
        raise ValueError(f"a block of {size} bytes at {offset} doesn't fit in the file's {len(data)} bytes")
    # The checksum covers the block and its compression type.
    if google_crc32c.value(data[offset : end + 1]) != unmask_crc(int.from_bytes(data[end + 1 : end + 5], "little")):
        raise ValueError(f"the block of {size} bytes at {offset} fails its checksum: a byte has changed")
    if data[end] != 0:
        raise ValueError(f"the blocks are compressed (type {data[end]}), but TensorFlow writes uncompressed ones")
    block = data[offset:end]
    # The block ends with the positions of some entries, for binary search, and the count of these positions.
    restarts = int.from_bytes(block[-4:], "little")
    entries = block[: max(0, len(block) - 4 * (restarts + 1))]
    key, position = b"", 0
    while position < len(entries):
        shared_size, position = decode_varint(entries, position)
        rest_size, position = decode_varint(entries, position)
        value_size, position = decode_varint(entries, position)
        if shared_size > len(key) or position + rest_size + value_size > len(entries):
            raise ValueError(f"an entry extends beyond the block at {offset}")
        key = key[:shared_size] + entries[position : position + rest_size]
        position += rest_size
        yield key, entries[position : position + value_size]
        position += value_size


def _append_block(table: bytearray, values: Mapping[bytes, bytes]) -> bytes:
    """Append a block whose entries hold their whole keys. Return the block's encoded handle."""
    block, restarts = bytearray(), []
    for key, value in values.items():
        restarts.append(len(block))
        block += encode_varint(0) + encode_varint(len(key)) + encode_varint(len(value)) + key + value
    restarts = restarts or [0]
    block += b"".join(number.to_bytes(4, "little") for number in [*restarts, len(restarts)])
    handle = encode_varint(len(table)) + encode_varint(len(block))
    block += b"\0"  # compression type 0: none
    table += block + mask_crc(google_crc32c.value(bytes(block))).to_bytes(4, "little")
    return handle
