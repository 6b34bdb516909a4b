"""Prepared token ids: the folder that `gpt2-tf prepare` writes, or a `.bin` file of nanoGPT or llm.c.

A prepared folder holds `train.bin`, the ids of all documents with `<|endoftext|>` after each, and `train.json`, which
describes them; `val.bin` and `val.json` where some ids are held out for validation; and the vocabulary.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from encoder import Encoder
from gpt2_tf.files import open_regular

IDS_PER_READ = 2**20
# llm.c begins its files of GPT-2's ids with 256 int32: this number, the version 1, the count of ids, and zeros. The
# uint16 ids follow. nanoGPT's files have no header; read as ids, this number would begin with 55432, which GPT-2 lacks.
LLM_C_MAGIC, LLM_C_VERSION = 20240520, 1
LLM_C_HEADER_SIZE = 256 * 4  # bytes


class Prepared(NamedTuple):
    """Token ids to train on and to validate on, memory-mapped from disk.

    Attributes:
        train: uint16 or uint32 [count].
        val: uint16 or uint32 [count], or None without validation tokens.
        encoder: the vocabulary of the ids.

    Example:
        >>> Prepared(np.array([5, 6, 7], np.uint16), None, enc).train.dtype
        dtype('uint16')
    """

    train: np.ndarray
    val: np.ndarray | None
    encoder: Encoder


def load_prepared(path: str | os.PathLike, encoder: Encoder | None = None, *, val_fraction: float = 0.0) -> Prepared:
    """Read a prepared folder, or a `.bin` of uint16 ids that nanoGPT or llm.c wrote.

    Beside a file whose name ends in `train.bin`, the file with `val.bin` in its place is read too, if it exists.

    Args:
        path: the folder, its `train.bin`, or any other `.bin`.
        encoder: the vocabulary that the ids must belong to; None takes the one beside the ids.
        val_fraction: where there is no `val.bin`, the fraction of the ids, from the end, that is used for validation;
            at least 0, and less than 1.

    Raises:
        FileNotFoundError: the `.bin` or the vocabulary is missing.
        ValueError: a file is damaged or incomplete, belongs to another vocabulary, or has ids outside it.

    Example:
        >>> np.arange(100, dtype=np.uint16).tofile("ids.bin")
        >>> prepared = load_prepared("ids.bin", enc, val_fraction=0.1)
        >>> len(prepared.train), len(prepared.val)
        (90, 10)
    """
    path = Path(path)
    path = path / "train.bin" if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; `gpt2-tf prepare` makes it from text files")
    if path.with_name("meta.pkl").exists() and not path.with_suffix(".json").exists():
        raise ValueError(
            f"{path} has ids of nanoGPT's own vocabulary, which is in meta.pkl; pickles are never read, because they "
            "can run code. Tokenize the text again: gpt2-tf prepare input.txt --out DIR --vocab-size chars"
        )
    encoder = encoder or Encoder.from_folder(path.parent)
    train, val = _map_ids(path, encoder), None
    stem = path.name.removesuffix("train.bin")
    val_path = path.with_name(f"{stem}val.bin")
    if stem != path.name and val_path.exists():
        val = _map_ids(val_path, encoder)
    elif val_fraction:
        first = first_val_id(len(train), val_fraction)
        train, val = train[:first], train[first:]
    return Prepared(train, val, encoder)


def is_prepared(files: Sequence[str | os.PathLike]) -> bool:
    """Whether the files are one folder or `.bin` for `load_prepared`, rather than texts for `prepare`.

    Example:
        >>> is_prepared(["ids.bin"]), is_prepared(["text.txt"])
        (True, False)
    """
    if len(files) != 1:
        return False
    path = Path(files[0])
    return path.suffix == ".bin" or (path / "train.bin").exists()


def ids_fingerprint(prepared: Prepared) -> str:
    """A hash that changes when the training ids change: SHA-256 of their count and the first million of them.

    Example:
        >>> len(ids_fingerprint(Prepared(np.array([5, 6, 7], np.uint16), None, enc)))
        64
    """
    head = np.asarray(prepared.train[:IDS_PER_READ], np.uint32)
    return sha256(str(len(prepared.train)).encode() + head.tobytes())


def vocabulary_fingerprint(encoder: Encoder) -> str:
    """A hash that is equal for vocabularies that give every text the same ids.

    Example:
        >>> vocabulary_fingerprint(enc) == vocabulary_fingerprint(enc)
        True
    """
    return sha256(repr((encoder.tokens, sorted(encoder.special_tokens.items()))).encode())


def sha256(content: bytes) -> str:
    """The SHA-256 of the content, in hexadecimal.

    Example:
        >>> sha256(b"text")[:16]
        '982d9e3eb996f559'
    """
    return hashlib.sha256(content).hexdigest()


def first_val_id(count: int, val_fraction: float) -> int:
    """Where the validation ids begin, among `count` ids.

    Raises:
        ValueError: no id would be left to train on, or none to validate on.

    Example:
        >>> first_val_id(100, 0.1)
        90
    """
    first = count - round(count * val_fraction)
    if not 0 < first < count:
        raise ValueError(
            f"val_fraction {val_fraction} of {count} tokens leaves none to train on or none to validate on; "
            "choose another val_fraction"
        )
    return first


def _map_ids(path: Path, encoder: Encoder) -> np.ndarray:
    """The ids of a `.bin`, memory-mapped and checked against its JSON file, or without one against the vocabulary."""
    json_path = path.with_suffix(".json")
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        llm_c_count = None if json_path.exists() else _read_llm_c_header(path, file)
    offset, dtype = 0, np.dtype(np.uint16)
    if json_path.exists():
        count, dtype = _read_description(json_path, encoder)
        expected = f"{json_path.name} says {count} ids of {dtype}"
    elif llm_c_count is not None:
        count, offset = llm_c_count, LLM_C_HEADER_SIZE
        expected = f"its header of {LLM_C_HEADER_SIZE} bytes says {count} ids of {dtype}"
    else:
        count = size // 2
        expected = "each id has 2 bytes"
    if size != offset + count * dtype.itemsize:
        raise ValueError(f"{path} has {size} bytes, but {expected}; prepare it again")
    if not count:
        raise ValueError(f"{path} is empty; prepare it from text files")
    ids = np.memmap(path, dtype, mode="r", offset=offset)
    _check_ids(path, ids, encoder)
    return ids


def _read_llm_c_header(path: Path, file: BinaryIO) -> int | None:
    """The count of ids in a file of llm.c; None for a file without llm.c's header.

    Raises:
        ValueError: the header is of another version of llm.c's files.
    """
    header = np.frombuffer(file.read(12).ljust(12, b"\0"), "<i4")
    magic, version, count = map(int, header)
    if magic != LLM_C_MAGIC:
        return None
    if version != LLM_C_VERSION or count < 0:
        raise ValueError(
            f"{path} is a file of llm.c of version {version} with {count} ids; expected version {LLM_C_VERSION}"
        )
    return count


def _check_ids(path: Path, ids: np.ndarray, encoder: Encoder) -> None:
    """Raise ValueError where an id is outside the vocabulary."""
    for start in range(0, len(ids), IDS_PER_READ):
        highest = int(ids[start : start + IDS_PER_READ].max())
        if highest >= encoder.n_vocab:
            raise ValueError(
                f"{path} has the id {highest} at or after position {start}, but the vocabulary has {encoder.n_vocab} "
                "tokens; give the vocabulary that the file was made with"
            )


def _read_description(json_path: Path, encoder: Encoder) -> tuple[int, np.dtype]:
    """The count and dtype of the ids that a JSON file describes.

    Raises:
        ValueError: the JSON is damaged, or describes ids of another vocabulary.
    """
    with open_regular(json_path) as file:
        content = file.read()
    try:
        description = json.loads(content)
        dtype = {"uint16": np.dtype(np.uint16), "uint32": np.dtype(np.uint32)}[description["dtype"]]
        count, vocabulary = int(description["count"]), description["vocabulary"]
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        raise ValueError(f"{json_path} is damaged; prepare the text again") from None
    if vocabulary != vocabulary_fingerprint(encoder):
        raise ValueError(
            f"{json_path} describes ids of a vocabulary of {description.get('n_vocab')} tokens, which differs from "
            f"the model's of {encoder.n_vocab}; prepare the text again with the model's vocabulary"
        )
    return count, dtype
