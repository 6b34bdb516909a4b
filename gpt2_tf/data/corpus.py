"""Text files -> documents, in pieces that can be encoded one by one, so that a text may be larger than memory."""

import csv
import glob
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from encoder.bpe import END_OF_TEXT
from gpt2_tf.data.text_file import read_chunks, windows_line_ends_notice
from gpt2_tf.files import escape_control_characters, open_regular, progress

FORMATS = (".txt", ".csv", ".jsonl")
PIECE_SIZE = 2**18  # about as many characters per piece
# GPT-2's pattern always starts a new match at a space or newline after a non-space. So a text that is cut there gives
# the ids of the whole text. After ">" the text is not cut: the letters of <|endoftext|> would be split off, and
# `_end_document` looks for them at the end of the last piece.
CUT = re.compile(r"(?<=[^\s>])[ \n]")

RUN_FILE = "run.json"  # in the folder of a training run
RUN_TEXTS = ("log.csv", "samples.txt")  # beside it, and no text of the user's

Files = Sequence[str | os.PathLike]


class Remarks(NamedTuple):
    """What a user should know about files that were read.

    Attributes:
        windows_line_ends: .txt files with `\\r\\n`.
        lost_first_rows: .csv files whose first row was read as a column's name, but looks like text.

    Example:
        >>> Remarks([], [Path("a.csv")]).lost_first_rows[0].name
        'a.csv'
    """

    windows_line_ends: list[Path]
    lost_first_rows: list[Path]


def find_text_files(files: Files, *, notices: bool = False) -> list[Path]:
    """Return the text files that names, globs and folders stand for, each file once.

    Of a folder, all files of the known formats below it are taken, sorted by name: .txt, .csv and .jsonl, each also
    gzipped (.gz). Links to folders are followed. Other files are skipped, since they are not the user's text:
    those of other formats, hidden files and folders (also a notebook's checkpoints), the folders and files of training
    runs, a tokenizer's `merges.txt`, and links to files that are missing. A file that is given by its name is always
    taken.

    Args:
        files: names of files, globs such as "texts/*.txt", and folders.
        notices: whether to say on stderr how many files of a folder were skipped, and why. Default: no.

    Raises:
        FileNotFoundError: a name or glob matches nothing, or a folder holds no text file.
        ValueError: a named file has another format, or no files are given.

    Example:
        >>> for name in ("b.txt", "a.jsonl.gz", "c.pdf"):
        ...     Path(name).touch()
        >>> [path.name for path in find_text_files(["."])]
        ['a.jsonl.gz', 'b.txt']
    """
    formats = f"{', '.join(FORMATS)}, each also with .gz"
    found = []
    for name in map(os.fspath, files):
        if os.path.isdir(name):
            paths, skipped = _find_in_folder(Path(name))
            reasons = ", ".join(f"{reason} ({count:,})" for reason, count in sorted(skipped.items()))
            if not paths:
                but = f" (skipped: {reasons})" if skipped else ""
                raise FileNotFoundError(f"{name} holds no text files{but}; expected files that end in {formats}")
            if skipped and notices:
                _print_notice(f"{name}: {len(paths):,} text files are read; skipped: {reasons}")
        else:
            paths = [Path(name)] if os.path.exists(name) else _glob(name)
            if not paths:
                raise FileNotFoundError(f"{name}: no such file; expected a file, a folder or a glob")
        for path in paths:
            if file_format(path) not in FORMATS:
                raise ValueError(f"{path} has an unknown format; expected a name that ends in {formats}")
        found += paths
    if not found:
        raise ValueError("no files are given; expected at least one file, folder or glob")
    once = {}
    for path in found:
        once.setdefault(path.resolve(), path)
    return list(once.values())


def _glob(pattern: str) -> list[Path]:
    """Return the paths that match. Characters of a glob in the name of an existing folder stand for themselves."""
    path = Path(pattern)
    folder = next((parent for parent in path.parents if parent.is_dir()), None)
    if folder is None:  # an empty pattern, or a drive of Windows that is missing
        return []
    names = glob.glob(str(path.relative_to(folder)), root_dir=folder, recursive=True)
    return sorted(folder / name for name in names)


def _raise(error: OSError) -> None:
    raise error


def _find_in_folder(folder: Path) -> tuple[list[Path], Counter]:
    """Return a folder's text files, sorted by name, and how many others were skipped for which reason."""
    paths, skipped = [], Counter()
    seen = set()  # real paths: a folder that a link leads to again is left out, so that no link makes a loop
    for parent, names, files in os.walk(folder, onerror=_raise, followlinks=True):
        if (real_path := os.path.realpath(parent)) in seen:
            names.clear()
            continue
        seen.add(real_path)
        inside = []
        for name in sorted(names):
            if name.startswith("."):
                skipped["hidden folders"] += 1
            elif os.path.exists(os.path.join(parent, name, RUN_FILE)):
                skipped["folders of training runs"] += 1
            else:
                inside.append(name)
        names[:] = inside
        for name in files:
            path = Path(parent, name)
            if file_format(path) not in FORMATS:
                skipped["files of other formats"] += 1
            elif name.startswith("."):
                skipped["hidden files"] += 1
            elif RUN_FILE in files and name in RUN_TEXTS:
                skipped["files of a training run"] += 1
            elif name == "merges.txt":
                skipped["merges.txt of a tokenizer"] += 1
            elif not path.exists():
                skipped["links to missing files"] += 1
            elif path.is_file():
                paths.append(path)
    return sorted(paths), skipped


def file_format(path: Path) -> str:
    """Return the ending of a file's name, in lower case and without .gz.

    Example:
        >>> file_format(Path("texts/A.JSONL.gz"))
        '.jsonl'
    """
    return Path(path.name.lower().removesuffix(".gz")).suffix


def read_documents(
    paths: Sequence[Path], label: str, *, column: str | None, field: str, notices: bool = False
) -> Iterator[str]:
    """Read the documents of text files, each followed by the letters of `<|endoftext|>`, in pieces.

    The pieces joined are the documents. The ids of the pieces joined are the ids of the documents.

    Args:
        paths: files of the known formats.
        label: what the progress bar on stderr says.
        column: of .csv files, the column to read: its name in the first row; or "1", "2", ... for its number in a file
            whose first row is text already. None where there is only one column, which the first row names.
        field: of .jsonl files, the field to read.
        notices: whether to say on stderr, after the last document, which .txt files have the line ends of Windows, and
            which .csv files may have lost their first row because it was read as the column's name.

    Raises:
        OSError: a file can't be read.
        ValueError: a file is not UTF-8, or doesn't have the format of its name.

    Example:
        >>> _ = Path("a.jsonl").write_text('{"text": "one"}\\n{"text": "two"}\\n')
        >>> list(read_documents([Path("a.jsonl")], "reading", column=None, field="text"))
        ['one<|endoftext|>two<|endoftext|>']
    """
    size = sum(path.stat().st_size for path in paths)
    remarks = Remarks([], [])
    with progress.bar(desc=label, total=size, unit="B", unit_scale=True, delay=1, leave=False) as bar:
        for path in paths:
            bytes_before = bar.n
            with open_regular(path) as file:
                for piece in _read_pieces(path, file, column, field, remarks):
                    bar.update(bytes_before + file.tell() - bar.n)
                    yield _replace_surrogates(piece)
            bar.update(bytes_before + path.stat().st_size - bar.n)
    if remarks.windows_line_ends and notices:
        _print_notice(windows_line_ends_notice(remarks.windows_line_ends))
    if remarks.lost_first_rows and notices:
        others = f" (and {len(remarks.lost_first_rows) - 1:,} more files)" if remarks.lost_first_rows[1:] else ""
        _print_notice(
            f"{remarks.lost_first_rows[0]}{others}: the first row is read as the column's name; if it is text, "
            "give --column 1"
        )


def without_end_of_text(texts: Iterable[str]) -> Iterator[str]:
    """The texts without the letters of `<|endoftext|>`, from which a vocabulary should learn nothing.

    Example:
        >>> list(without_end_of_text(["one<|endoftext|>two"]))
        ['one', 'two']
    """
    for text in texts:
        yield from text.split(END_OF_TEXT)


def _print_notice(text: str) -> None:
    print(escape_control_characters(text), file=sys.stderr)


def _read_pieces(path: Path, file: BinaryIO, column: str | None, field: str, remarks: Remarks) -> Iterator[str]:
    chunks = read_chunks(path, file)
    if file_format(path) == ".txt":
        return _cut_document(_note_windows_line_ends(path, chunks, remarks.windows_line_ends))
    lines = _split_lines(chunks)
    if file_format(path) == ".csv":
        return _join_documents(_read_csv(path, lines, column, remarks.lost_first_rows))
    return _join_documents(_read_jsonl(path, lines, field))


def _note_windows_line_ends(path: Path, chunks: Iterable[str], noted: list[Path]) -> Iterator[str]:
    """Pass the chunks on, and append the path to `noted` if the text has `\\r\\n`."""
    found, last = False, ""  # `last` is the last character of the chunk before
    for chunk in chunks:
        found = found or "\r\n" in last + chunk
        last = chunk[-1]
        yield chunk
    if found:
        noted.append(path)


def _split_lines(chunks: Iterable[str]) -> Iterator[str]:
    """The lines, each with its newline. Only `\\n` ends a line: `\\r` and the Unicode line ends are text."""
    rest = ""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split("\n")
        yield from (f"{line}\n" for line in lines)
    if rest:
        yield rest


def _cut_document(chunks: Iterable[str]) -> Iterator[str]:
    """One document in pieces, cut where the ids of the pieces are those of the whole."""
    text = ""
    for chunk in chunks:
        text, searched = text + chunk, len(text)
        if cut := CUT.search(text, searched):
            yield text[: cut.start()]
            text = text[cut.start() :]
    if text:
        yield _end_document(text)


def _join_documents(documents: Iterable[str]) -> Iterator[str]:
    """Pieces of many documents each, since most documents are short. `<|endoftext|>` separates them."""
    parts, size = [], 0
    for document in documents:
        if document:
            parts.append(_end_document(document))
            size += len(document)
        if size >= PIECE_SIZE:
            yield "".join(parts)
            parts, size = [], 0
    if parts:
        yield "".join(parts)


def _end_document(text: str) -> str:
    """The text with `<|endoftext|>` at its end, added unless the text has it already."""
    stripped = text.rstrip()
    return stripped if stripped.endswith(END_OF_TEXT) else text + END_OF_TEXT


def _read_csv(path: Path, lines: Iterable[str], column: str | None, lost_first_rows: list[Path]) -> Iterator[str]:
    """The texts of a column; blank rows are empty texts.

    Append the path to `lost_first_rows` where the first row is taken for the name of the only column, but isn't "text".
    """
    csv.field_size_limit(2**31 - 1)  # for the whole process: the largest limit that fits a C long on every system
    rows = csv.reader(lines, strict=True)
    try:
        header = next((row for row in rows if row), None)
        if header is None:
            return
        if column is None and len(header) > 1:
            raise ValueError(
                f"{path} has the columns {', '.join(header)}; choose one with --column NAME, or by its number with "
                "--column 1 if the first row is text already"
            )
        names_columns = column is None or column in header
        if not names_columns and column not in map(str, range(1, len(header) + 1)):
            raise ValueError(
                f"{path} has no column {column!r}; its first row has {', '.join(header)}. If that row is "
                "text already, choose the column by its number, from 1"
            )
        if names_columns:
            index = 0 if column is None else header.index(column)
            if column is None and header[0].strip().lower() != "text":
                lost_first_rows.append(path)
        else:
            index = int(column) - 1
            yield header[index]
        for row in rows:
            if row and len(row) != len(header):
                raise ValueError(
                    f"{path}: the row that ends in line {rows.line_num} has {len(row)} values, but the first row has "
                    f"{len(header)}; correct the file"
                )
            yield row[index] if row else ""
    except csv.Error as error:
        raise ValueError(f"{path}: line {rows.line_num} is not valid CSV: {error}; correct the file") from None


def _read_jsonl(path: Path, lines: Iterable[str], field: str) -> Iterator[str]:
    """The texts of a field; blank lines are skipped."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: line {number} is not JSON: {error}; expected one object per line") from None
        if not isinstance(record, dict):
            raise ValueError(f"{path}: line {number} is a JSON {type(record).__name__}; expected an object")
        text = record.get(field)
        if not isinstance(text, str):
            texts = ", ".join(name for name, value in record.items() if isinstance(value, str)) or "none"
            raise ValueError(
                f"{path}: line {number} has no text in the field {field!r}; choose another with --field. "
                f"Fields with text: {texts}"
            )
        yield text


def _replace_surrogates(text: str) -> str:
    """Join surrogate pairs, and replace lone surrogates by U+FFFD, as the encoder does. JSON escapes can give both."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
