"""Text files -> a folder of token ids to train on, as `gpt2-tf prepare` does it; `prepared.py` reads the folder."""

import functools
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np

from encoder import Encoder
from encoder.bpe import END_OF_TEXT
from gpt2_tf.data import corpus
from gpt2_tf.data.corpus import Files
from gpt2_tf.data.prepared import Prepared, first_val_id, load_prepared, sha256, vocabulary_fingerprint
from gpt2_tf.files.atomic import move_into_place, new_folder, remove_abandoned, staging_folder
from gpt2_tf.files.lock import folder_lock
from gpt2_tf.files.regular import open_regular


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
    """Tokenize text files into a folder, in threads and with a progress bar on stderr.

    A document is a whole .txt file, a row of a .csv file or a line of a .jsonl file; each file may be gzipped (.gz).
    The id of `<|endoftext|>` ends every document. A `<|endoftext|>` written out in a text becomes that id too. The
    documents keep the order of the files. The texts are read in pieces, so they may be larger than memory. When the
    folder already holds the ids of the same files with the same arguments, they are kept.

    Args:
        files: names, globs and folders. Of a folder, all text files below it are read, sorted by name.
        out: the folder to write; new, empty, or prepared before.
        vocabulary: an encoder; or the number of tokens to learn from the text; or "chars" for one token per character.
        column: of .csv files, the column to read, as named in the first row; or its number from 1, such as "1", where
            the first row is text already. None where there is only one column, which the first row names.
        field: of .jsonl files, the field of each object to read.
        val_fraction: the fraction of the ids, from the end, held out for validation; at least 0, and less than 1.
        val_files: files held out for validation instead. A vocabulary is not learned from them, but "chars" includes
            their characters.

    Raises:
        OSError: a file is missing, or can't be read or written.
        ValueError: a file is not UTF-8, or doesn't have the format of its name; there is no text; `val_fraction` and
            `val_files` are both given.
        FileExistsError: `out` holds a model or ids that are not from `prepare`.
        BlockingIOError: another process is writing `out`.

    Example:
        >>> _ = Path("text.txt").write_text("to be or not to be")
        >>> prepared = prepare(["text.txt"], "ids", enc)
        >>> enc.decode(prepared.train)
        'to be or not to be<|endoftext|>'
    """
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction is {val_fraction}, but must be at least 0 and below 1")
    sources = _find_sources(files, val_files, val_fraction, notices=True)
    fingerprint = _source_fingerprint(sources, vocabulary, column, field, val_fraction)
    with new_folder(out) as out, folder_lock(out):
        remove_abandoned(out)
        if (kept := _load_if_same_source(out, fingerprint)) is not None:
            return kept
        _check_nothing_lost(out)
        read = functools.partial(corpus.read_documents, column=column, field=field)
        encoder = _make_encoder(vocabulary, sources, read)
        dtype = np.dtype(np.uint16 if encoder.n_vocab <= 2**16 else np.uint32)
        with staging_folder(out) as staging:
            for name, paths in sources.items():
                _write_ids(
                    staging / f"{name}.bin", encoder, read(paths, f"tokenizing {name}", notices=True), dtype, paths
                )
            if val_fraction:
                _split_end(staging / "train.bin", staging / "val.bin", val_fraction, dtype)
            for path in [*staging.iterdir()]:
                _write_description(path, encoder, dtype, fingerprint)
            encoder.save(staging)
            _publish(staging, out)
    return load_prepared(out, encoder)


def source_fingerprint(
    files: Files,
    vocabulary: Encoder | int | str,
    *,
    column: str | None = None,
    field: str = "text",
    val_fraction: float = 0.0,
    val_files: Files = (),
) -> str:
    """A hash that changes when an argument of `prepare` changes, or one of the files: its name, size or time.

    `prepare` writes it into `train.json` as "source". The arguments and errors are those of `prepare`.

    Example:
        >>> _ = Path("a.txt").write_text("one")
        >>> before = source_fingerprint(["a.txt"], "chars")
        >>> _ = Path("a.txt").write_text("four")
        >>> before == source_fingerprint(["a.txt"], "chars")
        False
    """
    return _source_fingerprint(_find_sources(files, val_files, val_fraction), vocabulary, column, field, val_fraction)


def _find_sources(
    files: Files, val_files: Files, val_fraction: float, *, notices: bool = False
) -> dict[str, list[Path]]:
    """The files to train on, and those to validate on, which are left out of the first."""
    if val_fraction and val_files:
        raise ValueError("val_fraction and val_files are both given; give one of them")
    sources = {"train": corpus.find_text_files(files, notices=notices)}
    if val_files:
        sources["val"] = corpus.find_text_files(val_files, notices=notices)
        held_out = {path.resolve() for path in sources["val"]}
        sources["train"] = [path for path in sources["train"] if path.resolve() not in held_out]
        if not sources["train"]:
            raise ValueError("all files are validation files, which leaves none to train on; give more files")
    return sources


def stored_source(folder: str | os.PathLike) -> str | None:
    """The `source_fingerprint` of the files that a prepared folder was made from, or None if it has none.

    Raises:
        OSError: `train.json` is missing or can't be read.
        ValueError: `train.json` is a pipe or a device.

    Example:
        >>> _ = Path("a.txt").write_text("one")
        >>> _ = prepare(["a.txt"], "ids", "chars")
        >>> stored_source("ids") == source_fingerprint(["a.txt"], "chars")
        True
    """
    with open_regular(Path(folder, "train.json")) as file:
        content = file.read()
    try:
        return json.loads(content)["source"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _source_fingerprint(
    sources: dict[str, list[Path]],
    vocabulary: Encoder | int | str,
    column: str | None,
    field: str,
    val_fraction: float,
) -> str:
    def file_state(path: Path) -> list:
        stat = path.stat()
        return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]

    file_states = {name: [file_state(path) for path in paths] for name, paths in sources.items()}
    if isinstance(vocabulary, Encoder):
        vocabulary = vocabulary_fingerprint(vocabulary)
    return sha256(json.dumps([vocabulary, column, field, val_fraction, file_states]).encode())


def _load_if_same_source(out: Path, fingerprint: str) -> Prepared | None:
    """The ids in the folder if they are complete and from the same source, else None."""
    try:
        return load_prepared(out) if stored_source(out) == fingerprint else None
    except (OSError, ValueError):
        return None


def _check_nothing_lost(out: Path) -> None:
    """Raise FileExistsError where a model, its vocabulary or ids of another origin would be overwritten."""
    others = ["hparams.json"]
    if not (out / "train.json").exists():
        others += ["encoder.json", "vocab.bpe", "train.bin", "val.bin"]
    for name in others:
        if (out / name).exists():
            raise FileExistsError(f"{out} holds a {name} that `prepare` has not written; choose another folder")


def _make_encoder(vocabulary: Encoder | int | str, sources: dict[str, list[Path]], read: Callable) -> Encoder:
    """The encoder that was given, or one of the characters, or one learned from the training text."""
    if isinstance(vocabulary, Encoder):
        return vocabulary
    from encoder.train import characters, learn

    if vocabulary == "chars":
        paths = [*chain(*sources.values())]
        return characters(corpus.without_end_of_text(read(paths, "finding characters")))
    return learn(corpus.without_end_of_text(read(sources["train"], "learning tokens")), vocabulary)


def _write_ids(path: Path, encoder: Encoder, texts: Iterable[str], dtype: np.dtype, sources: Sequence[Path]) -> None:
    with open(path, "wb") as file:
        for ids in _encode_in_threads(encoder, texts):
            file.write(ids.astype(dtype).tobytes())
        if not file.tell():
            raise ValueError(f"there is no text in {_list_names(sources)}; give files that hold text")


def _encode_in_threads(encoder: Encoder, texts: Iterable[str]) -> Iterator[np.ndarray]:
    """The ids of each text, in order. The encoder releases the GIL, so threads encode the next texts meanwhile."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    futures = deque()

    def encode(text: str) -> np.ndarray:
        return np.asarray(encoder.encode(text, (END_OF_TEXT,)), np.uint32)

    pool = ThreadPoolExecutor(threads)
    try:
        for text in texts:
            futures.append(pool.submit(encode, text))
            if len(futures) > 2 * threads:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _split_end(train_path: Path, val_path: Path, val_fraction: float, dtype: np.dtype) -> None:
    """Move the last ids of one file to another."""
    offset = first_val_id(train_path.stat().st_size // dtype.itemsize, val_fraction) * dtype.itemsize
    with open(train_path, "r+b") as train_file, open(val_path, "wb") as val_file:
        train_file.seek(offset)
        while content := train_file.read(2**24):
            val_file.write(content)
        train_file.truncate(offset)


def _write_description(path: Path, encoder: Encoder, dtype: np.dtype, fingerprint: str) -> None:
    """Write the JSON file that describes the ids of a `.bin`, beside it."""
    description = {
        "count": path.stat().st_size // dtype.itemsize,
        "dtype": dtype.name,
        "n_vocab": encoder.n_vocab,
        "vocabulary": vocabulary_fingerprint(encoder),
        "source": fingerprint,
    }
    path.with_suffix(".json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _publish(staging: Path, out: Path) -> None:
    """Move the finished files to their folder.

    Without a `train.bin` the folder doesn't count as prepared. So the old one goes first and the new one comes last:
    whenever the process is killed, old and new files can't be taken for one whole. `train.json` is the first to come,
    because it tells the next `prepare` that the other files are its own.
    """
    for name in ("train.bin", "val.bin", "val.json"):
        (out / name).unlink(missing_ok=True)
    paths = sorted(staging.iterdir(), key=lambda path: (path.suffix == ".bin", path.name != "train.json"))
    train = staging / "train.bin"
    move_into_place([*(path for path in paths if path != train), train], out)


def _list_names(paths: Sequence[Path]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(map(str, paths[:3])) + f" and {len(paths) - 3} more" * (len(paths) > 3)
