"""An Engine in NumPy whose answers are known: after each token, its successor has probability 0.7.

It stands for any decoder without TensorFlow.
"""

from typing import NamedTuple

import numpy as np

from gpt2_tf import HParams
from gpt2_tf.generation.engine import Beam, Chunk, Likelihood
from gpt2_tf.generation.stop_strings import STOPPED
from oracles.slow_beam_search import slow_search


class Call(NamedTuple):
    """What `extend` was asked for."""

    n_rows: int
    steps: int
    draft: object


class SuccessorEngine:
    """P(next token is t + 1 | t) = 0.7; P(t + 2 | t) = 0.2; the other tokens share the rest equally.

    Sampling is greedy. A window of `n_ctx` tokens does not matter, since only the last token does.
    """

    def __init__(self, n_vocab: int, n_ctx: int = 32):
        self.hparams = HParams(n_vocab=n_vocab, n_ctx=n_ctx, n_embd=1, n_head=1, n_layer=1)
        self.calls = []

    def logprobs(self, token):
        """Return the log-probabilities of the token after `token`, [n_vocab]."""
        n_vocab = self.hparams.n_vocab
        p = np.full(n_vocab, 0.1 / (n_vocab - 2))
        p[(token + 1) % n_vocab], p[(token + 2) % n_vocab] = 0.7, 0.2
        return np.log(p)

    def extend(self, contexts, params, *, limits, row_numbers, stop_table, steps=8, draft=None):
        assert params.temperature == 0 and params.seed is not None and len(row_numbers) == len(contexts)
        self.calls.append(Call(len(contexts), steps, draft))
        texts = [list(context) for context in contexts]
        n_new, stop_state = [0] * len(texts), [0] * len(texts)
        active = list(range(len(texts)))
        while active:
            chunks = []
            for row in active:
                logprobs = self.logprobs(texts[row][-1])
                token = int((logprobs + [(params.logit_bias or {}).get(i, 0.0) for i in range(len(logprobs))]).argmax())
                texts[row].append(token)
                n_new[row] += 1
                stop_state[row] = stop_table[stop_state[row], token]
                reason = "stop" if stop_state[row] == STOPPED else "length" if n_new[row] == limits[row] else None
                chunks.append(Chunk(row, [token], [float(logprobs[token])], reason))
            active = [chunk.row for chunk in chunks if chunk.finish_reason is None]
            yield chunks

    def likelihoods(self, rows, excluded=()):
        likelihoods = []
        for ids, count in rows:
            all_logprobs = [self.logprobs(ids[i - 1]) for i in range(len(ids) - count, len(ids))]
            targets = ids[len(ids) - count :]
            scores = np.array([x[target] for x, target in zip(all_logprobs, targets, strict=True)], np.float32)
            greedy = np.array([x.argmax() == target for x, target in zip(all_logprobs, targets, strict=True)], bool)
            likelihoods.append(Likelihood(scores, greedy, greedy & ~np.isin(targets, list(excluded))))
        return likelihoods

    def search_beams(self, context, *, num_beams, num_return, length, length_penalty, stop_table, forbidden=()):
        def logprobs(ids):
            x = self.logprobs((*context, *ids)[-1])
            x[list(forbidden)] = -np.inf
            return x

        def stops(ids):
            state = 0
            for token in ids:
                state = stop_table[state, token]
            return state == STOPPED

        found, _ = slow_search(logprobs, stops, num_beams, num_return, length, length_penalty)
        beams = []
        for score, ids in found:
            scores = [float(logprobs(ids[:i])[token]) for i, token in enumerate(ids)]
            beams.append(Beam(list(ids), scores, "stop" if stops(ids) else "length", score))
        return beams
