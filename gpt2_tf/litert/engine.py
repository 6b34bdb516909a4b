"""`LiteRTEngine`: the `Engine` that runs a model on LiteRT, without TensorFlow."""

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from gpt2_tf.files import interrupt
from gpt2_tf.generation.engine import LOOKUP, STEPS_PER_CHUNK, Beam, Chunk, Engine, Likelihood, Row, check_logprobs
from gpt2_tf.generation.noise import UniformNoise
from gpt2_tf.generation.params import SamplingParams
from gpt2_tf.litert.beam_search import search_beams
from gpt2_tf.litert.decoder import MAX_BATCH, Batch, Decoder
from gpt2_tf.litert.sampler import NumpySampler, Text
from gpt2_tf.litert.speculative import DraftModel, Proposer, extend_text, propose_repetition


class LiteRTEngine:
    """Runs a model on LiteRT. `Engine` describes the methods.

    Args:
        decoder: the model's graphs.

    Attributes:
        hparams: the model's hyperparameters.
        dtype: the type of the weights, "float32" or "int8".

    Example:
        >>> from gpt2_tf import generate, load
        >>> engine, enc = load("shakespeare", engine="litert")
        >>> texts = [generate(one, enc, "ROMEO:", length=9, seed=1)[0].text for one in (engine, model)]
        >>> texts[0] == texts[1]
        True
    """

    name = "litert"

    def __init__(self, decoder: Decoder):
        self.decoder, self.hparams, self.dtype = decoder, decoder.hparams, decoder.weights

    def extend(
        self,
        contexts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        limits: Sequence[int],
        row_numbers: Sequence[int],
        stop_table: np.ndarray,
        steps: int = STEPS_PER_CHUNK,
        draft: Engine | str | None = None,
    ) -> Iterator[list[Chunk]]:
        """See `Engine.extend`. `params.filters` are functions of NumPy arrays, float32 [1, n_vocab]."""
        sampler = NumpySampler(params, self.hparams.n_vocab, stop_table)
        noise = UniformNoise(params.seed, row_numbers)
        texts = [Text(list(context), limit) for context, limit in zip(contexts, limits, strict=True)]
        if draft is not None:
            propose = self._make_proposer(draft, sampler, noise)
            (text,) = texts
            yield from extend_text(self.decoder, text, sampler, noise, steps, propose)
            return
        groups = [range(len(texts))[first : first + MAX_BATCH] for first in range(0, len(texts), MAX_BATCH)]
        running = [self._extend_group(texts, list(rows), sampler, noise, steps) for rows in groups]
        while running:
            chunks, still_running = [], []
            for group in running:
                if new := next(group, None):
                    chunks += new
                    still_running.append(group)
            running = still_running
            if chunks:
                yield chunks

    def _make_proposer(self, draft: Engine | str, sampler: NumpySampler, noise: UniformNoise) -> Proposer:
        if draft == LOOKUP:
            return propose_repetition
        if not isinstance(draft, LiteRTEngine):
            raise ValueError(
                f"draft is {draft!r:.60}, but the engine litert needs a model of the engine litert, or {LOOKUP!r}"
            )
        return DraftModel(draft.decoder, sampler, noise)

    def _extend_group(
        self, texts: Sequence["Text"], rows: list[int], sampler: NumpySampler, noise: UniformNoise, steps: int
    ) -> Iterator[list[Chunk]]:
        """Continue the texts of these rows, as one batch."""
        n_ctx, batch, step = self.hparams.n_ctx, None, 0
        while rows:
            started = rows
            ids, logprobs = {row: [] for row in rows}, {row: [] for row in rows}
            for _ in range(steps):
                interrupt.raise_dropped_ctrl_c()
                if batch is None:  # at the start, and whenever a row fills the window
                    for row in rows:
                        texts[row].slide(n_ctx)
                    batch = Batch(self.decoder, [texts[row].tokens for row in rows])
                logits, numbers = batch.next_logits(), noise.columns(step, step + 1)[:, 0]
                for row, row_logits in zip(rows, logits, strict=True):
                    token, logprob = texts[row].sample(sampler, row_logits, numbers[row])
                    check_logprobs([logprob])
                    ids[row].append(token)
                    logprobs[row].append(logprob)
                step += 1
                kept = [i for i, row in enumerate(rows) if texts[row].finish_reason is None]
                rows = [rows[i] for i in kept]
                if not rows:
                    break
                if any(len(texts[row].tokens) > n_ctx for row in rows):
                    batch = None
                else:
                    batch.select(kept, [texts[row].tokens[-1] for row in rows])
            yield [Chunk(row, ids[row], logprobs[row], texts[row].finish_reason) for row in started]

    def likelihoods(self, rows: Sequence[Row], excluded: Collection[int] = ()) -> list[Likelihood]:
        """See `Engine.likelihoods`."""
        excluded_mask = np.zeros(self.hparams.n_vocab, bool)
        excluded_mask[list(excluded)] = True
        return [self._likelihood(list(row.ids), row.count, excluded_mask) for row in rows]

    def _likelihood(self, ids: list[int], count: int, excluded: np.ndarray) -> Likelihood:
        if not count:
            return Likelihood(np.zeros(0, np.float32), np.zeros(0, bool), np.zeros(0, bool))
        targets, parts = np.array(ids[-count:]), []
        for logits in self.decoder.score(ids[:-1], count):
            interrupt.raise_dropped_ctrl_c()
            target, targets = targets[: len(logits)], targets[len(logits) :]
            logit, highest = logits[np.arange(len(logits)), target], logits.max(axis=1)
            with np.errstate(all="ignore"):  # `check_logprobs` reports logits that are not finite
                log_total = np.log(np.exp(logits - highest[:, None]).sum(axis=1))
                logprobs = logit - highest - log_total
            others = np.where(excluded, -np.inf, logits).max(axis=1) if excluded.any() else highest
            parts.append((logprobs, logit >= highest, (logit >= others) & ~excluded[target]))
        likelihood = Likelihood(*map(np.concatenate, zip(*parts, strict=True)))
        check_logprobs(likelihood.logprobs)
        return likelihood

    def search_beams(
        self,
        context: Sequence[int],
        *,
        num_beams: int,
        num_return: int,
        length: int,
        length_penalty: float,
        stop_table: np.ndarray,
        forbidden: Collection[int] = (),
    ) -> list[Beam]:
        """See `Engine.search_beams`."""
        return search_beams(
            self.decoder,
            context,
            stop_table,
            num_beams=num_beams,
            num_return=num_return,
            length=length,
            length_penalty=length_penalty,
            forbidden=forbidden,
        )
