"""Text from files and stdin, decoded in one way for training, prompts and evaluation.

Texts are UTF-8. A byte order mark at the start is left out. Line ends stay as they are: GPT-2 has tokens for `\\r`, so
`\\r\\n` is other text than `\\n`. `prepare`, `train` and `evaluate perplexity` say on stderr that a text has `\\r\\n`.
"""

import codecs
import gzip
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO

CHUNK_SIZE = 2**18  # bytes per read
# UTF-32's marks come first, since the little-endian one begins with UTF-16's.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
# The high bytes of most alphabets are at most 31, which are control characters in UTF-8. Chinese has larger high bytes,
# but its UTF-16 is not valid UTF-8.
MAX_HIGH_BYTE = 31


def decode_text(content: bytes, name: str) -> str:
    """Decode UTF-8, and leave out a byte order mark.

    Args:
        content: the bytes.
        name: what an error calls the text, such as the file's name or "stdin".

    Raises:
        ValueError: the bytes are not UTF-8, or are UTF-16 or UTF-32.

    Example:
        >>> decode_text(b"\\xef\\xbb\\xbfROMEO:", "stdin")
        'ROMEO:'
        >>> decode_text("ROMEO:".encode("utf-16-le"), "stdin")
        Traceback (most recent call last):
        ValueError: stdin is UTF-16, but must be UTF-8; convert it first: iconv -f UTF-16LE -t UTF-8
    """
    return "".join(_decode(io.BytesIO(content), name))


def read_chunks(path: str | os.PathLike, file: BinaryIO) -> Iterator[str]:
    """Decode an open file chunk by chunk, as `decode_text` does.

    Args:
        path: the file's name, for errors. If it ends in .gz, the file is decompressed.
        file: open for reading bytes, at its start.

    Raises:
        ValueError: the text is not UTF-8, or the file is not a complete gzip file.

    Example:
        >>> list(read_chunks("a.txt", io.BytesIO(b"\\xef\\xbb\\xbfROMEO:")))
        ['ROMEO:']
    """
    source = gzip.GzipFile(fileobj=file) if os.fspath(path).lower().endswith(".gz") else file
    try:
        yield from _decode(source, os.fspath(path))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not a complete gzip file: {error}; get it again") from None


def windows_line_ends_notice(names: Sequence[str | os.PathLike]) -> str:
    """Return the line that says which texts have the line ends of Windows.

    Example:
        >>> print(windows_line_ends_notice(["a.txt", "b.txt"]))
        a.txt and 1 more have line ends of Windows (\\r\\n), which stay in the text; to have \\n alone, convert them
        first: dos2unix
    """
    others = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
    verb, them = ("have", "them") if others else ("has", "it")
    return (
        rf"{names[0]}{others} {verb} line ends of Windows (\r\n), which stay in the text; to have \n alone, convert "
        f"{them} first: dos2unix"
    )


def _decode(file: BinaryIO, name: str) -> Iterator[str]:
    decode = codecs.getincrementaldecoder("utf-8")().decode
    offset, byte_order_mark = 0, "\ufeff"
    try:
        while content := file.read(CHUNK_SIZE):
            if not offset and (encoding := _find_wide_encoding(content)):
                raise ValueError(
                    f"{name} is {encoding[:6]}, but must be UTF-8; convert it first: iconv -f {encoding} -t UTF-8"
                )
            offset += len(content)
            if text := decode(content):
                if text := text.removeprefix(byte_order_mark):
                    yield text
                byte_order_mark = ""
        decode(b"", final=True)
    except UnicodeDecodeError as error:
        offset += error.start - len(error.object)
        raise ValueError(
            f"{name} is not UTF-8: byte {error.object[error.start]:#04x} at offset {offset}; convert it to UTF-8 first"
        ) from None


def _find_wide_encoding(head: bytes) -> str | None:
    """Return iconv's name of the encoding where a text that begins so is UTF-16 or UTF-32, else None.

    Without a byte order mark, such a text is often valid UTF-8 too, with NUL characters between the letters.
    """
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return encoding
    if 0 not in head or len(head) < 4:
        return None

    def mostly_below(limit: int, *offsets: int, step: int) -> bool:
        values = b"".join(head[offset::step] for offset in offsets)
        return sum(value < limit for value in values) >= 0.75 * len(values)

    if mostly_below(1, 2, 3, step=4):
        return "UTF-32LE"
    if mostly_below(1, 0, 1, step=4):
        return "UTF-32BE"
    if mostly_below(MAX_HIGH_BYTE + 1, 1, step=2):
        return "UTF-16LE"
    return "UTF-16BE" if mostly_below(MAX_HIGH_BYTE + 1, 0, step=2) else None
