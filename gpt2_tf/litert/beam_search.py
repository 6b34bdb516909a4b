"""Beam search in NumPy: the search of `generation/beam_decoding.py`, on LiteRT's graphs."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from gpt2_tf.files import interrupt
from gpt2_tf.generation.engine import Beam, check_logprobs
from gpt2_tf.generation.stop_strings import STOPPED
from gpt2_tf.litert.decoder import MAX_BATCH, Batch, Decoder


class Path(NamedTuple):
    """One beam.

    Example:
        >>> Path().n_new
        0
    """

    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    total: np.float32 = np.float32(0)
    stop_state: int = 0

    @property
    def n_new(self) -> int:
        """The number of new tokens."""
        return len(self.ids)


class Beams:
    """The caches of any number of beams, in batches.

    Args:
        decoder: the model.
        context: token ids.

    Example:
        >>> beams = Beams(engine.decoder, [10, 20])
        >>> beams.select([0, 0], last_tokens=[30, 40])
        >>> beams.next_logits().shape
        (2, 1024)
    """

    def __init__(self, decoder: Decoder, context: Sequence[int]):
        self.batches = [Batch(decoder, [context])]

    def next_logits(self) -> np.ndarray:
        """Run each beam's last token, and return the logits of the next tokens, float32 [beams, n_vocab]."""
        return np.concatenate([batch.next_logits() for batch in self.batches])

    def select(self, beams: Sequence[int], last_tokens: Sequence[int]) -> None:
        """Keep these beams, in this order, with these tokens as the next to run."""
        if len(self.batches) == 1 and len(beams) <= MAX_BATCH:
            self.batches[0].select(beams, last_tokens)
        else:
            self.batches = Batch.gather(self.batches, beams, last_tokens)


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Return the positions of the `count` largest values, the largest first; of equal values, the earlier first.

    Example:
        >>> largest(np.array([1, 3, 2, 3]), 3).tolist()
        [1, 3, 2]
    """
    count = min(count, len(values))
    candidates = np.flatnonzero(values >= np.partition(values, len(values) - count)[len(values) - count])
    return candidates[np.argsort(-values[candidates], kind="stable")][:count]


def search_beams(
    decoder: Decoder,
    context: Sequence[int],
    stop_table: np.ndarray,
    *,
    num_beams: int,
    num_return: int,
    length: int,
    length_penalty: float,
    forbidden: Collection[int] = (),
) -> list[Beam]:
    """Search for the best continuations of the context. `Engine.search_beams` describes the arguments.

    Example:
        >>> stop_table = np.zeros([1, engine.hparams.n_vocab], np.int32)  # nothing stops a text
        >>> best, = search_beams(
        ...     engine.decoder, [10], stop_table, num_beams=3, num_return=1, length=4, length_penalty=1.0
        ... )
        >>> len(best.ids), best.finish_reason
        (4, 'length')
    """
    n_vocab = decoder.hparams.n_vocab
    allowed = np.ones(n_vocab, bool)
    allowed[list(forbidden)] = False

    def score(total: float, n_new: int) -> float:
        return float(total) / float(n_new) ** length_penalty

    paths, finished, beams = [Path()], [], Beams(decoder, context)

    def is_active() -> bool:
        """Whether a beam may still end among the best texts: its best possible score is its present sum."""
        if not paths or len(finished) < num_return:
            return bool(paths)
        n_new = length if length_penalty > 0 else paths[0].n_new + 1
        return num_beams > 1 and score(max(path.total for path in paths), n_new) > finished[-1].score

    while is_active():
        interrupt.raise_dropped_ctrl_c()
        logits = beams.next_logits()
        with np.errstate(all="ignore"):  # `check_logprobs` reports logits that are not finite
            shifted = logits - logits.max(axis=1, keepdims=True)
            logprobs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        check_logprobs(logprobs.max(axis=1))
        totals = np.where(allowed, np.array([path.total for path in paths])[:, None] + logprobs, -np.inf)
        states = stop_table[[path.stop_state for path in paths]]
        ends = (states == STOPPED) | (paths[0].n_new + 1 == length)
        ending = select_best(totals, ends & allowed, num_beams)
        continuing = select_best(np.where(ends, np.finfo(np.float32).min, totals), ~ends & allowed, num_beams)

        def extended(beam, token, paths=paths, totals=totals, logprobs=logprobs, states=states):
            ids, numbers = (*paths[beam].ids, token), (*paths[beam].logprobs, float(logprobs[beam, token]))
            return Path(ids, numbers, totals[beam, token], int(states[beam, token]))

        for path in (extended(*pair) for pair in ending):
            reason = "stop" if path.stop_state == STOPPED else "length"
            finished.append(Beam(list(path.ids), list(path.logprobs), reason, score(path.total, path.n_new)))
        finished = sorted(finished, key=lambda beam: -beam.score)[:num_return]
        paths = [extended(*pair) for pair in continuing]
        if paths:
            beams.select([beam for beam, _ in continuing], [token for _, token in continuing])
    return finished


def select_best(totals: np.ndarray, wanted: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Select the `count` largest totals, then of these the wanted: beam and token, both arrays [beams, n_vocab].

    Example:
        >>> select_best(np.array([[1, 5], [3, 4]]), np.array([[True, False], [True, True]]), count=3)
        [(1, 1), (1, 0)]
    """
    pairs = [divmod(int(index), totals.shape[1]) for index in largest(totals.reshape(-1), count)]
    return [pair for pair in pairs if wanted[pair]]
