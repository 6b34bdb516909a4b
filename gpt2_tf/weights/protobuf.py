"""The few parts of Protocol Buffers' encoding that a checkpoint's index needs.

Format: https://protobuf.dev/programming-guides/encoding
"""

from collections.abc import Iterator


def decode_varint(data: bytes, start: int) -> tuple[int, int]:
    """Decode the base-128 number that begins at `data[start]`.

    Returns:
        The number, below 2**70, and the position of the byte after it.

    Raises:
        ValueError: the data ends inside the number, or the number is longer than 10 bytes.

    Example:
        >>> decode_varint(bytes([0xAC, 0x02, 0xFF]), 0)
        (300, 2)
    """
    value = 0
    for shift in range(0, 70, 7):
        if start >= len(data):
            raise ValueError("a number is cut short")
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
    raise ValueError("a number has more than 64 bits")


def encode_varint(value: int) -> bytes:
    """Encode a number of at least 0 in base 128, the lowest digits first.

    Example:
        >>> encode_varint(300).hex()
        'ac02'
    """
    digits = bytearray()
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def decode_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the number and the value of each field of a message.

    A varint or fixed-width field has an int as its value. A length-delimited field has bytes, which may be a message.

    Raises:
        ValueError: `data` is not a complete message.

    Example:
        >>> list(decode_fields(bytes.fromhex("08ac02 12026869")))
        [(1, 300), (2, b'hi')]
    """
    position = 0
    while position < len(data):
        tag, position = decode_varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if number == 0 or wire_type not in (0, 1, 2, 5):
            raise ValueError(f"a message has a field of number {number} and wire type {wire_type}, which are invalid")
        if wire_type == 0:
            value, position = decode_varint(data, position)
            yield number, value
            continue
        if wire_type == 2:
            size, position = decode_varint(data, position)
        else:
            size = 8 if wire_type == 1 else 4
        if position + size > len(data):
            raise ValueError("a message's field extends beyond the message")
        value = data[position : position + size]
        position += size
        yield number, value if wire_type == 2 else int.from_bytes(value, "little")


def encode_field(number: int, value: int | bytes) -> bytes:
    """Encode a field with this number: an int as a varint, bytes as a length-delimited value.

    Example:
        >>> encode_field(2, b"hi").hex()
        '12026869'
    """
    if isinstance(value, bytes):
        return encode_varint(number << 3 | 2) + encode_varint(len(value)) + value
    return encode_varint(number << 3) + encode_varint(value)
