"""Prepared token ids: the folder that `gpt2-tf prepare` writes, or a `.bin` file of nanoGPT.

A prepared folder holds `train.bin`, the ids of all documents with `<|endoftext|>` after each, and `train.json`, which
describes them; `val.bin` and `val.json` where some ids are held out for validation; and the vocabulary.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from encoder import Encoder

IDS_PER_READ = 2**20


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
    """Read a prepared folder, or ids as nanoGPT writes them: uint16 in a `.bin`, with a `val.bin` beside it or not.

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
    encoder = encoder or Encoder.from_folder(path.parent)
    train, val = _map_ids(path, encoder), None
    val_path = path.with_name("val.bin")
    if path.name == "train.bin" and val_path.exists():
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
    size = path.stat().st_size
    if json_path.exists():
        count, dtype = _read_description(json_path, encoder)
    else:
        count, dtype = size // 2, np.dtype(np.uint16)
    if size != count * dtype.itemsize:
        expected = f"{json_path.name} says {count} ids of {dtype}" if json_path.exists() else "each id has 2 bytes"
        raise ValueError(f"{path} has {size} bytes, but {expected}; prepare it again")
    if not size:
        raise ValueError(f"{path} is empty; prepare it from text files")
    ids = np.memmap(path, dtype, mode="r")
    if not json_path.exists():
        _check_ids(path, ids, encoder)
    return ids


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
    try:
        description = json.loads(json_path.read_bytes())
        dtype = {"uint16": np.dtype(np.uint16), "uint32": np.dtype(np.uint32)}[description["dtype"]]
        count, vocabulary = int(description["count"]), description["vocabulary"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{json_path} is damaged; prepare the text again") from None
    if vocabulary != vocabulary_fingerprint(encoder):
        raise ValueError(
            f"{json_path} describes ids of a vocabulary of {description.get('n_vocab')} tokens, which differs from "
            f"the model's of {encoder.n_vocab}; prepare the text again with the model's vocabulary"
        )
    return count, dtype
