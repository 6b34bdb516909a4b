"""`TensorFlowEngine`: the `Engine` that runs a `GPT2`, or a view of it with interventions."""

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import tensorflow as tf

from gpt2_tf.generation.beam_decoding import search_beams
from gpt2_tf.generation.decoding import Proposer, extend_rows, left_pad
from gpt2_tf.generation.engine import LOOKUP, STEPS_PER_CHUNK, Beam, Chunk, Engine, Likelihood, Row, check_logprobs
from gpt2_tf.generation.noise import UniformNoise
from gpt2_tf.generation.params import SamplingParams
from gpt2_tf.generation.prompt_lookup import prompt_lookup
from gpt2_tf.generation.sampler import Sampler, make_sampler
from gpt2_tf.generation.speculative import DraftModel
from gpt2_tf.model import loss
from gpt2_tf.model.gpt2 import GPT2
from gpt2_tf.model.interventions import Intervened


class TensorFlowEngine:
    """Runs a `GPT2`, or what its `with_interventions` returns. `Engine` describes the methods.

    Compiled functions are kept with the model, so making an engine again and again costs nothing.

    Raises:
        TypeError: the model is neither.

    Example:
        >>> from gpt2_tf import generate
        >>> engine = TensorFlowEngine(model)
        >>> generate(engine, enc, "ROMEO:", length=5, seed=1) == generate(model, enc, "ROMEO:", length=5, seed=1)
        True
    """

    name = "tensorflow"

    def __init__(self, model: GPT2 | Intervened):
        if not isinstance(model, GPT2 | Intervened):
            raise TypeError(f"the model is {model!r:.60}, but must be a GPT2 or an Engine; gpt2_tf.load returns a GPT2")
        self.model = model
        self.hparams, self.dtype = model.hparams, model.dtype_policy.name

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
        """See `Engine.extend`. `params.filters` are functions of TensorFlow operations, compiled into the loop."""
        sampler = make_sampler(params, self.hparams.n_vocab, stop_table)
        noise = UniformNoise(params.seed, row_numbers)
        proposer = self._make_proposer(draft, sampler, noise, params)
        return extend_rows(self.model, contexts, sampler, limits, noise, params.filters, steps, proposer)

    def _make_proposer(
        self, draft: Engine | str | None, sampler: Sampler, noise: UniformNoise, params: SamplingParams
    ) -> Proposer | None:
        if draft is None:
            return None
        if draft == LOOKUP:
            return prompt_lookup
        if not isinstance(draft, TensorFlowEngine):
            raise ValueError(f"draft is {draft!r:.60}, but a GPT2 needs a GPT2 as its draft model, or {LOOKUP!r}")
        return DraftModel(draft.model, sampler, noise, params.filters)

    def likelihoods(self, rows: Sequence[Row], excluded: Collection[int] = ()) -> list[Likelihood]:
        """See `Engine.likelihoods`."""
        excluded_mask = np.zeros(self.hparams.n_vocab, bool)
        excluded_mask[list(excluded)] = True
        tokens, pad_lengths = left_pad([row.ids for row in rows])
        counts = np.array([row.count for row in rows], np.int32)
        score = self.model.traced(build_scorer)
        scores = [x.numpy() for x in score(tokens, pad_lengths, tf.constant(counts), tf.constant(excluded_mask))]
        check_logprobs(scores[0])
        row_ends = np.cumsum(counts)[:-1]
        return [Likelihood(*row) for row in zip(*(np.split(values, row_ends) for values in scores), strict=True)]

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
        finished = search_beams(
            self.model,
            context,
            stop_table,
            num_beams=num_beams,
            num_return=num_return,
            length=length,
            length_penalty=length_penalty,
            forbidden=forbidden,
        )
        check_logprobs(finished.score)
        beams = []
        for tokens, logprobs, n_new, stopped, score in zip(*(x.numpy().tolist() for x in finished), strict=True):
            ids = tokens[len(context) :][:n_new]
            beams.append(Beam(ids, logprobs[:n_new], "stop" if stopped else "length", score))
        return beams


def build_scorer(model: GPT2) -> tf.types.experimental.PolymorphicFunction:
    """Build the compiled `score(tokens, pad_lengths, counts, excluded)`, for `GPT2.traced`.

    It takes left-padded tokens, int32 [batch, seq], and returns what `loss.likelihood` returns for the last `counts`
    tokens of each row, row after row. Logits of the whole batch are never in memory together.

    Example:
        >>> scorer = model.traced(build_scorer)
        >>> nothing = tf.zeros([model.hparams.n_vocab], tf.bool)
        >>> tokens, pad_lengths, counts = tf.constant([[10, 20, 30]]), tf.constant([0]), tf.constant([2])
        >>> logprobs, greedy, filtered = scorer(tokens, pad_lengths, counts, nothing)
        >>> logprobs.shape.as_list()
        [2]
    """
    rows = tf.TensorSpec([None], tf.int32)
    excluded = tf.TensorSpec([model.hparams.n_vocab], tf.bool)

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, None], tf.int32), rows, rows, excluded])
    def score(tokens, pad_lengths, counts, excluded):
        h, _ = model.hidden_states(tokens[:, :-1], pad_lengths=pad_lengths)
        seq = tf.shape(h)[1]
        scored = tf.range(seq) >= seq - counts[:, None]  # [batch, seq - 1]
        targets = tf.boolean_mask(tokens[:, 1:], scored)
        return loss.likelihood(tf.boolean_mask(h, scored), model.tied_embedding(), targets, excluded)

    return score
