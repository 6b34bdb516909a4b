"""Files of text -> their documents, in pieces that can be encoded one by one, so that no text is too large."""

import codecs
import csv
import glob
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from encoder.bpe import END_OF_TEXT
from gpt2_tf.files import progress

KINDS = (".txt", ".csv", ".jsonl")
PIECE = 2**18  # bytes or characters
# Where GPT-2's pattern cuts whatever comes next, so that the ids of the parts are those of the whole. A `>` can end the
# letters of `<|endoftext|>`, for which a document's last piece is searched.
CUT = re.compile(r"(?<=[^\s>])[ \n]")

Files = Sequence[str | os.PathLike]


def find(files: Files) -> list[Path]:
    """The files that names, globs and folders stand for, each once.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file is of no kind that is read.
    """
    kinds = f"{', '.join(KINDS)}, each also with .gz"
    found = []
    for name in map(os.fspath, files):
        if os.path.isdir(name):
            paths = [path for path in sorted(Path(name).rglob("*")) if _kind(path) in KINDS and path.is_file()]
            if not paths:
                raise FileNotFoundError(f"{name} holds no text; expected files of {kinds}")
        else:
            paths = [Path(name)] if os.path.exists(name) else sorted(map(Path, glob.glob(name, recursive=True)))
            if not paths:
                raise FileNotFoundError(f"{name}: no such file; expected a file, a folder or a glob")
        for path in paths:
            if _kind(path) not in KINDS:
                raise ValueError(f"{path} is not of a kind that is read; expected {kinds}: rename it, or convert it")
        found += paths
    if not found:
        raise ValueError("no files are given; expected at least one")
    once = {}
    for path in found:
        once.setdefault(path.resolve(), path)
    return list(once.values())


def read(paths: Sequence[Path], doing: str, *, column: str | None, field: str) -> Iterator[str]:
    """The documents, each closed by the letters of `<|endoftext|>`, in pieces that can be encoded one by one."""
    size = sum(path.stat().st_size for path in paths)
    with progress.bar(desc=doing, total=size, unit="B", unit_scale=True, delay=1, leave=False) as bar:
        for path in paths:
            begun = bar.n
            with open(path, "rb") as file:
                for piece in _pieces(path, file, column, field):
                    bar.update(begun + file.tell() - bar.n)
                    yield _without_surrogates(piece)
            bar.update(begun + path.stat().st_size - bar.n)


def _pieces(path: Path, file: BinaryIO, column: str | None, field: str) -> Iterator[str]:
    chunks = _chunks(path, gzip.GzipFile(fileobj=file) if path.suffix.lower() == ".gz" else file)
    kind = _kind(path)
    if kind == ".txt":
        return _document(chunks)
    return _together(_column(path, _lines(chunks), column) if kind == ".csv" else _field(path, _lines(chunks), field))


def _chunks(path: Path, file: BinaryIO) -> Iterator[str]:
    """The text, without a byte order mark, some at a time."""
    decode = codecs.getincrementaldecoder("utf-8")().decode
    offset, mark = 0, "\ufeff"
    try:
        while content := file.read(PIECE):
            offset += len(content)
            if text := decode(content):
                yield text.removeprefix(mark)
                mark = ""
        decode(b"", final=True)
    except UnicodeDecodeError as error:
        offset += error.start - len(error.object)
        raise ValueError(
            f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at offset {offset}; convert it first"
        ) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}; get it anew") from None


def _lines(chunks: Iterable[str]) -> Iterator[str]:
    """With their ends, `\\n` alone."""
    rest = ""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split("\n")
        yield from (f"{line}\n" for line in lines)
    if rest:
        yield rest


def _document(chunks: Iterable[str]) -> Iterator[str]:
    """One document in pieces, cut where their ids are those of the whole."""
    text = ""
    for chunk in chunks:
        text, searched = text + chunk, len(text)
        if cut := CUT.search(text, searched):
            yield text[: cut.start()]
            text = text[cut.start() :]
    if text:
        yield _closed(text)


def _together(documents: Iterable[str]) -> Iterator[str]:
    """Many documents a piece, as most are short; `<|endoftext|>` keeps them apart."""
    parts, size = [], 0
    for document in documents:
        if document:
            parts.append(_closed(document))
            size += len(document)
        if size >= PIECE:
            yield "".join(parts)
            parts, size = [], 0
    if parts:
        yield "".join(parts)


def _closed(text: str) -> str:
    bare = text.rstrip()
    return bare if bare.endswith(END_OF_TEXT) else text + END_OF_TEXT


def _column(path: Path, lines: Iterable[str], column: str | None) -> Iterator[str]:
    csv.field_size_limit(2**31 - 1)  # for the whole process; as much as a C long holds anywhere
    rows = csv.reader(lines, strict=True)
    try:
        header = next(rows, [])
        if column is None and len(header) > 1:
            raise ValueError(f"{path} has the columns {', '.join(header)}; say which by `column`")
        if column is not None and column not in header:
            raise ValueError(f"{path} has no column {column!r}; its first row has {', '.join(header) or 'none'}")
        at = 0 if column is None else header.index(column)
        for row in rows:
            if row and len(row) != len(header):
                wrong = f"{len(row)} values, but the first row names {len(header)} columns; mend it"
                raise ValueError(f"{path}: line {rows.line_num} ends a row of {wrong}")
            yield row[at] if row else ""
    except csv.Error as error:
        raise ValueError(f"{path}: line {rows.line_num} is no CSV: {error}; mend it") from None


def _field(path: Path, lines: Iterable[str], field: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: line {number} is not JSON: {error}; expected an object a line") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path}: line {number} is a JSON {type(values).__name__}; expected an object")
        text = values.get(field)
        if not isinstance(text, str):
            fields = ", ".join(name for name, value in values.items() if isinstance(value, str)) or "none"
            raise ValueError(f"{path}: line {number} has no text {field!r}; say which by `field`, its texts: {fields}")
        yield text


def _without_surrogates(text: str) -> str:
    """What the encoder makes of them, as JSON can have them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def plain(texts: Iterable[str]) -> Iterator[str]:
    """To learn a vocabulary from: without the letters that stand for the ends."""
    for text in texts:
        yield from text.split(END_OF_TEXT)


def _kind(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix
