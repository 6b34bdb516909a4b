"""Files of text -> token ids on disk, ready to train on: once, in pieces, so that no text is too large for memory.

A prepared folder holds `train.bin`, the ids one after another with `<|endoftext|>` after each document, `train.json`,
which says what they are, the same two of `val` where some are kept for validation, and the vocabulary.
"""

import contextlib
import functools
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from encoder import Encoder
from encoder.bpe import END_OF_TEXT
from gpt2_tf.data import corpus
from gpt2_tf.data.corpus import Files

with contextlib.suppress(ImportError):  # Windows has none
    import fcntl

LOOK = 2**20  # ids looked through at a time


class Prepared(NamedTuple):
    """`train` and `val`: token ids, uint16 or uint32 [count], memory-mapped; `encoder`: their vocabulary."""

    train: np.ndarray
    val: np.ndarray | None
    encoder: Encoder


def prepare(
    files: Files,
    out: str | os.PathLike,
    vocabulary: Encoder | int | str,
    *,
    column: str | None = None,
    field: str = "text",
    val_fraction: float = 0.0,
    val_files: Files = (),
) -> Prepared:
    """Tokenises files into the folder `out`, in threads and with a bar on stderr; what is there already is read.

    Each .txt is a document, and each row of a .csv and line of a .jsonl; any may be .gz. The real id of
    `<|endoftext|>` ends a document, also where a text has its letters. The order is that of the files.

    Args:
        files: names, globs, and folders, of which all files of these kinds are read, in the order of their names.
        vocabulary: an encoder, how many tokens to learn from the text, or "chars" for a token a character.
        column: of a .csv, by its first row; one with a single column needs none.
        field: of a .jsonl's objects.
        val_fraction: share of the ids, the last ones, that are for validation.
        val_files: what to validate on instead; `vocabulary` isn't learned from them, but "chars" takes theirs too.

    Raises:
        OSError: a file isn't there, or can't be read or written.
        ValueError: a file isn't UTF-8, or not what its name says; there is no text; both kinds of validation.
        BlockingIOError: another process is writing `out`.
    """
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction is {val_fraction}, but must be at least 0 and below 1")
    if val_fraction and val_files:
        raise ValueError("val_fraction and a file to validate on are both given; give one of them")
    sources = {"train": corpus.find(files)}
    if val_files:
        sources["val"] = corpus.find(val_files)
        held_out = {path.resolve() for path in sources["val"]}
        sources["train"] = [path for path in sources["train"] if path.resolve() not in held_out]
        if not sources["train"]:
            raise ValueError("all files are given to validate on, which leaves none to train on; give others")
    identities = {name: [_identity(path) for path in paths] for name, paths in sources.items()}
    named = vocabulary_hash(vocabulary) if isinstance(vocabulary, Encoder) else vocabulary
    source = _sha256(json.dumps([named, column, field, val_fraction, identities]).encode())
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with alone(out):
        if (done := _done(out, source)) is not None:
            return done
        _check_place(out)

        read = functools.partial(corpus.read, column=column, field=field)
        encoder = _encoder(vocabulary, sources, read)
        dtype = np.dtype(np.uint16 if encoder.n_vocab <= 2**16 else np.uint32)
        with _parts(out) as parts:
            for name, paths in sources.items():
                with open(parts[name], "wb") as file:
                    for ids in _encoded(encoder, read(paths, f"tokenising {name}")):
                        file.write(ids.astype(dtype).tobytes())
                    if not file.tell():
                        raise ValueError(f"there is no text to tokenise in {_names(paths)}; give files that hold some")
            if val_fraction:
                _move_end(parts["train"], parts["val"], val_fraction, dtype)
            _put(out, parts, encoder, dtype, source)
    return load(out, encoder)


def load(place: str | os.PathLike, encoder: Encoder | None = None, *, val_fraction: float = 0.0) -> Prepared:
    """A prepared folder, or a `.bin` like nanoGPT's: uint16, with no JSON beside it and a `val.bin` or none.

    Args:
        place: the folder, or its `train.bin`, or any other `.bin`.
        encoder: of the vocabulary that it must be in; None takes the one beside it.
        val_fraction: share of the ids, the last ones, to validate on where there is no `val.bin`.

    Raises:
        FileNotFoundError: there is no `.bin`, or no vocabulary.
        ValueError: a file isn't whole, is in another vocabulary, or has ids that the vocabulary hasn't.
    """
    path = Path(place)
    path = path / "train.bin" if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; `gpt2-tf prepare` makes one of texts")
    encoder = encoder or Encoder.from_folder(path.parent)
    train, val = _ids(path, encoder), None
    beside = path.with_name("val.bin")
    if path.name == "train.bin" and beside.exists():
        val = _ids(beside, encoder)
    elif val_fraction:
        cut = _cut(len(train), val_fraction)
        train, val = train[:cut], train[cut:]
    return Prepared(train, val, encoder)


def identity(data: Prepared) -> str:
    """The same for the same ids to train on: by their count, and the first million of them."""
    head = np.asarray(data.train[:LOOK], np.uint32)
    return _sha256(str(len(data.train)).encode() + head.tobytes())


def is_prepared(files: Files) -> bool:
    """Whether these are one folder or `.bin` for `load`, not texts for `prepare`."""
    if len(files) != 1:
        return False
    (path,) = map(Path, files)
    return path.suffix == ".bin" or (path / "train.bin").exists()


def vocabulary_hash(encoder: Encoder) -> str:
    """The same for vocabularies that give all texts the same ids."""
    return _sha256(repr((encoder.tokens, sorted(encoder.special_tokens.items()))).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths[:3])) + f" and {len(paths) - 3} more" * (len(paths) > 3) or "no files"


def _identity(path: Path) -> list:
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds the folder against other processes; a kill lets go of it."""
    if "fcntl" not in globals():
        yield
        return
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"{folder} is being written by another process; wait for it, or choose another folder"
            ) from None
        yield
    finally:
        os.close(held)


def _check_place(out: Path) -> None:
    """Raises FileExistsError where a model's vocabulary, or another's ids, would be overwritten."""
    others = ["hparams.json"]
    if not (out / "train.json").exists():
        others += ["encoder.json", "vocab.bpe", "train.bin", "val.bin"]
    for name in others:
        if (out / name).exists():
            raise FileExistsError(f"{out} has a {name} of something else; choose another folder")


# Ids out


def _encoder(vocabulary: Encoder | int | str, sources: dict[str, list[Path]], read: Callable) -> Encoder:
    if isinstance(vocabulary, Encoder):
        return vocabulary
    from encoder.train import characters, learn

    if vocabulary == "chars":
        return characters(corpus.plain(read([*chain(*sources.values())], "finding characters")))
    return learn(corpus.plain(read(sources["train"], "learning words")), vocabulary)


@contextlib.contextmanager
def _parts(out: Path) -> Iterator[dict[str, Path]]:
    """Where the ids are written until all are there; nothing is left there after it, nor of a run that was killed."""
    parts = {name: out / f"{name}.bin.part" for name in ("train", "val")}

    def remove() -> None:
        for part in parts.values():
            part.unlink(missing_ok=True)

    remove()
    try:
        yield parts
    finally:
        remove()


def _encoded(encoder: Encoder, texts: Iterable[str]) -> Iterator[np.ndarray]:
    """The ids of each text, in order; others are encoded meanwhile, in threads, as the encoder's work needs no GIL."""
    threads = os.cpu_count() or 1
    waiting = deque()

    def ids(text: str) -> np.ndarray:
        return np.asarray(encoder.encode(text, (END_OF_TEXT,)), np.uint32)

    pool = ThreadPoolExecutor(threads)
    try:
        for text in texts:
            waiting.append(pool.submit(ids, text))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _cut(count: int, val_fraction: float) -> int:
    """Where the ids to validate on begin; ValueError where either part has none."""
    cut = count - round(count * val_fraction)
    if not 0 < cut < count:
        raise ValueError(f"a share of {val_fraction} of {count} tokens leaves a part without any; choose another share")
    return cut


def _move_end(path: Path, other: Path, share: float, dtype: np.dtype) -> None:
    cut = _cut(path.stat().st_size // dtype.itemsize, share) * dtype.itemsize
    with open(path, "r+b") as file, open(other, "wb") as end:
        file.seek(cut)
        while content := file.read(2**24):
            end.write(content)
        file.truncate(cut)


def _put(out: Path, parts: dict[str, Path], encoder: Encoder, dtype: np.dtype, source: str) -> None:
    """Moves all to its place: `train.bin`, without which nothing is taken for prepared, goes first and comes last."""
    for name in ("train.bin", "val.bin", "val.json"):
        (out / name).unlink(missing_ok=True)
    there = [name for name, part in parts.items() if part.exists()]
    for name in there:
        with open(parts[name], "rb+") as file:
            os.fsync(file.fileno())
        about = {
            "count": parts[name].stat().st_size // dtype.itemsize,
            "dtype": dtype.name,
            "n_vocab": encoder.n_vocab,
            "vocabulary": vocabulary_hash(encoder),
            "source": source,
        }
        described = out / f"{name}.json.part"
        described.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        os.replace(described, out / f"{name}.json")
    encoder.save(out)
    for name in reversed(there):
        os.replace(parts[name], out / f"{name}.bin")


# Ids in


def _done(out: Path, source: str) -> Prepared | None:
    """What was prepared of the same source, where all of it is there."""
    try:
        return load(out) if json.loads((out / "train.json").read_bytes())["source"] == source else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _ids(path: Path, encoder: Encoder) -> np.ndarray:
    described = path.with_suffix(".json")
    size = path.stat().st_size
    if described.exists():
        count, dtype = _about(described, encoder)
    else:
        count, dtype = size // 2, np.dtype(np.uint16)
    if size != count * dtype.itemsize:
        expected = f"{described.name} says {count} ids of {dtype}" if described.exists() else "each id has two"
        raise ValueError(f"{path} has {size} bytes, but {expected}; prepare it again")
    if not size:
        raise ValueError(f"{path} is empty; prepare it from a text")
    ids = np.memmap(path, dtype, mode="r")
    if not described.exists():
        for start in range(0, len(ids), LOOK):
            highest = int(ids[start : start + LOOK].max())
            if highest >= encoder.n_vocab:
                raise ValueError(
                    f"{path} has the id {highest} among those from {start}, but the vocabulary has {encoder.n_vocab} "
                    "tokens; give the vocabulary that it was made with"
                )
    return ids


def _about(described: Path, encoder: Encoder) -> tuple[int, np.dtype]:
    """The count and kind of the ids. ValueError where the JSON is damaged, or of another vocabulary."""
    try:
        about = json.loads(described.read_bytes())
        dtype = {"uint16": np.dtype(np.uint16), "uint32": np.dtype(np.uint32)}[about["dtype"]]
        count, vocabulary = int(about["count"]), about["vocabulary"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{described} is damaged; prepare the text again") from None
    if vocabulary != vocabulary_hash(encoder):
        raise ValueError(
            f"{described} is of another vocabulary, of {about.get('n_vocab')} tokens, than the model's of "
            f"{encoder.n_vocab}; prepare the text again with the model's"
        )
    return count, dtype
