"""Speculative decoding in NumPy: a draft proposes the next tokens, and the model verifies them in one pass.

As in `generation/speculative.py`, a proposal is accepted where it is the token that the model samples with the same
random number, so a draft changes the speed and never the text, except where rounding decides between two tokens.
"""

from collections.abc import Callable, Iterator

from gpt2_tf.files import interrupt
from gpt2_tf.generation.engine import Chunk, check_logprobs
from gpt2_tf.generation.noise import UniformNoise
from gpt2_tf.generation.prompt_lookup import prompt_lookup
from gpt2_tf.litert.decoder import CachedRow, Decoder
from gpt2_tf.litert.graph_files import VERIFIED
from gpt2_tf.litert.sampler import NumpySampler, Text

Proposer = Callable[[Text, int], list[int]]  # a text and a number -> at most so many next tokens


def propose_repetition(text: Text, n: int) -> list[int]:
    """Propose what followed the text's newest tokens before.

    Example:
        >>> propose_repetition(Text([1, 2, 3, 1], limit=9), 2)
        [2, 3]
    """
    return prompt_lookup(text.tokens, text.n_new, n)


class DraftModel:
    """Proposes the tokens that a quicker model samples with the same settings and the same random numbers.

    Args:
        decoder: the quicker model.
        sampler: the settings.
        noise: the text's random numbers, one row.

    Example:
        >>> import numpy as np
        >>> from gpt2_tf.generation.params import SamplingParams
        >>> sampler = NumpySampler(SamplingParams(temperature=0), 1024, np.zeros([1, 1024], np.int32))
        >>> draft = DraftModel(engine.decoder, sampler, UniformNoise(seed=1, rows=[0]))
        >>> len(draft(Text([10, 20], limit=9), 3))
        3
    """

    def __init__(self, decoder: Decoder, sampler: NumpySampler, noise: UniformNoise):
        self.row, self.sampler, self.noise = CachedRow(decoder), sampler, noise
        self.n_ctx = decoder.hparams.n_ctx

    def __call__(self, text: Text, n: int) -> list[int]:
        text = text.copy()
        n_text, numbers = len(text.tokens), self.noise.columns(text.n_new, text.n_new + n)[0]
        for number in numbers[: max(self.n_ctx + 1 - n_text, 0)]:
            if text.finish_reason is not None:
                break
            text.sample(self.sampler, self.row.logits(text.tokens)[0], number)
        return text.tokens[n_text:]


def extend_text(
    decoder: Decoder, text: Text, sampler: NumpySampler, noise: UniformNoise, steps: int, propose: Proposer
) -> Iterator[list[Chunk]]:
    """Continue one text. A chunk has at most `steps` tokens, or one proposal's more.

    Args:
        decoder: the model.
        text: the text, which is continued in place.
        sampler: the settings.
        noise: the text's random numbers, one row.
        steps: yield after about this many new tokens.
        propose: the draft.

    Example:
        >>> import numpy as np
        >>> from gpt2_tf.generation.params import SamplingParams
        >>> sampler = NumpySampler(SamplingParams(), 1024, np.zeros([1, 1024], np.int32))
        >>> noise, text = UniformNoise(seed=1, rows=[0]), Text([10, 20, 30], limit=5)
        >>> chunks = extend_text(engine.decoder, text, sampler, noise, 9, propose_repetition)
        >>> sum(len(chunk.ids) for (chunk,) in chunks)
        5
    """
    row, n_ctx, n_guesses = CachedRow(decoder), decoder.hparams.n_ctx, VERIFIED - 1
    while text.finish_reason is None:
        ids, logprobs = [], []
        while len(ids) < steps and text.finish_reason is None:
            interrupt.raise_dropped_ctrl_c()
            text.slide(n_ctx)
            n_possible = min(n_guesses, text.limit - text.n_new - 1, n_ctx - len(text.tokens))
            guesses = propose(text, n_possible) if n_possible > 0 else []
            all_logits = row.logits([*text.tokens, *guesses], count=1 + len(guesses))
            numbers = noise.columns(text.n_new, text.n_new + len(all_logits))[0]
            n_right = 0
            for logits, number, guess in zip(all_logits, numbers, [*guesses, None], strict=True):
                token, logprob = text.sample(sampler, logits, number)
                check_logprobs([logprob])
                ids.append(token)
                logprobs.append(logprob)
                if token != guess or text.finish_reason is not None:
                    break
                n_right += 1
            # Right guesses save more time than a wrong one costs, so a draft that is often wrong guesses less.
            if guesses:
                n_guesses = min(VERIFIED - 1, n_guesses + 1) if n_right == len(guesses) else max(1, n_right)
        yield [Chunk(0, ids, logprobs, text.finish_reason)]
