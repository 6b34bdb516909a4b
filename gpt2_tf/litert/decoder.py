"""Runs a model on LiteRT: tokens -> logits, for one text or for a batch of texts, with a KV cache that grows."""

import contextlib
import itertools
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt2_tf.hparams import HParams
from gpt2_tf.litert import graph_files
from gpt2_tf.litert.graph import Signature
from gpt2_tf.litert.runtime import KVCache, Program

BATCHES = (1, 2, 4, 8, 16)  # the batches that have graphs; a batch between two of them is padded
MAX_BATCH = BATCHES[-1]
SMALLEST_CAPACITY = 128  # then doubled up to n_ctx, because a short text in a small cache reads less memory
MASKED = np.float32(-1e30)


class Decoder:
    """A model's graphs, ready to run.

    Args:
        folder: a folder that `graph_files.prepare` has filled, for the same `hparams` and `weights`.
        hparams: the model's sizes.
        weights: how the weights are stored, "float32" or "int8".
        threads: how many threads compute.

    Example:
        >>> logits = next(engine.decoder.score(enc.encode("ROMEO:"), count=1))
        >>> logits.shape
        (1, 1024)
    """

    def __init__(self, folder: Path, hparams: HParams, weights: str, threads: int):
        self.folder, self.hparams, self.weights, self.threads = folder, hparams, weights, threads
        self.programs: dict[tuple[str, int, int], Program] = {}
        self.lock = threading.Lock()  # threads that need the same program load it once
        first = self._graph_file("decode", 1, self.capacity(1))
        self.weight_cache = graph_files.weight_cache(folder, lambda path: self._load(first, path))

    def capacity(self, columns: int) -> int:
        """Return the smallest capacity of at least so many columns."""
        capacity = SMALLEST_CAPACITY
        while capacity < columns:
            capacity *= 2
        return min(capacity, self.hparams.n_ctx)

    def program(self, kind: str, batch: int, capacity: int) -> Program:
        """Return the graphs of this kind, batch and capacity. They are loaded when they are first needed."""
        key = (kind, batch, capacity)
        with self.lock:
            if key not in self.programs:
                self.programs[key] = self._load(self._graph_file(*key), self.weight_cache)
                with contextlib.suppress(OSError):  # says that the folder is in use; it may be read-only
                    os.utime(self.folder)
            return self.programs[key]

    def _graph_file(self, kind: str, batch: int, capacity: int) -> Path:
        return graph_files.graph_file(self.folder, self.hparams, self.weights, kind, batch, capacity)

    def _load(self, path: Path, weight_cache: Path) -> Program:
        return Program(path, self.hparams.n_vocab, self.threads, weight_cache)

    def prefill(self, tokens: Sequence[int], capacity: int, kind: str = "decode") -> KVCache:
        """Run one row of tokens, and return its cache."""
        cache = self.new_cache(capacity, kind)
        self.extend_cache(cache, tokens, 0, kind)
        return cache

    def new_cache(self, capacity: int, kind: str) -> KVCache:
        """Return an empty cache for one row."""
        return self.program(kind, 1, capacity).new_cache(graph_files.signatures(kind, 1, capacity)[0])

    def extend_cache(self, cache: KVCache, tokens: Sequence[int], n_past: int, kind: str) -> None:
        """Run one row of tokens, of which the cache holds the first `n_past`."""
        capacity = cache.signature.capacity
        program, signatures = self.program(kind, 1, capacity), graph_files.signatures(kind, 1, capacity)
        for first, _, signature in chunks(n_past, len(tokens), [s for s in signatures if not s.logits]):
            self.run_row(program, signature, cache, tokens[first : first + signature.seq], first)

    def run_row(
        self, program: Program, signature: Signature, cache: KVCache, tokens: Sequence[int], n_past: int
    ) -> np.ndarray | None:
        """Run a graph on one row of at most `signature.seq` tokens. Returns their logits, if any, [tokens, n_vocab].

        A shorter row is padded. What the padding writes into the cache is masked, and overwritten by the next tokens.
        """
        seq, n = signature.seq, len(tokens)
        columns = np.arange(signature.capacity)
        seen = columns <= n_past + np.arange(seq)[:, None]
        inputs = {
            "tokens": np.array([[*tokens, *[0] * (seq - n)]], np.int32),
            "input_pos": n_past + np.arange(seq, dtype=np.int32),
            "mask": np.where(seen, np.float32(0), MASKED)[None, None],
        }
        logits = program.run(signature, cache, inputs)
        return None if logits is None else logits[0, :n]

    def score(self, tokens: Sequence[int], count: int) -> Iterator[np.ndarray]:
        """Yield the logits of the last `count` tokens of one row, float32 [part, n_vocab], part after part."""
        capacity = self.capacity(len(tokens))
        program, signatures = self.program("score", 1, capacity), graph_files.signatures("score", 1, capacity)
        cache = self.prefill(tokens[: len(tokens) - count], capacity, kind="score")
        for first, start, signature in chunks(len(tokens) - count, len(tokens), [s for s in signatures if s.logits]):
            logits = self.run_row(program, signature, cache, tokens[first : first + signature.seq], first)
            yield logits[start - first :]


def chunks(start: int, stop: int, signatures: Sequence[Signature]) -> Iterator[tuple[int, int, Signature]]:
    """Divide the tokens `start` to `stop` - 1 of a row into chunks.

    A chunk that would end beyond the cache begins earlier, at tokens that the cache holds already; their keys and
    values are then computed again.

    Args:
        start: the first token that is not in the cache.
        stop: the number of tokens.
        signatures: the graphs, the shortest first.

    Yields:
        The chunk's first token, the first token of it that is new, and its graph.

    Example:
        >>> short, long = Signature(1, 16, 128, False), Signature(1, 128, 128, False)
        >>> [(first, new, signature.seq) for first, new, signature in chunks(100, 124, [short, long])]
        [(100, 100, 16), (112, 116, 16)]
    """
    while start < stop:
        # A few short chunks take less time than a long chunk that is mostly empty.
        signature = signatures[-1 if stop - start > 3 * signatures[0].seq else 0]
        first = max(0, min(start, signature.capacity - signature.seq))
        yield first, start, signature
        start = min(stop, first + signature.seq)


class CachedRow:
    """One text with its cache, of which the end may change at any time.

    Args:
        decoder: the model.

    Example:
        >>> row = CachedRow(engine.decoder)
        >>> row.logits([10, 20, 30]).shape
        (1, 1024)
        >>> row.logits([10, 20, 40, 50], count=2).shape  # 10 and 20 are not computed again
        (2, 1024)
    """

    def __init__(self, decoder: Decoder):
        self.decoder, self.tokens = decoder, []  # tokens: those of which the cache holds keys and values
        self.cache: KVCache | None = None

    def logits(self, tokens: Sequence[int], count: int = 1) -> np.ndarray:
        """Return the logits after each of the last `count` tokens, float32 [count, n_vocab].

        Args:
            tokens: the text, 1 to n_ctx tokens.
            count: from 1 to `graph_files.VERIFIED`.
        """
        capacity = self.decoder.capacity(len(tokens))
        if self.cache is None or self.cache.signature.capacity < capacity:
            self._grow(capacity)
        capacity = self.cache.signature.capacity
        program, signatures = self.decoder.program("verify", 1, capacity), graph_files.signatures("verify", 1, capacity)
        start = len(tokens) - count
        pairs = zip(self.tokens, tokens[:start], strict=False)
        n_valid = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        self.tokens = self.tokens[:n_valid]  # so that an interrupt leaves nothing wrong
        self.decoder.extend_cache(self.cache, tokens[:start], n_valid, kind="verify")
        signature = next(s for s in signatures if s.logits and s.seq >= min(count, capacity))
        first = min(start, capacity - signature.seq)
        logits = self.decoder.run_row(program, signature, self.cache, tokens[first:], first)
        self.tokens = list(tokens)
        return logits[start - first :]

    def _grow(self, capacity: int) -> None:
        """Take a cache of this capacity, and keep what is known."""
        cache = self.decoder.new_cache(capacity, kind="verify")
        if self.cache is not None:
            cache.write(right_align([StoredRow(self.cache.read(), 0, 0, len(self.tokens))], cache.shapes))
        self.cache = cache


class Batch:
    """Texts that are continued together, one token per row and step.

    The rows are left-padded: all rows write their next token into the same column of the cache.

    Args:
        decoder: the model.
        texts: token ids, 1 to n_ctx per row. The last token of each row is run by the first `next_logits`.

    Example:
        >>> batch = Batch(engine.decoder, [[10, 20, 30], [40]])
        >>> batch.next_logits().shape
        (2, 1024)
        >>> batch.select([1], last_tokens=[50])
        >>> batch.next_logits().shape
        (1, 1024)
    """

    def __init__(self, decoder: Decoder, texts: Sequence[Sequence[int]]):
        self.decoder, self.last_tokens = decoder, [text[-1] for text in texts]
        caches = [decoder.prefill(text[:-1], decoder.capacity(len(text))) for text in texts]
        if len(texts) == 1:
            self.cache, self.n_past = caches[0], len(texts[0]) - 1  # n_past: how many columns are in use
            self.slots = self.pad_lengths = np.zeros(1, int)  # slots: where each row lies in the cache
        else:
            self._store(
                [StoredRow(cache.read(), 0, 0, len(text) - 1) for cache, text in zip(caches, texts, strict=True)]
            )

    @classmethod
    def gather(cls, batches: Sequence["Batch"], rows: Sequence[int], last_tokens: Sequence[int]) -> list["Batch"]:
        """Make new batches of some of the rows of several batches, counted through. A row may be taken repeatedly."""
        stored = [row for batch in batches for row in batch._stored_rows()]
        gathered = []
        for first in range(0, len(rows), MAX_BATCH):
            batch = cls.__new__(cls)
            batch.decoder, batch.last_tokens = batches[0].decoder, list(last_tokens[first : first + MAX_BATCH])
            batch._store([stored[row] for row in rows[first : first + MAX_BATCH]])
            gathered.append(batch)
        return gathered

    def next_logits(self) -> np.ndarray:
        """Run each row's last token, and return the logits of the next tokens, float32 [rows, n_vocab]."""
        if self.n_past == self.cache.signature.capacity:
            self._store(self._stored_rows())
        batch, _, capacity, _ = signature = self.cache.signature
        column, columns = self.n_past, np.arange(capacity)
        tokens, pads = np.zeros([batch, 1], np.int32), np.full(batch, column)
        tokens[self.slots, 0], pads[self.slots] = self.last_tokens, self.pad_lengths
        seen = (columns >= pads[:, None]) & (columns <= column)
        inputs = {
            "tokens": tokens,
            "input_pos": np.array([column], np.int32),
            "mask": np.where(seen, np.float32(0), MASKED)[:, None, None],
        }
        if batch > 1:
            inputs["positions"] = (column - pads)[:, None].astype(np.int32)
        logits = self.decoder.program("decode", batch, capacity).run(signature, self.cache, inputs)
        self.n_past += 1
        return logits[self.slots, 0]

    def select(self, rows: Sequence[int], last_tokens: Sequence[int]) -> None:
        """Keep these rows, in this order, with these tokens as the next to run. A row may be kept more than once."""
        slots = self.slots[rows]
        self.last_tokens = list(last_tokens)
        if len(set(slots.tolist())) < len(slots) or round_up(len(slots)) < self.cache.signature.batch:
            stored = self._stored_rows()
            self._store([stored[row] for row in rows])
        else:
            self.slots, self.pad_lengths = slots, self.pad_lengths[rows]

    def _stored_rows(self) -> list["StoredRow"]:
        arrays = self.cache.read()
        return [
            StoredRow(arrays, slot, pad_length, self.n_past - pad_length)
            for slot, pad_length in zip(self.slots, self.pad_lengths, strict=True)
        ]

    def _store(self, rows: Sequence["StoredRow"]) -> None:
        """Copy the rows to a new cache, which has room for one more token."""
        self.n_past = max(row.n for row in rows)
        self.pad_lengths = np.array([self.n_past - row.n for row in rows])
        self.slots = np.arange(len(rows))
        signature = Signature(round_up(len(rows)), 1, self.decoder.capacity(self.n_past + 1), logits=True)
        program = self.decoder.program("decode", signature.batch, signature.capacity)
        self.cache = program.new_cache(signature)
        self.cache.write(right_align(rows, self.cache.shapes))


class StoredRow(NamedTuple):
    """Where the keys and values of one text lie: `n` columns from column `first`, in this slot of a cache's content.

    Example:
        >>> StoredRow(arrays={}, slot=0, first=2, n=5).n
        5
    """

    arrays: Mapping[str, np.ndarray]
    slot: int
    first: int
    n: int


def right_align(rows: Sequence[StoredRow], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return the content of a cache of these shapes with these rows, which all end in the same column.

    Example:
        >>> keys = {"kv_cache_k_0": np.ones([1, 1, 4, 1], np.float32)}
        >>> rows = [StoredRow(keys, slot=0, first=0, n=n) for n in (1, 3)]
        >>> right_align(rows, {"kv_cache_k_0": (2, 1, 4, 1)})["kv_cache_k_0"][:, 0, :, 0].tolist()
        [[0.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]]
    """
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    end = max(row.n for row in rows)
    for slot, row in enumerate(rows):
        here, there = slice(end - row.n, end), slice(row.first, row.first + row.n)
        for name, array in arrays.items():
            if name.startswith("kv_cache_k"):
                array[slot, :, here] = row.arrays[name][row.slot, :, there]
            else:
                array[slot, :, :, here] = row.arrays[name][row.slot, :, :, there]
    return arrays


def round_up(n: int) -> int:
    """Return the smallest of BATCHES that holds n rows.

    Example:
        >>> round_up(5)
        8
    """
    return min(batch for batch in BATCHES if batch >= n)
