"""What may come next, guessed cheaply: tokens that `extend` reads in one forward pass and keeps where they are right.

Source: "Fast Inference from Transformers via Speculative Decoding" (Leviathan et al., 2023). They accept a guess by
chance, so that the distribution stays; here a guess is right where it is what would have been chosen without it, by
the same noise, so that the very text stays.
"""

from collections.abc import Sequence

import tensorflow as tf

from gpt2_tf.generation.decoding import Noise, State, decoder, prefill
from gpt2_tf.generation.sampler import Choice, Filter
from gpt2_tf.model import kv_cache
from gpt2_tf.model.gpt2 import GPT2

N_LOOKED_UP = 8
N_DRAFTED = 4


def look_up(text: Sequence[int], done: int, n: int) -> list[int]:
    """Up to n tokens: what followed the text's last three tokens (else two, else one) the last time that they came.

    Source: "Prompt Lookup Decoding" (Saxena, 2023).
    """
    for size in (3, 2, 1):
        last = text[len(text) - size :]
        for start in range(len(text) - size - 1, -1, -1):
            if text[start : start + size] == last:
                return list(text[start + size : start + size + min(n, N_LOOKED_UP)])
    return []


def reader(model: GPT2) -> tf.types.experimental.PolymorphicFunction:
    """`prefill` compiled, `read(tokens, past, start) -> Cache`, for `GPT2.traced`: it reads on many times."""
    tokens, start = tf.TensorSpec([1, None], tf.int32), tf.TensorSpec([1], tf.int32)
    past = kv_cache.tensor_specs(model.hparams, model.compute_dtype, batch=1)

    @tf.function(autograph=False, input_signature=[tokens, past, start])
    def read(tokens, past, start):
        return prefill(model, tokens, past, start)

    return read


class Draft:
    """What a smaller model would write, by the same choice and the same noise."""

    def __init__(self, model: GPT2, choice: Choice, noise: Noise, filters: Sequence[Filter] = ()):
        """`noise` is that of the text."""
        self.model, self.choice, self.noise, self.filters = model, choice, noise, tuple(filters)
        self.read: list[int] = []
        self.past = kv_cache.empty(model.hparams, 1, model.compute_dtype)  # of what is read

    def __call__(self, text: Sequence[int], done: int, n: int) -> list[int]:
        """Up to n tokens after the text, of which `done` are new."""
        n = min(n, N_DRAFTED, self.model.hparams.n_ctx + 1 - len(text))
        if n < 1:
            return []
        known = 0  # from before; the rest was guessed wrong, or the window has slid
        for before, now in zip(self.read, text[:-1], strict=False):
            if before != now:
                break
            known += 1
        # As if no stop string had begun: a guess may be wrong.
        tokens, start, zero = tf.constant([text], tf.int32), tf.constant([0]), tf.constant([0])
        past = self.model.traced(reader)(tokens[:, known:], kv_cache.truncate(self.past, known), start)
        state = State(tokens, start, kv_cache.split_tail(past), zero, tf.constant([done]), tf.zeros([1, 0]))
        noise = tf.constant(self.noise.columns(done, done + n))
        state = self.model.traced(decoder, self.filters, 1)(state, self.choice, noise, tf.constant([done + n]))
        written = state.tokens.numpy()[0].tolist()
        self.read, self.past = written[:-1], state.past
        return written[len(text) :]
