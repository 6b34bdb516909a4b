"""Speculative decoding: cheap proposals for the next tokens, which the model verifies in one forward pass.

Source: "Fast Inference from Transformers via Speculative Decoding" (Leviathan et al., 2023). The paper accepts a
proposal at random, which keeps the distribution of texts. Here a proposal is accepted where it is the token that the
decode loop would have sampled with the same random number, which keeps each text itself.
"""

from collections.abc import Sequence

import tensorflow as tf

from gpt2_tf.generation.decoding import DecodeState, build_decode_loop, prefill
from gpt2_tf.generation.noise import UniformNoise
from gpt2_tf.generation.sampler import Filter, Sampler
from gpt2_tf.model import kv_cache
from gpt2_tf.model.gpt2 import GPT2

MAX_DRAFT_TOKENS = 4


def build_prefill(model: GPT2) -> tf.types.experimental.PolymorphicFunction:
    """Build the compiled `prefill(tokens, past, pad_lengths) -> KVCache`, for `GPT2.traced`.

    A draft model calls it many times per text, so compiling it is worth the time.

    Example:
        >>> empty = kv_cache.empty(model.hparams, 1, model.compute_dtype)
        >>> past = model.traced(build_prefill)(tf.constant([[10, 20, 30]]), empty, tf.constant([0]))
        >>> int(kv_cache.length(past))
        2
    """
    tokens, pad_lengths = tf.TensorSpec([1, None], tf.int32), tf.TensorSpec([1], tf.int32)
    past = kv_cache.tensor_specs(model.hparams, model.compute_dtype, batch=1)

    @tf.function(autograph=False, input_signature=[tokens, past, pad_lengths])
    def compiled_prefill(tokens, past, pad_lengths):
        return prefill(model, tokens, past, pad_lengths)

    return compiled_prefill


class DraftModel:
    """A smaller model that proposes the tokens it would sample with the same settings and the same random numbers.

    Example:
        >>> from gpt2_tf.generation.params import SamplingParams
        >>> from gpt2_tf.generation.sampler import make_sampler
        >>> sampler = make_sampler(SamplingParams(), model.hparams.n_vocab)
        >>> draft = DraftModel(model, sampler, UniformNoise(seed=1, rows=[0]))
        >>> len(draft([10, 20], n_new=0, n=3))
        3
    """

    def __init__(self, model: GPT2, sampler: Sampler, noise: UniformNoise, extra_filters: Sequence[Filter] = ()):
        self.model, self.sampler, self.noise, self.extra_filters = model, sampler, noise, tuple(extra_filters)
        self.cached_tokens: list[int] = []
        self.past = kv_cache.empty(model.hparams, 1, model.compute_dtype)  # of `cached_tokens`

    def __call__(self, text: Sequence[int], n_new: int, n: int) -> list[int]:
        """Propose up to n tokens after the text, whose last `n_new` tokens are new."""
        n = min(n, MAX_DRAFT_TOKENS, self.model.hparams.n_ctx + 1 - len(text))
        if n < 1:
            return []
        # The cache is valid up to the first token that differs: a proposal was wrong, or the window has moved.
        n_valid = 0
        for cached, token in zip(self.cached_tokens, text[:-1], strict=False):
            if cached != token:
                break
            n_valid += 1
        # The draft ignores stop strings that have begun: a proposal that misses one is merely wrong.
        tokens, zero = tf.constant([text], tf.int32), tf.constant([0])
        past = kv_cache.truncate(self.past, n_valid)
        past = self.model.traced(build_prefill)(tokens[:, n_valid:], past, zero)
        state = DecodeState(tokens, zero, kv_cache.split_tail(past), zero, tf.constant([n_new]), tf.zeros([1, 0]))
        noise = tf.constant(self.noise.columns(n_new, n_new + n))
        decode = self.model.traced(build_decode_loop, self.extra_filters, 1)
        state = decode(state, self.sampler, noise, tf.constant([n_new + n]))
        written = state.tokens.numpy()[0].tolist()
        self.cached_tokens, self.past = written[:-1], state.past
        return written[len(text) :]
